"""What a route is: how the tensors of one library are read, and what they tell about themselves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ovtensor.tensors.host import HostArray, Memory, TensorInfo, qualified_name

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QuickRoute", "Route", "self_description"]


@runtime_checkable
class Route(Protocol):
    """How the tensors of one library are read. Routes hold no state: threads share them."""

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        """Find the values of `x` in host memory, as a view wherever there can be one.

        A bare array says: these are the values, in memory that the caller owns. Everything else
        is said with a `HostArray`.
        """

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what is known about `x` without reading its values."""


@runtime_checkable
class QuickRoute(Route, Protocol):
    """A route that has a fast path for the call that asks for nothing but an array."""

    def quick(self, x: Any, /) -> np.ndarray[Any, Any] | None:
        """Give what ``to_numpy(x)`` shall return, or None if anything about `x` is special."""


def self_description(x: Any, route: str) -> TensorInfo:
    """Collect what a foreign object tells about itself; its attributes may raise anything."""
    told: dict[str, Any] = {}
    for name, form in (("shape", tuple), ("dtype", str), ("device", str)):
        with contextlib.suppress(Exception):
            told[name] = form(getattr(x, name))
    return TensorInfo(
        library=type(x).__module__.partition(".")[0],
        type=qualified_name(type(x)),
        has_data=True,
        route=route,
        owner=Memory.UNKNOWN.value,
        **told,
    )
