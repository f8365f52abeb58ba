"""Which route converts which type, and what it finds.

The route of a type is remembered on the first hit; registering clears that.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import threading
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from ovtensor.errors import ConversionError, InputError
from ovtensor.tensors.dtypes import BY_NAME, BY_NUMPY
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.tensors.known_types import OWN, PROTOCOLS, Entry, object_speaks, type_speaks
from ovtensor.tensors.route import QuickRoute, Route, self_description

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = [
    "Unwrap",
    "describe",
    "forget_types",
    "host",
    "quick_by_type",
    "read",
    "register_route",
    "route_for",
    "route_of",
]

ENTRY_POINTS = "ovtensor.routes"


@dataclasses.dataclass(frozen=True, slots=True)
class Unwrap:
    """A route made of one function that turns `x` into something that has a route already."""

    function: Callable[[Any], Any]

    def read(self, x: Any, /) -> HostArray:
        """Read what the function makes of `x`."""
        inner = self.function(x)
        if type(inner) is type(x):
            raise ConversionError(
                f"the route of {qualified_name(type(x))} gave the same type back; "
                "it has to return something simpler, such as a NumPy array"
            )
        found = host(read(inner))
        # Nobody but the function knows whether it made a view or a copy.
        return dataclasses.replace(found, memory=Memory.UNKNOWN)

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what the object tells about itself."""
        name = getattr(self.function, "__qualname__", repr(self.function))
        return self_description(x, name)


_registered: list[Entry] = []
_lock = threading.Lock()
# Read without the lock: one lookup in a dict is atomic.
_by_type: dict[type, Route] = {}
quick_by_type: dict[type, Callable[[Any], np.ndarray[Any, Any] | None]] = {}


def route_for(cls: type) -> Route | None:
    """Return the route of a type, or None if nothing is known about it.

    The nearest base class wins; among equals what was registered last, then a plug-in, then
    this library.
    """
    if (hit := _by_type.get(cls)) is not None:
        return hit
    with _lock:
        registered = tuple(_registered)
    best: tuple[int, Entry] | None = None
    for entry in (*registered, *_plug_ins(), *OWN):
        distance = entry.distance(cls)
        if distance is not None and (best is None or distance < best[0]):
            best = distance, entry
    if best is not None:
        route: Route | None = best[1].load()
    else:
        route = PROTOCOLS.load() if type_speaks(cls) else None
    with _lock:
        if route is not None and registered == tuple(_registered):
            if isinstance(route, QuickRoute):
                quick_by_type[cls] = route.quick
            _by_type[cls] = route
    return route


def forget_types() -> None:
    """Look every type up anew; what follows from the registered routes is cached, and only that."""
    _by_type.clear()
    quick_by_type.clear()


def route_of(x: Any) -> Route | None:
    """Return the route of an object: that of its type, or of a protocol that it alone speaks."""
    cls = type(x)
    route = _by_type.get(cls) or route_for(cls)
    return PROTOCOLS.load() if route is None and object_speaks(x) else route


def read(x: Any) -> np.ndarray[Any, Any] | HostArray:
    """Find the values of `x` through its route."""
    route = route_of(x)
    if route is not None:
        return route.read(x)
    if x is None:
        advice = "check what gave it"
    elif hasattr(type(x), "state_dict"):
        advice = "convert its weights with tree_to_numpy(x.state_dict())"
    elif isinstance(x, Mapping | Set) or dataclasses.is_dataclass(x):
        advice = "convert what it contains with tree_to_numpy"
    else:
        advice = "teach its type with ovtensor.register_route"
    raise ConversionError(f"{qualified_name(type(x))} is no tensor, array or number; {advice}")


def host(found: np.ndarray[Any, Any] | HostArray) -> HostArray:
    """Write out what a route says with a bare array."""
    if isinstance(found, HostArray):
        return found
    # A route gives bare arrays of numbers or text only, and text comes in any width.
    return HostArray(found, BY_NUMPY.get(found.dtype, BY_NAME["str"]), Memory.CALLER)


def describe(x: Any) -> TensorInfo:
    """Tell what is known about a tensor-like object, without reading its values.

    Parameters
    ----------
    x : object
        Anything; odd objects never make it raise.

    Returns
    -------
    TensorInfo
        Library, type, shape, dtype and device; whether there are values, and if not why; whether
        a conversion can be a view; which route it would take; who owns the memory.

    Examples
    --------
    >>> import numpy as np, ovtensor
    >>> info = ovtensor.describe(np.zeros((2, 3)))
    >>> info.library, info.shape, info.has_data, info.owner
    ('numpy', (2, 3), True, 'caller')
    """
    cls = type(x)
    try:
        route = route_of(x)
        if route is not None:
            return route.describe(x)
        reason = "nothing that is known here"
    except Exception as error:  # noqa: BLE001  an odd object may raise anything
        reason = f"it does not say: {type(error).__name__}: {error}"
    library = str(getattr(cls, "__module__", "")).partition(".")[0]
    return TensorInfo(library, qualified_name(cls), reason=reason)


def register_route(type_or_qualified_name: type | str, route: Route | Callable[[Any], Any]) -> None:
    """Teach the conversions a type; the latest registration of a type wins.

    A package does the same without being imported through an entry point of the group
    ``ovtensor.routes``, whose name is the type's qualified name.

    Parameters
    ----------
    type_or_qualified_name : type or str
        The type (its subclasses are served too), or its qualified name such as ``"jax.Array"``,
        which imports nothing.
    route : Route or callable
        A function that turns an object of the type into something that ovtensor converts
        already; or an object with the methods ``read`` and ``describe``, which can also say that
        memory is shared.

    Raises
    ------
    InputError
        If `route` is neither, or the name has no module.

    Examples
    --------
    >>> import numpy as np, ovtensor
    >>> class Celsius:
    ...     def __init__(self, degrees):
    ...         self.degrees = degrees
    >>> ovtensor.register_route(Celsius, lambda x: np.asarray(x.degrees))
    >>> ovtensor.to_numpy(Celsius([20.5, 21.0]))
    array([20.5, 21. ])
    """
    ready = _as_route(route)
    if isinstance(type_or_qualified_name, str):
        if "." not in type_or_qualified_name:
            raise InputError(f"{type_or_qualified_name!r} names no module: give 'package.Type'")
        entry = Entry(type_or_qualified_name, lambda: ready)
    elif isinstance(cls := type_or_qualified_name, type):
        entry = Entry(qualified_name(cls), lambda: ready, as_such=cls)
    else:
        raise InputError(f"{cls!r} is neither a type nor the qualified name of one")
    with _lock:
        _registered.insert(0, entry)
        forget_types()


def _as_route(route: Any) -> Route:
    if isinstance(route, Route):
        return route
    if callable(route):
        return Unwrap(route)
    raise InputError(
        f"{qualified_name(type(route))} is no route: give a function, "
        "or an object with the methods read and describe"
    )


@functools.cache
def _plug_ins() -> tuple[Entry, ...]:
    """List the plug-ins of installed packages by the types they serve; nothing is imported."""

    def entry(point: importlib.metadata.EntryPoint) -> Entry:
        return Entry(point.name, functools.cache(lambda: _as_route(point.load())))

    return tuple(entry(point) for point in importlib.metadata.entry_points(group=ENTRY_POINTS))
