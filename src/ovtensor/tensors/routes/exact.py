"""Python's numbers as one array, none of which NumPy rounds to have them in one."""

from __future__ import annotations

from collections import defaultdict
from numbers import Number
from typing import Any

import numpy as np

from ovtensor.errors import ConversionError
from ovtensor.tensors.cast import promote
from ovtensor.tensors.dtypes import BY_NUMPY
from ovtensor.tensors.host import qualified_name

__all__ = ["exact_numbers", "foreign_type"]


def foreign_type(items: Any) -> type | None:
    """Return the type of an item that is no number; None if all are."""
    kinds = set(map(type, items))
    return next((kind for kind in kinds if not issubclass(kind, Number | np.bool_)), None)


def exact_numbers(items: list[Any], source: Any) -> np.ndarray[Any, Any]:
    """Make an array of one dimension of numbers that may be of several types.

    NumPy would make floats of integers beside floats, and of those that no integer type holds
    all of.

    Raises
    ------
    ConversionError
        If no type holds all of them exactly.
    """
    if len(set(map(type, items))) <= 1:
        return _alike(items, source)
    places: dict[type, list[int]] = defaultdict(list)
    for place, kind in enumerate(map(type, items)):
        places[kind].append(place)
    try:
        parts, element = promote(
            [_alike([items[place] for place in group], source) for group in places.values()]
        )
    except ConversionError as error:
        raise ConversionError(f"{qualified_name(type(source))}: {error}") from error
    out = np.empty(len(items), element.carrier)
    for part, group in zip(parts, places.values(), strict=True):
        out[group] = part
    return out


def _alike(items: list[Any], source: Any) -> np.ndarray[Any, Any]:
    """Make an array of numbers of one type."""
    values = np.array(items)
    whole = bool(items) and isinstance(items[0], int)
    if whole and values.dtype.kind == "f" and min(items) >= -(1 << 63) and max(items) < 1 << 64:
        # NumPy's answer to integers beyond int64, even if none is negative
        large = np.array([item for item in items if item >= 0], np.uint64)
        if large.size == len(items):
            return large
        promote([large, np.array([item for item in items if item < 0], np.int64)])
    elif values.dtype not in BY_NUMPY or (whole and values.dtype.kind == "f"):
        what = "an integer beyond 64 bits" if whole else f"a {qualified_name(type(items[0]))}"
        raise ConversionError(
            f"{qualified_name(type(source))} holds {what}, which no array has; "
            "convert its items one by one"
        )
    return values
