"""The public conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, overload

from ovtensor.tensors.modes import undisturbed
from ovtensor.tensors.registry import describe, quick_by_type
from ovtensor.tensors.targets import Casting, numpy_array, openvino_tensor, torch_tensor

if TYPE_CHECKING:
    import numpy as np
    import openvino
    import torch
    from numpy.typing import NDArray

__all__ = ["describe", "to_numpy", "to_openvino", "to_torch"]

Scalar = TypeVar("Scalar", bound="np.generic")


class OpenvinoType(Protocol):
    """``openvino.Type``."""

    def get_type_name(self) -> str:
        """Give OpenVINO's word for it."""


# Whatever names an element type and is not NumPy's, of which a type checker knows more.
Word: TypeAlias = "str | torch.dtype | OpenvinoType | type[complex] | type[str]"


@overload
def to_numpy(
    x: Any,
    *,
    dtype: type[Scalar] | np.dtype[Scalar],
    copy: bool | None = None,
    casting: Casting = "same_value",
) -> NDArray[Scalar]: ...
@overload
def to_numpy(
    x: Any, *, dtype: Word | None = None, copy: bool | None = None, casting: Casting = "same_value"
) -> NDArray[Any]: ...
def to_numpy(
    x: Any, *, dtype: Any = None, copy: bool | None = None, casting: Casting = "same_value"
) -> NDArray[Any]:
    """Convert any tensor-like object to a NumPy array.

    Parameters
    ----------
    x : object
        A tensor of PyTorch or OpenVINO, an array, a column or table, anything that speaks
        ``__array__``, ``__dlpack__`` or the buffer protocol, a number, or a nested list of these.
    dtype : dtype, optional
        Element type of the result, in the words of any of the libraries; a word that OpenVINO has,
        such as ``"u8"`` or ``"f16"``, counts bits as there. ``"native"`` keeps the bits where
        NumPy lacks the type: ``ml_dtypes.bfloat16`` for bfloat16 and so on.
    copy : bool, optional
        True: the result never shares memory with `x`. False: it does, or the call raises.
        None: it does only where the caller owns that memory; memory of an infer request, which
        the next inference writes to, is copied, and so is what nothing can keep from moving.
    casting : {'same_value', 'unsafe'}
        Whether a `dtype` may change values by more than the rounding of floats.

    Returns
    -------
    numpy.ndarray
        The values in native byte order, of the base class. Types that NumPy lacks come as the
        next wider type that holds them exactly: bfloat16 and float8 as float32, complex32 as
        complex64, four-bit integers as int8 or uint8. Masked input and columns with gaps give
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
    A view keeps the memory of its source, also if a tensor is given other storage afterwards;
    PyTorch does not free or resize storage that is shown. The view of an infer request's memory,
    which ``copy=False`` gives, is true until that request runs again, its tensor is given another
    shape, or the request goes out of scope.

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
    return undisturbed(numpy_array)(x, dtype, copy, casting)


def to_torch(
    x: Any,
    *,
    dtype: Any = None,
    device: torch.device | str | int | None = None,
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
    InputError
        If `device` is none, or cannot be used here.
    """
    return undisturbed(torch_tensor)(x, dtype, device, copy, casting)


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
    return undisturbed(openvino_tensor)(x, dtype, copy, casting)
