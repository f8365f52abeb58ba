"""PyTorch tensors.

The memory of a strided CPU tensor is shown as it is; flags such as requires_grad, active modes and
subclasses' methods do not interfere. Everything else goes through an operator once.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch._C import _is_tracing
from torch._C import _len_torch_dispatch_stack as _dispatch_modes
from torch._C import _len_torch_function_stack as _function_modes

from ovtensor.errors import ConversionError, DatalessTensorError
from ovtensor.tensors.dtypes import BY_NAME, TABLE, installed
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, pinned, qualified_name
from ovtensor.tensors.packed import unpack
from ovtensor.tensors.registry import host, read
from ovtensor.tensors.routes.torch_data import peeled, why_dataless
from ovtensor.tensors.routes.torch_unwrap import Masked, dispatches, is_plain, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PARAMETER", "PLAIN", "ROUTE", "on_device"]

_ELEMENT = {
    dtype: row for row in TABLE if (dtype := installed(torch, row.torch, torch.dtype)) is not None
}
# What torch calls the carrier of each type.
_SHOWN_AS = {
    dtype: dtype if row.in_numpy else getattr(torch, row.carrier.name)
    for dtype, row in _ELEMENT.items()
}
_CONTIGUOUS, _CONTIGUOUS_OR_OWNED = 0x1, 0x5  # bits of numpy.ndarray.flags.num
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


class TorchRoute:
    """Values of a tensor, whatever stands between it and its memory."""

    __slots__ = ()

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        """Find the values of any tensor."""
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            x = peeled(x)
            _demand_data(x)
        simple = unwrap(x, _memory)
        if isinstance(simple, Masked):
            values, mask = (host(read(part)) for part in simple)
            return dataclasses.replace(values, memory=Memory.UNKNOWN, mask=mask.bits)
        if simple is not x:
            found = host(read(simple))
            found.memory = Memory.UNKNOWN
            return found
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            if x.layout is torch.strided and x.device.type == "cpu" and not x.is_quantized:
                return _strided(x)
            found = host(_strided(_dense(x).cpu()))
        found.memory = Memory.FRESH
        return found

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what the tensor's metadata say, and whether there are values behind them."""
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            reason = why_dataless(x)
            shape = _shape(x)
            strided = x.layout is torch.strided and x.device.type == "cpu" and shape is not None
            as_is = x.dtype in _ELEMENT and not (x.is_conj() or x.is_neg() or x._is_zerotensor())  # noqa: SLF001
            return TensorInfo(
                library=type(x).__module__.partition(".")[0],
                type=qualified_name(type(x)),
                shape=shape,
                dtype=str(x.dtype),
                device=str(x.device),
                has_data=reason is None,
                reason=reason,
                zero_copy=reason is None and strided and as_is and is_plain(x),
                route="torch",
                owner=Memory.CALLER.value,
            )


def _fast_path(numpy: Callable[[Any], Any]) -> Callable[[Any], np.ndarray[Any, Any] | None]:
    """Make a path that shows contiguous values, and gives up when anything is special.

    ``Tensor.numpy`` refuses flags and other layouts by itself. What it gets wrong is asked before
    and after: whether a mode or a trace is active, and whether the storage has what the tensor
    spans. A tensor that torch finds no address for (freed, functional, or captured under a
    transform that makes it so) is told by the array: NumPy then allocates memory of its own.
    What make_fx traces ahead of dispatch is told by a function mode alone. Each question costs a
    tenth of what ``Tensor.numpy`` does, so none is asked twice.
    """

    def quick(x: Any, /) -> np.ndarray[Any, Any] | None:
        if _is_dynamo_compiling() or _function_modes() or _dispatch_modes() or _is_tracing():
            return None
        try:
            array: np.ndarray[Any, Any] = numpy(x)
            if (
                array.flags.num & _CONTIGUOUS_OR_OWNED == _CONTIGUOUS
                and not x.storage_offset()
                and array.nbytes <= len(x.untyped_storage())
            ):
                return array
        except (RuntimeError, TypeError):
            pass
        return None

    return quick


class PlainRoute(TorchRoute):
    """``torch.Tensor`` itself, which mostly is a contiguous CPU tensor: a fast path for that."""

    __slots__ = ()
    quick = staticmethod(_fast_path(torch.Tensor.numpy))

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        """Take the fast path, and the general one whenever anything is special."""
        found = self.quick(x)
        return TorchRoute.read(self, x) if found is None else found


class ParameterRoute(TorchRoute):
    """``torch.nn.Parameter`` itself: the same, past requires_grad.

    ``force`` is faster than ``.data`` and ``.detach()``, which make one more tensor. It copies
    what has a conj or neg bit; so `read`, which promises views, is the general path.
    """

    __slots__ = ()
    quick = staticmethod(_fast_path(lambda x: x.numpy(force=True)))


