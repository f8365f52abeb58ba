"""Elements narrower than a byte, as OpenVINO packs them: several to a byte, or across three.

Bit order (OpenVINO's element iterator): u1 highest bit first; u2, u4, i4, nf4 and f4e2m1 lowest
bits first; u3 and u6 in groups of three bytes, the low bits in the first two, the high bits of the
same values in the third, earlier values in higher bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ovtensor.errors import ConversionError

if TYPE_CHECKING:
    from ovtensor.tensors.dtypes import ElementType

__all__ = ["pack", "packed_size", "sign_extended", "unpack"]

Array: TypeAlias = "np.ndarray[Any, Any]"

# bits a value has in the first two bytes of a group of three, and in the third
_SPLIT = {3: (2, 1), 6: (4, 2)}


def packed_size(count: int, bits: int) -> int:
    """Tell how many bytes `count` packed elements take."""
    if bits in _SPLIT:
        return 3 * math.ceil(count / (24 // bits))
    return math.ceil(count * bits / 8)


def unpack(packed: Array, shape: tuple[int, ...], element: ElementType) -> Array:
    """Spread packed bytes to one carrier a value, in `shape`."""
    raw, bits = packed.reshape(-1).view(np.uint8), _known_bits(element)
    count = math.prod(shape)
    raw = raw[: packed_size(count, bits)]
    if bits == 1:
        values = np.unpackbits(raw)
    elif bits in _SPLIT:
        low, high = _SPLIT[bits]
        group = raw.reshape(-1, 3)
        values = _spread(group[:, :2], low, highest_first=True)
        values |= _spread(group[:, 2:], high, highest_first=True) << low
    else:
        values = _spread(raw.reshape(1, -1), bits)
    values = values.reshape(-1)[:count].reshape(shape)
    return np.asarray(sign_extended(values, element))


def pack(values: Array, element: ElementType) -> Array:
    """Squeeze one carrier a value into packed bytes: the inverse of `unpack`."""
    bits = _known_bits(element)
    codes = values.reshape(-1).astype(np.uint8) & ((1 << bits) - 1)
    if bits == 1:
        return np.packbits(codes)
    filled = np.zeros(packed_size(codes.size, bits) * 8 // bits, np.uint8)
    filled[: codes.size] = codes
    if bits not in _SPLIT:
        return _squeeze(filled.reshape(1, -1), bits).reshape(-1)
    low, high = _SPLIT[bits]
    group = filled.reshape(-1, 24 // bits)
    lows = _squeeze(group & ((1 << low) - 1), low, highest_first=True)
    highs = _squeeze(group >> low, high, highest_first=True)
    return np.concatenate((lows, highs), axis=1).reshape(-1)


def sign_extended(codes: Array, element: ElementType) -> Array:
    """Make the carriers of an integer type from its lowest bits."""
    if element.carrier.kind == "i":
        sign = 1 << (element.bits - 1)
        codes = (codes.astype(np.int64) ^ sign) - sign
    return codes.astype(element.carrier)


def _known_bits(element: ElementType) -> int:
    if 8 % element.bits and element.bits not in _SPLIT:
        raise ConversionError(
            f"how elements of {element.name} are packed is not known: {element.bits} bits each; "
            "give a dtype of whole bytes, such as float32"
        )
    return element.bits


def _shifts(bits: int, highest_first: bool) -> Array:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return shifts[::-1] if highest_first else shifts


def _spread(rows: Array, bits: int, *, highest_first: bool = False) -> Array:
    parts = (rows[..., None] >> _shifts(bits, highest_first)) & np.uint8((1 << bits) - 1)
    return parts.reshape(rows.shape[0], rows.shape[1] * (8 // bits))


def _squeeze(rows: Array, bits: int, *, highest_first: bool = False) -> Array:
    parts = rows.reshape(rows.shape[0], rows.shape[1] * bits // 8, 8 // bits)
    squeezed: Array = np.bitwise_or.reduce(parts << _shifts(bits, highest_first), axis=-1)
    return squeezed
