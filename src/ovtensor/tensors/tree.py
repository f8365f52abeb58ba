"""Conversion of every tensor in a nested structure, the structure kept."""

from __future__ import annotations

import copy as copies
import dataclasses
import sys
from collections import deque
from collections.abc import Mapping, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, overload

import numpy as np

from ovtensor.errors import ConversionError, OvtensorError
from ovtensor.tensors.convert import to_numpy, to_openvino, to_torch
from ovtensor.tensors.host import NoNumbersError, qualified_name
from ovtensor.tensors.registry import describe, route_for, route_of

if TYPE_CHECKING:
    import openvino
    import torch
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from ovtensor.tensors.targets import Casting

__all__ = ["tree_to_numpy", "tree_to_openvino", "tree_to_torch"]

Convert: TypeAlias = "partial[Any]"
# To a type checker an int is a complex too.
Leaf = TypeVar("Leaf", bound="str | bytes | complex | None")
Key = TypeVar("Key")


class Options(TypedDict, total=False):
    """How each tensor is converted."""

    dtype: Any
    copy: bool | None
    casting: Casting


class DeviceOptions(Options, total=False):
    """And where it goes."""

    device: torch.device | str | int | None


# Convertible, but nobody means a tensor by them: numbers, raw bytes and pictures stay.
_NO_TENSORS = (bool, int, float, complex, range, str, bytes, bytearray, memoryview, np.generic)
_MAYBE_LOADED = (("PIL.Image", "Image"), ("mmap", "mmap"))


@overload
def tree_to_numpy(tree: Leaf, **options: Unpack[Options]) -> Leaf: ...
@overload
def tree_to_numpy(tree: torch.Tensor, **options: Unpack[Options]) -> NDArray[Any]: ...
@overload
def tree_to_numpy(tree: list[torch.Tensor], **options: Unpack[Options]) -> list[NDArray[Any]]: ...
@overload
def tree_to_numpy(
    tree: dict[Key, torch.Tensor], **options: Unpack[Options]
) -> dict[Key, NDArray[Any]]: ...
@overload
def tree_to_numpy(tree: list[Any], **options: Unpack[Options]) -> list[Any]: ...
@overload
def tree_to_numpy(tree: dict[Key, Any], **options: Unpack[Options]) -> dict[Key, Any]: ...
@overload
def tree_to_numpy(tree: tuple[Any, ...], **options: Unpack[Options]) -> tuple[Any, ...]: ...
@overload
def tree_to_numpy(tree: Any, **options: Unpack[Options]) -> Any: ...
def tree_to_numpy(
    tree: Any, *, dtype: Any = None, copy: bool | None = None, casting: Casting = "same_value"
) -> Any:
    """Convert every tensor in a nested structure to a NumPy array.

    Parameters
    ----------
    tree : object
        Dicts and other mappings, lists, tuples, named tuples, dataclasses, model outputs of
        diffusers and transformers, inference results, tensordicts, and tensors, to any depth.
    dtype, copy, casting
        For each tensor as in `to_numpy`.

    Returns
    -------
    object
        The same structure in new containers. Results of an inference become a dict with the same
        ports as keys, and a tensordict a dict, since neither can hold arrays. What is no
        tensor is the same object as before: numbers, text, dates, pictures, and arrays of text,
        dates or objects where the library has none.

    Raises
    ------
    ConversionError
        If a tensor has no right array; see `to_numpy`. `tree` is unchanged then.

    Examples
    --------
    >>> import numpy as np, ovtensor
    >>> ovtensor.tree_to_numpy({"latents": [np.float16([1, 2])], "steps": 4})
    {'latents': [array([1., 2.], dtype=float16)], 'steps': 4}
    """
    return _converted(tree, partial(to_numpy, dtype=dtype, copy=copy, casting=casting))


@overload
def tree_to_torch(tree: Leaf, **options: Unpack[DeviceOptions]) -> Leaf: ...
@overload
def tree_to_torch(tree: torch.Tensor, **options: Unpack[DeviceOptions]) -> torch.Tensor: ...
@overload
def tree_to_torch(
    tree: list[torch.Tensor], **options: Unpack[DeviceOptions]
) -> list[torch.Tensor]: ...
@overload
def tree_to_torch(
    tree: dict[Key, torch.Tensor], **options: Unpack[DeviceOptions]
) -> dict[Key, torch.Tensor]: ...
@overload
def tree_to_torch(tree: list[Any], **options: Unpack[DeviceOptions]) -> list[Any]: ...
@overload
def tree_to_torch(tree: dict[Key, Any], **options: Unpack[DeviceOptions]) -> dict[Key, Any]: ...
@overload
def tree_to_torch(tree: tuple[Any, ...], **options: Unpack[DeviceOptions]) -> tuple[Any, ...]: ...
@overload
def tree_to_torch(tree: Any, **options: Unpack[DeviceOptions]) -> Any: ...
def tree_to_torch(
    tree: Any,
    *,
    dtype: Any = None,
    device: torch.device | str | int | None = None,
    copy: bool | None = None,
    casting: Casting = "same_value",
) -> Any:
    """Convert every tensor in a nested structure to a PyTorch tensor.

    See `tree_to_numpy` for structures and `to_torch` for tensors. A tensordict stays one, of the
    same class and batch size, without a device of its own.
    """
    convert = partial(to_torch, dtype=dtype, device=device, copy=copy, casting=casting)
    return _converted(tree, convert)


