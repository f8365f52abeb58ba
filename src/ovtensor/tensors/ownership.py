"""The copy contract of the conversions: decided here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ovtensor.errors import ConversionError
from ovtensor.tensors.cast import recode
from ovtensor.tensors.host import HostArray, Memory

if TYPE_CHECKING:
    import numpy as np

    from ovtensor.tensors.dtypes import ElementType

__all__ = ["Need", "settle"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Need: TypeAlias = Literal["writeable", "aligned", "contiguous", "forward"]


def settle(
    found: HostArray,
    target: ElementType,
    copy: bool | None,
    casting: str,
    needs: tuple[Need, ...] = (),
) -> Array:
    """Give the values as carriers of `target`, as a view or a copy as was asked for.

    Parameters
    ----------
    found : HostArray
        What a route found.
    target : ElementType
        What the carriers shall mean.
    copy : bool or None
        True: memory of its own. False: the memory that was found, or an error. None: the memory
        that was found if the caller owns it.
    casting : str
        See `recode`.
    needs : tuple of str
        What a library demands of memory that it shares.

    Raises
    ------
    ConversionError
        If ``copy=False`` cannot be kept, or the cast changes values.
    """
    source = found.element
    if copy is False and target is not source:
        instead = "give dtype='native' or " if source.native is not None else ""
        raise ConversionError(
            f"{source.name} to {target.name} takes a copy and copy=False forbids it; "
            f"{instead}drop copy=False"
        )
    if found.mask is not None and casting == "same_value":
        recode(found.bits[~found.mask], source, target, casting)
        casting = "unsafe"  # what is hidden may change
    bits = recode(found.bits, source, target, casting)
    fresh = bits is not found.bits or found.memory is Memory.FRESH
    unmet = _unmet(bits, needs)
    copies = not fresh and (copy or (copy is None and found.memory is Memory.BORROWED))
    if not (fresh or copies or unmet or found.pin is None):
        held = found.pin()
        bits, fresh = (bits.copy(), True) if held is None else (held, False)
    if copy is False:
        if fresh or found.memory is Memory.UNKNOWN:
            unmet = "not known to be shared" if not fresh else "made by the conversion itself"
        if unmet is not None:
            raise ConversionError(
                f"copy=False asks for a view, but the values' memory is {unmet}; drop copy=False"
            )
        return bits
    if unmet is not None or copies:
        return bits.copy()
    # Foreign code that gave UNKNOWN memory may have given the source's own.
    return bits


def _unmet(bits: Array, needs: tuple[Need, ...]) -> str | None:
    """Name what keeps an array from being shared with a library."""
    if "writeable" in needs and not bits.flags.writeable:
        return "read-only"
    if "aligned" in needs and not _is_aligned(bits):
        return "not aligned to its elements"
    if "contiguous" in needs and not bits.flags.c_contiguous:
        return "not C-contiguous"
    if "forward" in needs and any(step < 0 or step % bits.itemsize for step in bits.strides):
        return "strided in a way that PyTorch lacks"
    return None


def _is_aligned(bits: Array) -> bool:
    """Tell whether vector instructions may load elements where they are.

    NumPy aligns complex numbers to their parts; PyTorch loads them whole.
    """
    if not bits.flags.aligned or bits.dtype.kind != "c":
        return bits.flags.aligned
    address: int = bits.__array_interface__["data"][0]
    return address % bits.itemsize == 0
