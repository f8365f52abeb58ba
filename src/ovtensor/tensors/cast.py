"""Casts that keep values: rounding to a narrower float is allowed, anything worse is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ovtensor.errors import ConversionError, InputError
from ovtensor.tensors.dtypes import BY_NUMPY
from ovtensor.tensors.host import NoNumbersError
from ovtensor.tensors.narrow import decode, encode
from ovtensor.tensors.packed import sign_extended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovtensor.tensors.dtypes import ElementType

__all__ = ["check_casting", "promote", "recode", "widen"]

Array: TypeAlias = "np.ndarray[Any, Any]"


def check_casting(casting: str) -> None:
    """Refuse an unknown rule before any work is done."""
    if casting not in ("same_value", "unsafe"):
        raise InputError(f"casting={casting!r}: give 'same_value' or 'unsafe'")


def widen(bits: Array, element: ElementType) -> Array:
    """Return the values that carriers stand for; `bits` itself where those are the values."""
    if element.numpy is not None or element.integral:
        return bits
    return decode(bits, element)


def promote(arrays: Sequence[Array]) -> tuple[list[Array], ElementType]:
    """Bring arrays of numbers to the type that NumPy promotes theirs to.

    Raises
    ------
    ConversionError
        If that type cannot hold a value of them, or there is text among numbers.
    """
    target = BY_NUMPY.get(np.result_type(*(array.dtype for array in arrays)))
    if target is None:
        raise ConversionError("there is text beside numbers; convert them one by one")
    return [recode(a, BY_NUMPY[a.dtype], target, "same_value") for a in arrays], target


def recode(bits: Array, source: ElementType, target: ElementType, casting: str) -> Array:
    """Carry values from one element type to another, as carriers.

    Raises
    ------
    ConversionError
        If a value changes by more than the rounding of a float to a narrower float: overflow,
        a fraction, NaN or infinity to an integer, an integer that the float cannot hold, an
        imaginary part. Not with ``casting="unsafe"``.
    """
    if source is target:
        return bits
    values = widen(bits, source)
    checked = casting == "same_value"
    if (values.dtype.kind == "U") != (target.name == "str"):
        error = NoNumbersError if source.name == "str" else ConversionError
        raise error(f"{source.name} was given and {target.name} wanted: not both numbers")
    with np.errstate(all="ignore"):
        if values.dtype.kind == "c" and target.carrier.kind != "c":
            _demand(not checked or not values.imag.any(), source, target, "an imaginary part")
            values = values.real
        if target.numpy is not None:
            out = values.astype(target.numpy, copy=False)
            back = out
        elif target.integral:
            out = np.asarray(_narrow_integers(values, target))
            back = out
        else:
            exact = values if values.dtype.kind == "f" else values.astype(np.float64)
            out = encode(exact, target)
            back = decode(out, target)
        if checked and out is not values:
            _demand_same(values, back, source, target)
    return out


def _narrow_integers(values: Array, target: ElementType) -> Array:
    """Keep the lowest bits of integers, as a C cast does."""
    return sign_extended(values.astype(np.int64) & ((1 << target.bits) - 1), target)


def _demand(holds: bool, source: ElementType, target: ElementType, what: str) -> None:
    if not holds:
        raise ConversionError(
            f"casting {source.name} to {target.name} would change values: {what}; "
            "give casting='unsafe' if that is wanted"
        )


def _demand_same(values: Array, out: Array, source: ElementType, target: ElementType) -> None:
    if target.numpy is not None and np.can_cast(values.dtype, out.dtype, "safe"):
        exact = values.dtype.kind in "fcb" or out.dtype.kind not in "fc"
        if exact or values.dtype.itemsize < out.real.dtype.itemsize:
            return
    if values.dtype.kind != "c" and out.dtype.kind == "c":
        out = out.real
    kinds = values.dtype.kind, out.dtype.kind
    if kinds[0] in "fc" and kinds[1] in "fc":
        changed = np.isfinite(values) != np.isfinite(out)
        changed |= np.isnan(values) != np.isnan(out)
    elif kinds[0] == "f":
        # The bound first: what a C cast makes of a float out of range depends on the machine.
        low, high = _limits(out.dtype)
        changed = ~((values >= low) & (values < high)) | (out != values)
    elif kinds[1] == "f":
        low, high = _limits(values.dtype)
        wide = out.astype(np.float64)
        back = np.where((wide >= low) & (wide < high), wide, 0).astype(values.dtype)
        changed = ~np.isfinite(wide) | (back != values)
    else:
        changed = out != values
    if changed.any():
        example = values[changed].ravel()[0]
        _demand(False, source, target, f"{example} among them")


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the least integer of a type and the first one beyond it; floats hold both exactly."""
    if dtype.kind == "b":
        return 0.0, 2.0
    return float(np.iinfo(dtype).min), float(int(np.iinfo(dtype).max) + 1)
