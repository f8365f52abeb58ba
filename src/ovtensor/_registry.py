"""Which route converts which type, without importing anybody's library.

A framework's type can only be met once the framework has been imported, so names are looked up
in ``sys.modules``. The route of a type is remembered on the first hit; registering clears that.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ovtensor._host import HostArray, TensorInfo

__all__ = ["Route", "by_type", "register_route", "route_for"]


class Route(Protocol):
    """How the tensors of one library are read. Routes hold no state: threads share them."""

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        """Find the values of `x` in host memory, as a view wherever there can be one.

        A bare array says: these are the values, in memory that the caller owns. Everything else
        is said with a `HostArray`.
        """

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what is known about `x` without reading its values."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A type by its qualified name, and where its route is found once it is needed."""

    module: str
    attr: str
    load: Callable[[], Route]

    def serves(self, cls: type) -> bool:
        base: Any = sys.modules.get(self.module)
        for part in self.attr.split("."):
            base = getattr(base, part, None)
        return isinstance(base, type) and issubclass(cls, base)


def _own(module: str, attr: str, route: str) -> _Entry:
    def load() -> Route:
        loaded: Route = importlib.import_module(f"ovtensor._routes.{route}").ROUTE
        return loaded

    return _Entry(module, attr, load)


_OWN = (
    _own("torch", "Tensor", "torch_"),
    _own("openvino", "Tensor", "openvino_"),
    _own("numpy", "ndarray", "numpy_"),
    _own("numpy", "generic", "numpy_"),
)
_registered: list[_Entry] = []
_lock = threading.Lock()
# Read without the lock: a dict's get and setdefault are atomic, and a late entry is only slower.
by_type: dict[type, Route] = {}


def route_for(cls: type) -> Route | None:
    """Return the route of a type, or None if nothing is known about it."""
    if (hit := by_type.get(cls)) is not None:
        return hit
    for entry in (*_registered, *_OWN):
        if entry.serves(cls):
            with _lock:
                return by_type.setdefault(cls, entry.load())
    return None


def register_route(type_or_name: type | str, route: Route) -> None:
    """Teach the conversions a type; the latest registration of a type wins.

    Parameters
    ----------
    type_or_name : type or str
        The type (its subclasses are served too), or its qualified name such as ``"jax.Array"``,
        which imports nothing.
    route : Route
        Object with the methods ``read`` and ``describe``.
    """
    if isinstance(type_or_name, str):
        module, _, attr = type_or_name.rpartition(".")
    else:
        module, attr = type_or_name.__module__, type_or_name.__qualname__
    with _lock:
        _registered.insert(0, _Entry(module, attr, lambda: route))
        by_type.clear()
