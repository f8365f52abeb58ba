"""Python numbers, and nested lists of numbers or tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovtensor.errors import ConversionError
from ovtensor.tensors.cast import recode, widen
from ovtensor.tensors.dtypes import BY_NUMPY
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.tensors.registry import host, read

__all__ = ["FOUND", "ROUTE"]

_NUMBERS = (bool, int, float, complex)


class PythonRoute:
    """Numbers become arrays of no dimension; a list stacks what its items become."""

    def read(self, x: Any, /) -> HostArray:
        """Build the array; equal element types are kept, others are promoted if that is exact."""
        if not isinstance(x, list | tuple):
            return _fresh(np.asarray(x), x)
        if (numbers := _uniform(x)) is not None:
            return _fresh(numbers, x)
        return _stack([host(read(item)) for item in x], x)

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell the type; what a list holds is only known once it is read."""
        return TensorInfo(
            library="builtins",
            type=qualified_name(type(x)),
            shape=None if isinstance(x, list | tuple) else (),
            dtype=None if isinstance(x, list | tuple) else type(x).__name__,
            device="cpu",
            has_data=True,
            route="python",
            owner=Memory.FRESH.value,
        )


class FoundRoute:
    """What a route found already: results that only make sense together with their port."""

    def read(self, x: HostArray, /) -> HostArray:
        """Pass it on."""
        return x

    def describe(self, x: HostArray, /) -> TensorInfo:
        """Tell what was found."""
        return TensorInfo(
            library="ovtensor",
            type=qualified_name(type(x)),
            shape=x.bits.shape,
            dtype=x.element.name,
            device="cpu",
            has_data=True,
            route="found",
            owner=x.memory.value,
        )


def _fresh(array: np.ndarray[Any, Any], source: Any) -> HostArray:
    if array.dtype not in BY_NUMPY:
        raise ConversionError(f"{ROUTE.describe(source)}: an integer beyond 64 bits has no array")
    return HostArray(array, BY_NUMPY[array.dtype], Memory.FRESH)


def _uniform(x: Any) -> np.ndarray[Any, Any] | None:
    """Convert a flat list of one type of number in one go; None for anything else.

    NumPy would make floats of integers that no integer type holds all of, and text of a string
    among numbers.
    """
    kinds = set(map(type, x))
    if len(kinds) > 1 or not kinds <= set(_NUMBERS):
        return None
    array = np.array(x)
    return None if kinds == {int} and array.dtype.kind not in "iu" else array


def _stack(items: list[HostArray], source: Any) -> HostArray:
    shapes = {item.bits.shape for item in items}
    if len(shapes) > 1:
        raise ConversionError(
            f"{ROUTE.describe(source)} is ragged: its items have the shapes {sorted(shapes)}; "
            "pad them, or keep them apart with tree_to_numpy"
        )
    element = items[0].element
    if any(item.element is not element for item in items):
        wide = [widen(item.bits, item.element) for item in items]
        promoted = np.result_type(*(array.dtype for array in wide))
        target = BY_NUMPY.get(promoted)
        if target is None:
            raise ConversionError(
                f"{ROUTE.describe(source)} holds text beside numbers; convert them one by one"
            )
        parts = [recode(a, BY_NUMPY[a.dtype], target, "same_value") for a in wide]
        element = target
    else:
        parts = [item.bits for item in items]
    mask = None
    if any(item.mask is not None for item in items):
        empty = np.zeros(parts[0].shape, bool)
        mask = np.stack([empty if item.mask is None else item.mask for item in items])
    return HostArray(np.stack(parts), element, Memory.FRESH, mask)


ROUTE, FOUND = PythonRoute(), FoundRoute()
