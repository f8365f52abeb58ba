"""Floating-point formats that NumPy lacks: exact decoding, and encoding rounded to nearest even.

Every value of such a format is a float32. Formats of eight bits and fewer are small enough to
write all their values down, so decoding is a table and encoding a search in it.

The formats are those of the Open Compute Project (OFP8 and MX, 2023), their ``fnuz`` variants of
Noune et al. (arXiv:2206.02915), and NormalFloat4 of Dettmers et al. (arXiv:2305.14314, appendix E).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ovtensor.errors import ConversionError

if TYPE_CHECKING:
    from ovtensor.tensors.dtypes import ElementType

__all__ = ["decode", "encode"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_HALF = np.uint32(16)  # bits


def decode(bits: Array, element: ElementType) -> Array:
    """Turn carriers into float32 values, exactly, in new memory."""
    if element.name != "bfloat16":
        values: Array = np.asarray(_values(element)[bits])  # not a scalar
        return values
    # A bfloat16 is the upper half of a float32. Widening within the shift keeps to the cache.
    words = np.left_shift(bits, _HALF, dtype=np.uint32)
    wide: Array = np.asarray(words).view(np.float32)
    return wide


def encode(values: Array, element: ElementType) -> Array:
    """Round float values to the nearest of the format, ties to even; new memory.

    What is out of range becomes infinity where the format has one, else NaN where it has that,
    else the largest value.
    """
    if element.name == "bfloat16":
        return _encode_bfloat16(values)
    table = _values(element)
    sorted_values, codes, middles = _search(element)
    wide = values.astype(np.float64)
    index = np.searchsorted(middles, wide)  # NaN sorts last
    tie = np.append(middles, np.inf)[index] == wide
    # Powers of two have no even neighbour to prefer; hardware rounds their ties up.
    upward = (codes[index] % 2 == 1) | (element.name == "float8_e8m0fnu")
    out = codes[index + (tie & upward & (index < len(middles)))]
    half_step = (sorted_values[-1] - sorted_values[-2]) / 2
    over = (np.abs(wide) > sorted_values[-1] + half_step) | (
        # an odd largest code would round up to what comes after it
        (np.abs(wide) == sorted_values[-1] + half_step) & (codes[-1] % 2 == 1)
    )
    if element.name == "float8_e8m0fnu":
        over |= wide <= 0
    special = np.isnan(table)
    if special.any():
        out = np.where(over | np.isnan(wide), np.flatnonzero(special)[0], out)
    if np.isposinf(table).any():
        out = np.where(over, np.flatnonzero(np.isposinf(table))[0], out)
    sign = _sign_bit(element)
    if sign:
        out = np.where(np.signbit(wide) & (over | (table[out] == 0)), out | sign, out)
    encoded: Array = np.asarray(out, element.carrier)
    return encoded


def _encode_bfloat16(values: Array) -> Array:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    bits = single.view(np.uint32).copy()
    if values.dtype.itemsize > single.itemsize:
        # Rounding twice would be wrong on ties: truncate, then keep inexactness in the last bit.
        wide = single.astype(values.dtype)
        inexact = np.isfinite(values) & (wide != values)
        bits -= (inexact & (np.abs(wide) > np.abs(values))).astype(np.uint32)
        bits |= inexact.astype(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


@functools.cache
def _values(element: ElementType) -> Array:
    """Every value of a format, by its code."""
    if element.name == "nf4":
        return np.array(_NF4, np.float32)
    if element.name == "float8_e8m0fnu":
        return np.append(np.ldexp(np.ones(255), np.arange(-127, 128)), np.nan).astype(np.float32)
    if element.layout is None:
        raise ConversionError(
            f"the layout of {element.name} is not known, so its values cannot be told or rounded "
            "to; keep its bits with dtype='native', or view it as an integer type first"
        )
    exponent_bits, mantissa_bits, bias, kind = element.layout
    code = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    significand = np.where(exponent == 0, 0, 1 << mantissa_bits) + mantissa
    values = np.ldexp(
        significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits
    )
    top = exponent == (1 << exponent_bits) - 1
    if kind == "ieee":
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    elif kind == "fn":
        values[top & (mantissa == (1 << mantissa_bits) - 1)] = np.nan
    negative = code >= len(code) // 2
    values[negative] *= -1
    if kind == "fnuz":
        values[len(code) // 2] = np.nan
    table: Array = values.astype(np.float32)
    return table


@functools.cache
def _search(element: ElementType) -> tuple[Array, Array, Array]:
    """Return the finite values in order, their codes, and the points half-way between them."""
    table = _values(element).astype(np.float64)
    finite = np.flatnonzero(np.isfinite(table))
    values, first = np.unique(table[finite], return_index=True)  # +0 comes before -0
    codes = finite[first].astype(element.carrier)
    return values, codes, (values[1:] + values[:-1]) / 2


def _sign_bit(element: ElementType) -> int:
    """Return the bit that turns zero, infinity and NaN negative; 0 if the format has no such."""
    if element.layout is None or element.layout[3] == "fnuz":
        return 0
    return len(_values(element)) // 2
