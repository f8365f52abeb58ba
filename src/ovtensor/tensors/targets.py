"""What each library gets: one policy of copies and dtypes over what the routes find."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ovtensor.errors import (
    ConversionError,
    DatalessTensorError,
    InputError,
    MissingExtraError,
    OvtensorError,
)
from ovtensor.tensors.cast import check_casting
from ovtensor.tensors.dtypes import BY_NAME, ElementType, element_of, installed, native_dtype
from ovtensor.tensors.host import Memory, NoNumbersError, qualified_name
from ovtensor.tensors.ownership import Need, settle
from ovtensor.tensors.packed import pack
from ovtensor.tensors.registry import describe, host, read

if TYPE_CHECKING:
    import openvino
    import torch

    from ovtensor.tensors.host import HostArray

__all__ = ["Casting", "numpy_array", "openvino_tensor", "torch_tensor"]

Casting: TypeAlias = Literal["same_value", "unsafe"]
Array: TypeAlias = "np.ndarray[Any, Any]"


def numpy_array(x: Any, dtype: Any, copy: bool | None, casting: Casting) -> Array:
    """Make what ``to_numpy`` gives."""
    found = _found(x)
    check_casting(casting)
    if dtype is None:
        target, view_as = BY_NAME[found.element.default], None
    else:
        native = isinstance(dtype, str) and dtype == "native"
        target = found.element if native else element_of(dtype)
        view_as = native_dtype(target)
    bits = values = _settle(x, found, target, copy, casting)
    if view_as is not None and not target.in_numpy:
        # ml_dtypes keeps its integers in a byte each, as the carriers do
        values = values.view(view_as) if not target.integral else values.astype(view_as)
    if found.mask is None:
        return values
    shared = bits is found.bits and found.memory is not Memory.FRESH
    return _masked(values, found.mask if shared else found.mask.copy(), found.masked)


def _masked(values: Array, mask: Array, source: np.ma.MaskedArray[Any, Any] | None) -> Array:
    """Mask values as a source has them masked: with its fill value, if it was given one."""
    out = np.ma.MaskedArray(values, mask)
    if source is None:
        return out
    if source.hardmask:
        out.harden_mask()
    fill = source.fill_value
    if fill != np.ma.default_fill_value(source):
        # not of a type that cannot hold it
        with contextlib.suppress(TypeError, ValueError), np.errstate(all="ignore"):
            out.fill_value = fill
            if not np.array_equal(out.fill_value, fill, equal_nan=values.dtype.kind in "fc"):
                out.fill_value = None
    return out


def torch_tensor(
    x: Any, dtype: Any, device: Any, copy: bool | None, casting: Casting
) -> torch.Tensor:
    """Make what ``to_torch`` gives."""
    torch = _framework("torch")
    check_casting(casting)
    if dtype is None and isinstance(x, torch.Tensor):
        from ovtensor.tensors.routes.torch_ import on_device

        if (there := on_device(x)) is not None:
            return _placed(x, there, device, copy)
    found = _unmasked(x, _found(x))
    target = found.element if dtype is None else element_of(dtype)
    carried = installed(torch, target.torch, torch.dtype)
    if dtype is None and carried is None:
        target = BY_NAME[target.default]
        carried = installed(torch, target.torch, torch.dtype)
    if carried is None:
        error = NoNumbersError if found.element.name == "str" else ConversionError
        raise error(
            f"{_given(x)}: PyTorch has no {target.name}; give a dtype that it has, such as float32"
        )
    bits = _settle(x, found, target, copy, casting, _TORCH_NEEDS)
    if not target.in_numpy:
        bits = bits.view(f"i{bits.dtype.itemsize}")
    with torch._C.DisableTorchFunction():  # noqa: SLF001  a default device must not move it
        out = torch.from_numpy(bits)
        if type(out) is not torch.Tensor or torch._is_functional_tensor(out):  # noqa: SLF001
            raise DatalessTensorError(
                "a trace is being recorded in which new tensors have no values; "
                "convert outside of the traced function"
            )
        out = out if target.in_numpy else out.view(carried)
        return _placed(x, out, device, None if copy else copy)


def openvino_tensor(x: Any, dtype: Any, copy: bool | None, casting: Casting) -> openvino.Tensor:
    """Make what ``to_openvino`` gives."""
    openvino = _framework("openvino")
    check_casting(casting)
    found = _unmasked(x, _found(x))
    target = found.element if dtype is None else element_of(dtype)
    kind = installed(openvino.Type, target.openvino, openvino.Type)
    if dtype is None and kind is None:
        target = BY_NAME[target.default]
        kind = installed(openvino.Type, target.openvino, openvino.Type)
    if kind is None:
        raise ConversionError(
            f"{_given(x)}: OpenVINO has no {target.name}; give a dtype that it has, "
            "or split complex numbers into a last axis of two"
        )
    if target.packed and copy is False:
        raise ConversionError(f"{_given(x)}: packing {target.name} takes a copy; drop copy=False")
    bits = _settle(x, found, target, copy, casting, _OPENVINO_NEEDS)
    if target.name == "str":
        try:
            return openvino.Tensor(bits)
        except Exception as error:
            raise ConversionError(
                f"{_given(x)} has text that is no Unicode ({error.__cause__ or error}); "
                "replace what is not, such as with str.encode('utf-8', 'replace')"
            ) from error
    if target.packed:
        out = openvino.Tensor(kind, openvino.Shape(bits.shape))
        out.data.view(np.uint8)[...] = pack(bits, target)
        return out
    return openvino.Tensor(bits, openvino.Shape(bits.shape), kind)


_TORCH_NEEDS: tuple[Need, ...] = ("writeable", "aligned", "forward")
_OPENVINO_NEEDS: tuple[Need, ...] = ("writeable", "aligned", "contiguous")


def _found(x: Any) -> HostArray:
    """Read an object; whatever its library raises of it comes as an error of this one."""
    try:
        return host(read(x))
    except (OvtensorError, MemoryError):
        raise
    except RecursionError:
        raise ConversionError(
            f"{qualified_name(type(x))} is nested too deeply, or contains itself; "
            "an array has at most 64 dimensions"
        ) from None
    except Exception as error:
        raise ConversionError(
            f"{_given(x)} cannot be read ({type(error).__name__}: {error}); "
            "see to that in its own library, or teach its type with ovtensor.register_route"
        ) from error


def _settle(
    x: Any,
    found: HostArray,
    target: ElementType,
    copy: bool | None,
    casting: Casting,
    needs: tuple[Need, ...] = (),
) -> Array:
    """Settle the copy contract, with an error that tells what was given."""
    try:
        bits = settle(found, target, copy, casting, needs)
    except ConversionError as error:
        raise type(error)(f"{_given(x)}: {error}") from error.__cause__
    # C has two types of 64 bits, or of 32, and the others know one of them only
    if needs and bits.dtype.char in "lLqQ" and bits.dtype.char != target.carrier.char:
        return bits.view(target.carrier)
    return bits


def _placed(x: Any, out: torch.Tensor, device: Any, copy: bool | None) -> torch.Tensor:
    """Move a tensor to its device under the copy contract."""
    torch = _framework("torch")
    if device is None:
        return out.clone() if copy else out
    try:
        if out.device == torch.device(device):
            return out.clone() if copy else out
        if copy is not False:
            return out.to(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); give one that "
            "torch.device takes and this machine has, such as 'cpu'"
        ) from error
    raise ConversionError(
        f"{_given(x)}: copy=False, but it goes to device {device}; drop copy=False"
    )


def _unmasked(x: Any, found: HostArray) -> HostArray:
    if found.mask is not None:
        raise ConversionError(
            f"{_given(x)} has a mask, which would be dropped; "
            "fill it first: to_numpy(x).filled(value)"
        )
    return found


def _given(x: Any) -> str:
    return str(describe(x))


def _framework(name: str) -> Any:
    """Import a framework, or say how to install it."""
    if (loaded := sys.modules.get(name)) is not None:
        return loaded
    try:
        return __import__(name)
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(f"ovtensor.to_{name}", name) from missing
