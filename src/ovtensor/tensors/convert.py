"""The public conversions: one policy of copies and dtypes over what the routes find."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from ovtensor.errors import ConversionError, DatalessTensorError, MissingExtraError
from ovtensor.tensors.cast import check_casting
from ovtensor.tensors.dtypes import BY_NAME, ElementType, element_of, installed, native_dtype
from ovtensor.tensors.host import HostArray, TensorInfo, qualified_name
from ovtensor.tensors.ownership import Need, settle
from ovtensor.tensors.packed import pack
from ovtensor.tensors.registry import host, quick_by_type, read, route_for

if TYPE_CHECKING:
    import openvino
    import torch

__all__ = ["describe", "to_numpy", "to_openvino", "to_torch"]

Casting: TypeAlias = Literal["same_value", "unsafe"]
Array: TypeAlias = "np.ndarray[Any, Any]"
Work = TypeVar("Work", bound=Callable[..., Any])


def to_numpy(
    x: Any, *, dtype: Any = None, copy: bool | None = None, casting: Casting = "same_value"
) -> Array:
    """Convert any tensor-like object to a NumPy array.

    Parameters
    ----------
    x : object
        A tensor of PyTorch or OpenVINO, an array, anything that speaks ``__array__``,
        ``__dlpack__`` or the buffer protocol, a number, or a nested list of these.
    dtype : dtype, optional
        Element type of the result, in the words of any of the libraries. ``"native"`` keeps the
        bits where NumPy lacks the type: ``ml_dtypes.bfloat16`` for bfloat16 and so on.
    copy : bool, optional
        True: the result never shares memory with `x`. False: it does, or the call raises.
        None: it does only where the caller owns that memory; memory of an infer request, which
        the next inference writes to, is copied.
    casting : {'same_value', 'unsafe'}
        Whether a `dtype` may change values by more than the rounding of floats.

    Returns
    -------
    numpy.ndarray
        The values in native byte order, of the base class. Types that NumPy lacks come as the
        next wider type that holds them exactly: bfloat16 and float8 as float32, complex32 as
        complex64, four-bit integers as int8 or uint8. Masked input gives
        `numpy.ma.MaskedArray`, and nothing else does.

    Raises
    ------
    DatalessTensorError
        If `x` has a shape but no values: fake, meta, functional and traced tensors, freed memory.
    ConversionError
        If `x` has no right array, a view was demanded where there can be none, or `dtype` would
        change values.

    Notes
    -----
    A view keeps its source alive. The view of an infer request's memory, which ``copy=False``
    gives, is true until that request runs again, its tensor is given another shape, or the
    request goes out of scope.

    Code that ``torch.compile`` traces sees `DatalessTensorError` too; where it is not caught,
    PyTorch runs that code eagerly instead, and the conversion returns the true values.

    No device is synchronised except by the copy from it, no collective is started, and `x` is
    left as it was.

    Examples
    --------
    >>> import ovtensor
    >>> ovtensor.to_numpy([[1, 2], [3, 4]])
    array([[1, 2],
           [3, 4]])
    """
    if dtype is None and copy is None and casting == "same_value":
        # The common call, for which some routes have the whole answer.
        quick = quick_by_type.get(type(x))
        if quick is not None and (array := quick(x)) is not None:
            return array
    return _untraced(_to_numpy)(x, dtype, copy, casting)


def to_torch(
    x: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    casting: Casting = "same_value",
) -> torch.Tensor:
    """Convert any tensor-like object to a plain PyTorch tensor.

    Parameters
    ----------
    x, dtype, copy, casting
        As for `to_numpy`. Read-only memory is copied, since PyTorch cannot protect it.
    device : torch.device or str, optional
        Where the result lives; by default the CPU, or where `x` lives if it is a PyTorch tensor.

    Returns
    -------
    torch.Tensor
        A ``torch.Tensor`` and no subclass, without autograd history. bfloat16 and float8 keep
        their bits; types that PyTorch lacks come as for `to_numpy`.

    Raises
    ------
    DatalessTensorError, ConversionError
        As for `to_numpy`; also for masks, which a plain tensor would drop, and for text.
    MissingExtraError
        If PyTorch is not installed.
    """
    return _untraced(_to_torch)(x, dtype, device, copy, casting)


def to_openvino(
    x: Any, *, dtype: Any = None, copy: bool | None = None, casting: Casting = "same_value"
) -> openvino.Tensor:
    """Convert any tensor-like object to an ``openvino.Tensor``.

    Parameters
    ----------
    x, dtype, copy, casting
        As for `to_numpy`. Read-only memory and memory that is not C-contiguous is copied, since
        OpenVINO would write to the one and misread the other.

    Returns
    -------
    openvino.Tensor
        With the element type of `x`: bfloat16 and float8 keep their bits, four-bit types are
        packed. Types that OpenVINO lacks come as for `to_numpy`. It keeps `x` alive while it
        shares memory with it.

    Raises
    ------
    DatalessTensorError, ConversionError
        As for `to_numpy`; also for masks and complex numbers, which OpenVINO does not have.
    MissingExtraError
        If OpenVINO is not installed.
    """
    return _untraced(_to_openvino)(x, dtype, copy, casting)


def describe(x: Any) -> TensorInfo:
    """Tell what is known about a tensor-like object, without reading its values.

    Parameters
    ----------
    x : object
        Anything; odd objects never make it raise.

    Returns
    -------
    TensorInfo
        Library, type, shape, dtype and device; whether there are values, and if not why; whether
        a conversion can be a view; which route it would take; who owns the memory.

    Examples
    --------
    >>> import numpy as np, ovtensor
    >>> info = ovtensor.describe(np.zeros((2, 3)))
    >>> info.library, info.shape, info.has_data, info.owner
    ('numpy', (2, 3), True, 'caller')
    """
    cls = type(x)
    try:
        route = route_for(cls)
        if route is not None:
            return route.describe(x)
        reason = "nothing that is known here"
    except Exception as error:  # noqa: BLE001  an odd object may raise anything
        reason = f"it does not say: {type(error).__name__}: {error}"
    library = str(getattr(cls, "__module__", "")).partition(".")[0]
    return TensorInfo(library, qualified_name(cls), reason=reason)


def _to_numpy(x: Any, dtype: Any, copy: bool | None, casting: Casting) -> Array:
    found = host(read(x))
    check_casting(casting)
    if dtype is None:
        target, view_as = BY_NAME[found.element.default], None
    else:
        native = isinstance(dtype, str) and dtype == "native"
        target = found.element if native else element_of(dtype)
        view_as = native_dtype(target)
    values = _settle(x, found, target, copy, casting)
    if view_as is not None and not target.in_numpy:
        # ml_dtypes keeps its integers in a byte each, as the carriers do
        values = values.view(view_as) if not target.integral else values.astype(view_as)
    if found.mask is not None:
        return np.ma.MaskedArray(values, found.mask, copy=False)
    return values


def _to_torch(x: Any, dtype: Any, device: Any, copy: bool | None, casting: Casting) -> torch.Tensor:
    torch = _framework("torch")
    check_casting(casting)
    if dtype is None and isinstance(x, torch.Tensor):
        from ovtensor.tensors.routes.torch_ import on_device

        if (there := on_device(x)) is not None:
            return _placed(x, there, device, copy)
    found = _unmasked(x, host(read(x)))
    target = found.element if dtype is None else element_of(dtype)
    if dtype is None and _torch_dtype(torch, target) is None:
        target = BY_NAME[target.default]
    carried = _torch_dtype(torch, target)
    if carried is None:
        raise ConversionError(
            f"{_given(x)}: PyTorch has no {target.name}; give a dtype that it has, such as float32"
        )
    bits = _settle(x, found, target, copy, casting, _TORCH_NEEDS)
    if not target.in_numpy:
        bits = bits.view(f"i{bits.dtype.itemsize}")
    with torch._C.DisableTorchFunction():  # noqa: SLF001  a default device must not move it
        out = torch.from_numpy(bits)
        out = out if target.in_numpy else out.view(carried)
        return _placed(x, out, device, None if copy else copy)


def _to_openvino(x: Any, dtype: Any, copy: bool | None, casting: Casting) -> openvino.Tensor:
    openvino = _framework("openvino")
    check_casting(casting)
    found = _unmasked(x, host(read(x)))
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
        return openvino.Tensor(bits)
    if target.packed:
        if bits.ndim == 0:
            raise ConversionError(f"{_given(x)}: OpenVINO has no {target.name} of no dimension")
        return openvino.Tensor(pack(bits, target), openvino.Shape(bits.shape), kind)
    return openvino.Tensor(bits, openvino.Shape(bits.shape), kind)


def _untraced(work: Work) -> Work:
    """Keep ``torch.compile`` out of a conversion.

    After a graph broke, dynamo would go on with our own frames, and fail where torch lacks what
    NumPy does there.
    """
    disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
    torch = sys.modules.get("torch")
    if disable is None or torch is None:  # or another thread is still importing it
        return work
    if torch.compiler.is_dynamo_compiling():
        raise DatalessTensorError(
            "there are no values while torch.compile or torch.export traces; "
            "convert outside of the traced function"
        )
    untraced: Work = _disabled(disable, work)
    return untraced


@functools.cache
def _disabled(disable: Any, work: Any) -> Any:
    return disable(work)


_TORCH_NEEDS: tuple[Need, ...] = ("writeable", "forward")
_OPENVINO_NEEDS: tuple[Need, ...] = ("writeable", "contiguous")


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
        return settle(found, target, copy, casting, needs)
    except ConversionError as error:
        raise ConversionError(f"{_given(x)}: {error}") from error.__cause__


def _placed(x: Any, out: torch.Tensor, device: Any, copy: bool | None) -> torch.Tensor:
    """Move a tensor to its device under the copy contract."""
    if device is None or out.device == _framework("torch").device(device):
        return out.clone() if copy else out
    if copy is False:
        raise ConversionError(
            f"{_given(x)}: copy=False, but it goes to device {device}; drop copy=False"
        )
    return out.to(device)


def _torch_dtype(torch: Any, element: ElementType) -> Any:
    return installed(torch, element.torch, torch.dtype)


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
