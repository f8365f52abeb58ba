"""Columns and tables of pandas, Arrow and Polars, whose missing values NumPy has no room for.

Their own ``__array__`` makes floats of integers with gaps and of tables of several types, and
rounds the large ones. Here gaps are masked, and what would be rounded is refused.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ovtensor.errors import ConversionError
from ovtensor.tensors.host import HostArray, Memory, qualified_name
from ovtensor.tensors.registry import host, read
from ovtensor.tensors.routes.numpy_ import ROUTE as NUMPY
from ovtensor.tensors.routes.protocols import ProtocolRoute

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ARROW",
    "ARROW_TABLE",
    "PANDAS",
    "PANDAS_TABLE",
    "POLARS",
    "POLARS_TABLE",
]

# Values with anything in the gaps, and where those are; None where __array__ is right.
Filled: TypeAlias = "tuple[Any, Any] | None"


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnRoute(ProtocolRoute):
    """A column, by the function that fills its gaps."""

    fill: Callable[[Any], Filled]

    def read(self, x: Any, /) -> HostArray:
        """Mask the gaps, if there are any."""
        try:
            filled = self.fill(x)
        except Exception as error:
            ProtocolRoute.read(self, x)  # which refuses text and dates as what they are
            raise ConversionError(
                f"{self.describe(x)} has gaps, or values that are no plain numbers ({error}); "
                "fill the gaps or drop them first"
            ) from error
        if filled is None:
            return ProtocolRoute.read(self, x)
        values, gaps = (np.asarray(part) for part in filled)
        found = host(NUMPY.read(np.ma.MaskedArray(values, gaps) if gaps.any() else values))
        found.memory = Memory.UNKNOWN
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class TableRoute(ProtocolRoute):
    """A table, by the function that lists its columns; empty where ``__array__`` is right."""

    columns: Callable[[Any], Any]

    def read(self, x: Any, /) -> HostArray:
        """Bring the columns to one type that holds the values of all of them."""
        columns = list(self.columns(x))
        if not columns:
            return ProtocolRoute.read(self, x)
        try:
            found = host(read(columns))
        except ConversionError as error:
            raise type(error)(f"{qualified_name(type(x))}: {error}") from error
        mask = None if found.mask is None else found.mask.T
        return dataclasses.replace(found, bits=found.bits.T, mask=mask)


def _pandas(x: Any) -> Filled:
    if isinstance(x.dtype, np.dtype):  # where NaN is a value
        return None
    dtype, gaps = getattr(x.dtype, "numpy_dtype", None), np.asarray(x.isna())
    if dtype is not None and dtype.kind in "biuf":
        return x.to_numpy(dtype, na_value=dtype.type(0)), gaps
    if gaps.any() and x.dtype.kind != "f":
        raise TypeError(f"dtype {x.dtype}")
    return None


def _pandas_table(x: Any) -> list[Any]:
    dtypes = set(x.dtypes)
    if len(dtypes) <= 1 and all(isinstance(dtype, np.dtype) for dtype in dtypes):
        return []
    return [column for _, column in x.items()]


def _arrow(x: Any) -> Filled:
    if hasattr(x.type, "index_type") or hasattr(x.type, "run_end_type"):
        x = x.cast(x.type.value_type)  # dictionaries and runs have gaps of their own
    elif not x.null_count:
        return None
    return x.fill_null(False if x.type == "bool" else 0), x.is_null()


def _polars(x: Any) -> Filled:
    items = x
    while items.dtype.is_nested():
        items = items.explode()
    if not items.null_count():
        return None
    if items is not x:
        raise TypeError(f"dtype {x.dtype}")
    return x.fill_null(False if str(x.dtype) == "Boolean" else 0), x.is_null()


PANDAS, PANDAS_TABLE = ColumnRoute(_pandas), TableRoute(_pandas_table)
ARROW, ARROW_TABLE = ColumnRoute(_arrow), TableRoute(lambda x: x.columns)
POLARS, POLARS_TABLE = ColumnRoute(_polars), TableRoute(lambda x: x.get_columns())
