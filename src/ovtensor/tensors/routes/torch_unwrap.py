"""Tensor subclasses that are more than their memory: how they are unwrapped.

A subclass's own documented method comes first. After that, an operator is tried under its own
dispatch, and memory is believed only if the subclass itself reports the same elements.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ovtensor.errors import ConversionError
from ovtensor.tensors.routes.torch_data import why_dataless

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Masked", "dispatches", "is_plain", "unwrap"]

# Conversions that subclasses offer, in the order in which they are asked for.
# as_tensor comes before to_dense, which of a list of edges makes a matrix; torchao's NF4Tensor has
# a dequantize that is about something else.
_METHODS = ("get_original_weight", "dequantize", "full_tensor", "wait", "as_tensor", "to_dense")
_SAMPLES = 8


class Masked(tuple[torch.Tensor, torch.Tensor]):
    """Values and a mask that is True where a value does not count."""

    __slots__ = ()


def dispatches(x: torch.Tensor) -> bool:
    """Tell whether operators on `x` run Python code of its class."""
    keys = torch._C._dispatch_keys(x)  # noqa: SLF001  no public way to ask
    return bool(keys.has(torch._C.DispatchKey.Python))  # noqa: SLF001


def unwrap(x: torch.Tensor, values: Callable[[torch.Tensor], Any]) -> Any:
    """Find a simpler object with the values of `x`; `x` itself if it is plain.

    Parameters
    ----------
    x : torch.Tensor
        A tensor that has data.
    values : callable
        Reads a plain tensor's memory as an array, to compare elements.
    """
    if (own := _own_unwrap(x)) is not None:
        return own(x)
    return _by_operator(x, values) if dispatches(x) else x


def is_plain(x: torch.Tensor) -> bool:
    """Tell whether the values of `x` are what its memory has."""
    return _own_unwrap(x) is None and not dispatches(x)


def _own_unwrap(x: torch.Tensor) -> Callable[[torch.Tensor], Any] | None:
    """Find the function that is known for the class of `x`, or that the class offers."""
    cls = type(x)
    with torch._C.DisableTorchFunction():  # noqa: SLF001
        nested = x.is_nested
    if nested:
        return _rectangular
    for name, special in _SPECIAL.items():
        module, _, attribute = name.rpartition(".")
        base = getattr(sys.modules.get(module), attribute, None)
        if isinstance(base, type) and issubclass(cls, base):
            return special
    for method in _METHODS:
        own = getattr(cls, method, None)
        if own is None or own is getattr(torch.Tensor, method, None):
            continue
        if method != "as_tensor" or dispatches(x):  # else it would give the memory as it is
            return partial(_simpler, method=method, own=own)
    return None


def _simpler(x: torch.Tensor, method: str, own: Callable[[Any], Any]) -> Any:
    try:
        out = own(x)
    except Exception as error:
        raise ConversionError(f"{_name(x)}.{method}() failed: {error}; {_teach(x)}") from error
    if type(out) is type(x):
        raise ConversionError(f"{_name(x)}.{method}() gave the same type back; {_teach(x)}")
    return out


def _by_operator(x: torch.Tensor, values: Callable[[torch.Tensor], Any]) -> Any:
    """Copy under the subclass's own dispatch, or believe memory that it agrees with.

    An operator that computes ends the process where the subclass hands it a functional tensor, so
    that one comes first which only makes a view.
    """
    with contextlib.suppress(Exception):
        view = torch.ops.aten.detach.default(x)
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            dataless = isinstance(view, torch.Tensor) and why_dataless(view) is not None
        if dataless:
            return view  # which is refused with the reason
    try:
        out = torch.ops.aten.clone.default(x)
    except Exception:  # noqa: BLE001  the subclass's code may raise anything
        out = None
    if isinstance(out, torch.Tensor) and not dispatches(out) and out.shape == x.shape:
        return out
    inner = _inner_tensors(x)
    if len(inner) > 1:
        raise ConversionError(
            f"{_name(x)} wraps {len(inner)} tensors and does not tell which are its values; "
            + _teach(x)
        )
    candidates = [*inner, *([] if inner else [x])]
    for candidate in candidates:
        if (
            candidate.shape == x.shape
            and candidate.dtype == x.dtype
            and _agree(x, candidate, values)
        ):
            return candidate if candidate is not x else values(x).copy()  # `x` may move
    raise ConversionError(f"{_name(x)} has no known way to a plain tensor; {_teach(x)}")


def _inner_tensors(x: torch.Tensor) -> list[torch.Tensor]:
    flatten = getattr(x, "__tensor_flatten__", None)
    if flatten is None:
        return []
    names = flatten()[0]
    return [inner for name in names if isinstance(inner := getattr(x, name, None), torch.Tensor)]


def _agree(x: torch.Tensor, memory: torch.Tensor, values: Callable[[torch.Tensor], Any]) -> bool:
    """Compare elements spread over `memory` with what `x` reports for them by itself."""
    if memory is x and x.untyped_storage().nbytes() < x.numel() * x.element_size():
        return False
    try:
        array = values(memory)
        count = max(1, array.size)
        for flat in {int(i) for i in np.linspace(0, count - 1, _SAMPLES)} if array.size else ():
            index = np.unravel_index(flat, array.shape)
            told: Any = x
            for position in index:
                told = torch.ops.aten.select.int(told, 0, int(position))
            told = told.item()
            if not np.array_equal(told, array[index], equal_nan=True):
                return False
    except Exception:  # noqa: BLE001  no answer is no agreement
        return False
    return True


def _rectangular(x: torch.Tensor) -> Any:
    parts = list(x.unbind())
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise ConversionError(
            f"{_name(x)} is ragged: its parts have the shapes {sorted(shapes)}; "
            "convert them one by one with tree_to_numpy(x.unbind()), or pad them with "
            "torch.nested.to_padded_tensor"
        )
    return parts


def _masked(x: Any) -> Any:
    return Masked((x.get_data(), ~x.get_mask()))


def _dtensor(x: Any) -> Any:
    """Read the local tensor where it is the whole; a collective is for the caller to start."""
    whole = all(
        placement.is_replicate() or x.device_mesh.size(dim) == 1
        for dim, placement in enumerate(x.placements)
    )
    if whole:
        return x.to_local()
    raise ConversionError(
        f"{_name(x)} (shape {tuple(x.shape)}, placements {x.placements}): this process has only a "
        "part of it; call x.full_tensor() on every rank and convert the result, "
        "or convert x.to_local()"
    )


def _gguf(x: Any) -> Any:
    """Dequantize with the format's own package: exact where the frontend's float16 is not."""
    kind = getattr(x, "quant_type", None)
    if kind is None:
        raise ConversionError(
            f"{_name(x)}: packed codes whose quantization type is gone; "
            "dequantize before the type is lost"
        )
    from gguf.quants import dequantize

    codes = x.detach().as_subclass(torch.Tensor).cpu()
    return dequantize(codes.numpy(), kind)


def _params_4bit(x: Any) -> Any:
    state = getattr(x, "quant_state", None)
    if state is None:
        return _unquantized(x)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(x.data.as_subclass(torch.Tensor), state)


def _params_8bit(x: Any) -> Any:
    scale = getattr(x, "SCB", None)
    if scale is None:
        return _unquantized(x)
    from bitsandbytes.functional import int8_vectorwise_dequant

    codes = x.data.as_subclass(torch.Tensor)
    return int8_vectorwise_dequant(codes, scale.to(codes.device))


def _unquantized(x: Any) -> Any:
    if not x.dtype.is_floating_point:
        raise ConversionError(
            f"{_name(x)} (dtype {x.dtype}): packed codes whose scale is gone; "
            "keep the quantization state (Linear8bitLt moves it to layer.state.SCB at its first "
            "call), or reload the weights"
        )
    return x


def _causal_bias(x: Any) -> Any:
    raise ConversionError(
        f"{_name(x)} stands for a mask and its memory holds none; build the mask with "
        "torch.ones(rows, columns, dtype=torch.bool).tril() and convert that"
    )


_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "torch.masked.MaskedTensor": _masked,
    "torch.distributed.tensor.DTensor": _dtensor,
    "torch.nn.attention.bias.CausalBias": _causal_bias,
    "diffusers.quantizers.gguf.utils.GGUFParameter": _gguf,
    "bitsandbytes.nn.Params4bit": _params_4bit,
    "bitsandbytes.nn.Int8Params": _params_8bit,
}


def _name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _teach(x: Any) -> str:
    return f"teach it with ovtensor.register_route({_name(x)!r}, lambda x: ...)"
