"""The public conversions: one policy of copies and dtypes over what the routes find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ovtensor._dtypes import BY_NAME, BY_NUMPY, native_dtype
from ovtensor._host import HostArray, Memory, qualified_name
from ovtensor._registry import by_type, route_for
from ovtensor.errors import ConversionError

if TYPE_CHECKING:
    import numpy.typing as npt
    import openvino
    import torch

__all__ = ["to_numpy", "to_openvino", "to_torch"]


def to_numpy(
    x: Any, *, dtype: npt.DTypeLike | Literal["native"] = None, copy: bool | None = None
) -> np.ndarray[Any, Any]:
    """Convert any tensor-like object to a NumPy array.

    Parameters
    ----------
    x : object
        A tensor of PyTorch, NumPy or OpenVINO.
    dtype : dtype, optional
        Type of the result; ``"native"`` for the type with the same bits.
    copy : bool, optional
        True never aliases `x`, False aliases it or raises, None aliases only memory that the
        caller owns.

    Returns
    -------
    numpy.ndarray
        The values. bfloat16 and float8 come as float32, exactly.

    Raises
    ------
    DatalessTensorError
        If `x` has no values: fake and meta tensors.
    ConversionError
        If `x` has no right array, or a view was demanded where there can be none.
    """
    found = read(x)
    if not isinstance(found, HostArray):
        found = HostArray(found, BY_NUMPY[found.dtype], Memory.CALLER)
    values, fresh = _values(found, dtype)
    if copy is False and fresh:
        raise ConversionError(f"{qualified_name(type(x))} has no zero-copy array; drop copy=False")
    if not fresh and (copy or (copy is None and found.memory is Memory.BORROWED)):
        return values.copy()
    return values


def to_torch(
    x: Any, *, dtype: torch.dtype | None = None, device: Any = None, copy: bool | None = None
) -> torch.Tensor:
    """Convert any tensor-like object to a plain PyTorch tensor; see `to_numpy`."""
    import torch

    bits, element = _bits(x, copy)
    if not bits.flags.writeable:
        bits = bits.copy()
    out = torch.from_numpy(bits)
    if not element.in_numpy:
        out = out.view(getattr(torch, element.torch or element.default))
    return out.to(device=device, dtype=dtype)


def to_openvino(x: Any, *, dtype: Any = None, copy: bool | None = None) -> openvino.Tensor:
    """Convert any tensor-like object to an ``openvino.Tensor``; see `to_numpy`."""
    import openvino

    bits, element = _bits(x, copy)
    bits = np.ascontiguousarray(bits).reshape(bits.shape)
    if dtype is not None:
        raise ConversionError("dtype is not supported here yet")
    return openvino.Tensor(
        bits, openvino.Shape(bits.shape), getattr(openvino.Type, element.openvino or "f32")
    )


def read(x: Any) -> np.ndarray[Any, Any] | HostArray:
    """Find the values of `x` through the route of its type."""
    route = by_type.get(type(x)) or route_for(type(x))
    if route is None:
        raise ConversionError(
            f"{qualified_name(type(x))} is no tensor that is known here; "
            "teach it with ovtensor.register_route"
        )
    return route.read(x)


def _values(found: HostArray, dtype: Any) -> tuple[np.ndarray[Any, Any], bool]:
    """Decode the carrier; also tell whether the result is memory of its own."""
    fresh = found.memory is Memory.FRESH
    bits, element = found.bits, found.element
    if not element.in_numpy:
        native = bits.view(native_dtype(element)) if dtype == "native" else None
        if native is not None:
            return native, fresh
        if element.name == "bfloat16":
            wide = np.zeros(bits.shape, np.uint32)
            np.left_shift(bits, np.uint32(16), out=wide, dtype=np.uint32)
            bits = wide.view(np.float32)
        else:
            bits = bits.view(native_dtype(BY_NAME[element.name])).astype(element.default)
        fresh = True
    if dtype is None or (isinstance(dtype, str) and dtype == "native"):
        return bits, fresh
    cast = bits.astype(dtype, copy=False)
    return cast, fresh or cast is not bits


def _bits(x: Any, copy: bool | None) -> tuple[np.ndarray[Any, Any], Any]:
    found = read(x)
    if not isinstance(found, HostArray):
        found = HostArray(found, BY_NUMPY[found.dtype], Memory.CALLER)
    if copy or (copy is None and found.memory is Memory.BORROWED):
        return found.bits.copy(), found.element
    return found.bits, found.element