def on_device(x: torch.Tensor) -> torch.Tensor | None:
    """Return a plain dense tensor where `x` lives, or None if that is the CPU."""
    with torch._C.DisableTorchFunction():  # noqa: SLF001
        if x.device.type in ("cpu", "meta"):
            return None
        _demand_data(x)
    simple = unwrap(x, _memory)
    with torch._C.DisableTorchFunction():  # noqa: SLF001
        return _dense(simple) if isinstance(simple, torch.Tensor) else None


def _demand_data(x: torch.Tensor) -> None:
    if (reason := why_dataless(x)) is not None:
        raise DatalessTensorError(f"{ROUTE.describe(x)} has no values: {reason}")


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Bring quantized, sparse and mkldnn layouts to plain strided values, out of the graph."""
    x = x.detach()
    if x.is_quantized:
        x = x.dequantize()
    return x if x.layout is torch.strided else x.to_dense()


def _strided(x: torch.Tensor) -> HostArray:
    """Read memory, then undo what flags and torch's own element types put on top of it."""
    memory = _memory(x)
    if x.dtype is torch.complex32:
        values = memory.astype(np.float32).view(np.complex64).reshape(tuple(x.shape))
        return HostArray(_signed(x, values), BY_NAME["complex64"], Memory.FRESH)
    if x.dtype is torch.float4_e2m1fn_x2:
        element = BY_NAME["float4_e2m1fn"]
        shape = (*memory.shape[:-1], 2 * memory.shape[-1])
        return HostArray(
            unpack(np.ascontiguousarray(memory), shape, element), element, Memory.FRESH
        )
    element = _ELEMENT[x.dtype]
    if x.is_conj() or x.is_neg():
        if not element.in_numpy:
            memory = np.asarray(memory ^ element.carrier.type(1 << (element.bits - 1)))
            return HostArray(memory, element, Memory.FRESH)
        return HostArray(_signed(x, memory), element, Memory.FRESH)
    if x._is_zerotensor():  # noqa: SLF001
        return HostArray(memory, element, Memory.FRESH)
    return HostArray(memory, element, Memory.CALLER, pin=partial(_shared, x))


def _signed(x: torch.Tensor, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if x.is_conj():
        values = np.asarray(np.conj(values))  # NumPy makes scalars of no dimension
    return np.asarray(np.negative(values)) if x.is_neg() else values


def _shared(x: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """Show the elements as carriers, as a view that keeps the memory whatever becomes of `x`.

    `x` may be given other storage (``x.data = y`` and ``module.to(dtype)`` do that): so another
    tensor of the same storage stands behind the view. That torch does not free or resize storage
    which is shown is due to ``Tensor.numpy``. None where that refuses, and where operators on `x`
    run code of its class.
    """
    with torch._C.DisableTorchFunction():  # noqa: SLF001
        if dispatches(x):
            return None
        try:
            alias, shown = torch.Tensor.detach(x), _SHOWN_AS[x.dtype]
            array: np.ndarray[Any, Any] = (alias if shown is x.dtype else alias.view(shown)).numpy()
        except (RuntimeError, TypeError):
            return None
        return array


def _memory(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Show the elements of a strided CPU tensor as carriers, only as long as nobody touches `x`.

    By its address, with no operator in between that a subclass or a transform could answer.
    """
    size, stride, width = tuple(x.shape), x.stride(), x.element_size()
    strides = tuple(step * width for step in stride)
    if x.dtype is torch.complex32:
        typestr, size, strides = (
            "<f2" if sys.byteorder == "little" else ">f2",
            (*size, 2),
            (*strides, 2),
        )
    elif x.dtype is torch.float4_e2m1fn_x2:
        typestr = "|u1"
    elif x.dtype in _ELEMENT:
        typestr = _ELEMENT[x.dtype].carrier.str
    else:
        raise ConversionError(
            f"{ROUTE.describe(x)}: no array has this element type; "
            "view it as an integer type first, such as x.view(torch.uint8)"
        )
    if x.numel() == 0 or x._is_zerotensor():  # noqa: SLF001  forward-mode autodiff's, memoryless
        return np.zeros(size, typestr)
    interface = {
        "shape": size,
        "strides": strides,
        "typestr": typestr,
        "data": (x.data_ptr(), False),
    }
    return pinned(interface, x)


def _shape(x: torch.Tensor) -> tuple[int, ...] | None:
    if _is_tracing():  # sizes are tensors there, whose values get recorded
        return None
    try:
        return tuple(int(size) for size in x.shape)
    except (RuntimeError, TypeError, ValueError):  # ragged, or not initialized
        return None


ROUTE = TorchRoute()
PLAIN, PARAMETER = PlainRoute(), ParameterRoute()