@overload
def tree_to_openvino(tree: Leaf, **options: Unpack[Options]) -> Leaf: ...
@overload
def tree_to_openvino(tree: torch.Tensor, **options: Unpack[Options]) -> openvino.Tensor: ...
@overload
def tree_to_openvino(
    tree: list[torch.Tensor], **options: Unpack[Options]
) -> list[openvino.Tensor]: ...
@overload
def tree_to_openvino(
    tree: dict[Key, torch.Tensor], **options: Unpack[Options]
) -> dict[Key, openvino.Tensor]: ...
@overload
def tree_to_openvino(tree: list[Any], **options: Unpack[Options]) -> list[Any]: ...
@overload
def tree_to_openvino(tree: dict[Key, Any], **options: Unpack[Options]) -> dict[Key, Any]: ...
@overload
def tree_to_openvino(tree: tuple[Any, ...], **options: Unpack[Options]) -> tuple[Any, ...]: ...
@overload
def tree_to_openvino(tree: Any, **options: Unpack[Options]) -> Any: ...
def tree_to_openvino(
    tree: Any, *, dtype: Any = None, copy: bool | None = None, casting: Casting = "same_value"
) -> Any:
    """Convert every tensor in a nested structure to an ``openvino.Tensor``.

    See `tree_to_numpy` for structures and `to_openvino` for tensors.
    """
    return _converted(tree, partial(to_openvino, dtype=dtype, copy=copy, casting=casting))


def _converted(tree: Any, convert: Convert) -> Any:
    try:
        return _walk(tree, convert)
    except (OvtensorError, MemoryError):
        raise
    except RecursionError:
        raise ConversionError(
            f"{qualified_name(type(tree))} is nested too deeply, or contains itself; "
            "convert its parts one by one"
        ) from None
    except Exception as error:
        raise ConversionError(
            f"{qualified_name(type(tree))} has a container that cannot be made anew "
            f"({type(error).__name__}: {error}); convert its parts one by one"
        ) from error


def _walk(node: Any, convert: Convert) -> Any:
    cls = type(node)
    if cls.__name__ == "OVDict" and cls.__module__.startswith("openvino"):
        from ovtensor.tensors.routes.openvino_objects import result

        return {port: convert(result(port, array)) for port, array in node.items()}
    is_tensordict = getattr(sys.modules.get("tensordict"), "is_tensor_collection", None)
    if is_tensordict is not None and is_tensordict(node):
        return _tensordict(node, convert)
    if isinstance(node, Mapping):
        return _mapping(node, convert)
    if isinstance(node, tuple | list | deque):
        return _sequence(node, convert)
    if dataclasses.is_dataclass(node) and not isinstance(node, type) and route_for(cls) is None:
        return _dataclass(node, convert)
    if not _is_tensor(node):
        return node
    try:
        return convert(node)
    except NoNumbersError:
        return node


def _tensordict(node: Any, convert: Convert) -> Any:
    if _is("tensordict", "NonTensorData", node):
        return node.data
    items = {key: _walk(value, convert) for key, value in node.items()}
    if convert.func is not to_torch:
        return items
    out = node.clone(recurse=False).clear_device_()  # else it would move what it is given
    for key, value in items.items():
        out.set(key, value)
    return out


def _mapping(node: Any, convert: Convert) -> Any:
    items = {key: _walk(value, convert) for key, value in node.items()}
    if type(node) is dict or not isinstance(node, MutableMapping):
        return items
    # A copy keeps what else the class holds: a default factory, a model output's fields.
    out = copies.copy(node)
    for key, value in items.items():
        out[key] = value
    return out


def _sequence(node: Any, convert: Convert) -> Any:
    items = [_walk(item, convert) for item in node]
    if type(node) is list:
        return items
    if isinstance(node, list | deque):
        out = copies.copy(node)
        out.clear()
        out.extend(items)
        return out
    if hasattr(node, "_make"):
        return node._make(items)
    if all(new is old for new, old in zip(items, node, strict=True)):
        return node  # torch.Size among others: nothing to convert
    return type(node)(items)


def _dataclass(node: Any, convert: Convert) -> Any:
    out = copies.copy(node)
    for field in dataclasses.fields(node):
        # Past a frozen class's refusal: the copy is not shared with anybody yet.
        object.__setattr__(out, field.name, _walk(getattr(node, field.name), convert))
    return out


def _is_tensor(node: Any) -> bool:
    if isinstance(node, _NO_TENSORS) or any(_is(*name, node) for name in _MAYBE_LOADED):
        return False
    if route_of(node) is None:
        return False
    from_openvino = type(node).__module__.startswith("openvino")
    return not from_openvino or describe(node).has_data  # ports and requests are no tensors


def _is(module: str, name: str, x: Any) -> bool:
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(x, cls)
