"""Python numbers, and nested lists of numbers or tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovtensor.errors import ConversionError
from ovtensor.tensors.cast import promote, widen
from ovtensor.tensors.dtypes import BY_NUMPY
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.tensors.registry import host, read
from ovtensor.tensors.routes.exact import exact_numbers, foreign_type

__all__ = ["FOUND", "ROUTE"]

_NUMBERS = (bool, int, float, complex)


class PythonRoute:
    """Numbers become arrays of no dimension; a list stacks what its items become."""

    def read(self, x: Any, /) -> HostArray:
        """Build the array; equal element types are kept, others are promoted if that is exact."""
        if isinstance(x, _NUMBERS):
            values = exact_numbers([x], x).reshape(())
        elif foreign_type(x) is None:
            values = exact_numbers(list(x), x)
        else:
            return _stack([host(read(item)) for item in x], x)
        return HostArray(values, BY_NUMPY[values.dtype], Memory.FRESH)

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell the type; what a list holds is only known once it is read."""
        return TensorInfo(
            library="builtins",
            type=qualified_name(type(x)),
            shape=() if isinstance(x, _NUMBERS) else None,
            dtype=type(x).__name__ if isinstance(x, _NUMBERS) else None,
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


def _stack(items: list[HostArray], source: Any) -> HostArray:
    shapes = {item.bits.shape for item in items}
    if len(shapes) > 1:
        raise ConversionError(
            f"{ROUTE.describe(source)} is ragged: its items have the shapes {sorted(shapes)}; "
            "pad them, or keep them apart with tree_to_numpy"
        )
    element, parts = items[0].element, [item.bits for item in items]
    if any(item.element is not element for item in items):
        parts, element = promote([widen(item.bits, item.element) for item in items])
    mask = None
    if any(item.mask is not None for item in items):
        empty = np.zeros(parts[0].shape, bool)
        mask = np.stack([empty if item.mask is None else item.mask for item in items])
    return HostArray(np.stack(parts), element, Memory.FRESH, mask)


ROUTE, FOUND = PythonRoute(), FoundRoute()
