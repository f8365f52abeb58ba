"""Which route converts which type, without importing anybody's library.

A framework's type can only be met once the framework has been imported, so names are looked up
in ``sys.modules``. The route of a type is remembered on the first hit; registering clears that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ovtensor.errors import ConversionError, InputError
from ovtensor.tensors.dtypes import BY_NAME, BY_NUMPY
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = [
    "QuickRoute",
    "Route",
    "Unwrap",
    "forget_types",
    "host",
    "quick_by_type",
    "read",
    "register_route",
    "route_for",
    "self_description",
]

ENTRY_POINTS = "ovtensor.routes"


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
    """A route that has a short way for the call which asks for nothing but an array."""

    def quick(self, x: Any, /) -> np.ndarray[Any, Any] | None:
        """Give what ``to_numpy(x)`` shall return, or None if anything about `x` is special."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A type by its qualified name, and where its route is found once it is needed."""

    name: str
    load: Callable[[], Route]
    exact: bool = False  # serves no subclasses

    def distance(self, cls: type) -> int | None:
        """Tell how far `cls` is derived from the type; None if it is not."""
        module, _, attr = self.name.rpartition(".")
        base = getattr(sys.modules.get(module), attr, None)
        if not isinstance(base, type) or not issubclass(cls, base):
            return None
        if self.exact and cls is not base:
            return None
        # A virtual base class (jax.Array is one) does not show in the order of resolution.
        return cls.__mro__.index(base) if base in cls.__mro__ else len(cls.__mro__)


def _own(route: str, *names: str, exact: bool = False) -> list[_Entry]:
    def load() -> Route:
        module, _, attribute = route.partition(":")
        loaded = importlib.import_module(f"ovtensor.tensors.routes.{module}")
        found: Route = getattr(loaded, attribute or "ROUTE")
        return found

    return [_Entry(name, load, exact) for name in names]


_OWN = [
    *_own("torch_:PLAIN", "torch.Tensor", exact=True),
    *_own("torch_:PARAMETER", "torch.nn.Parameter", exact=True),
    *_own("torch_", "torch.Tensor"),
    *_own("foreign:PROXY", "torch.fx.proxy.Proxy"),
    *_own("openvino_", "openvino.Tensor"),
    *_own("openvino_objects", "openvino._pyopenvino.RemoteTensor"),
    *_own("openvino_objects", "openvino._pyopenvino.Node", "openvino._pyopenvino.Output"),
    *_own("openvino_objects", "openvino._pyopenvino.ConstOutput", "openvino._pyopenvino.Input"),
    *_own("openvino_objects", "openvino._pyopenvino.InferRequest", "openvino._pyopenvino.Model"),
    *_own("openvino_objects", "openvino._pyopenvino.CompiledModel", "openvino.Model"),
    *_own("openvino_objects", "openvino.utils.data_helpers.wrappers.OVDict"),
    *_own("numpy_", "numpy.ndarray", "numpy.generic"),
    *_own("foreign:SCIPY", "scipy.sparse.sparray", "scipy.sparse.spmatrix"),
    *_own("foreign:PILLOW", "PIL.Image.Image"),
    *_own("foreign:CUPY", "cupy.ndarray"),
    *_own("foreign:JAX", "jax.Array"),
    *_own("foreign:JAX_SPARSE", "jax.experimental.sparse.JAXSparse"),
    *_own("foreign:TENSORFLOW", "tensorflow.Tensor"),
    *_own("foreign:TF_SPARSE", "tensorflow.SparseTensor"),
    *_own("foreign:SYMBOLIC", "jax.core.Tracer", "keras.KerasTensor"),
    *_own("python_", "builtins.bool", "builtins.int", "builtins.float", "builtins.complex"),
    *_own("python_", "builtins.list", "builtins.tuple"),
    *_own("python_:FOUND", "ovtensor.tensors.host.HostArray"),
]
_PROTOCOLS = _own("protocols", "any.type")[0]
_registered: list[_Entry] = []
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
    best: tuple[int, _Entry] | None = None
    for entry in (*registered, *_plug_ins(), *_OWN):
        distance = entry.distance(cls)
        if distance is not None and (best is None or distance < best[0]):
            best = distance, entry
    route = best[1].load() if best else _protocol_route(cls)
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


def read(x: Any) -> np.ndarray[Any, Any] | HostArray:
    """Find the values of `x` through the route of its type."""
    cls = type(x)
    route = _by_type.get(cls) or route_for(cls)
    if route is None:
        raise ConversionError(
            f"{qualified_name(cls)} is no tensor, array or number; "
            "teach a type with ovtensor.register_route, convert a container with tree_to_numpy"
        )
    return route.read(x)


def host(found: np.ndarray[Any, Any] | HostArray) -> HostArray:
    """Write out what a route says with a bare array."""
    if isinstance(found, HostArray):
        return found
    # A route gives bare arrays of numbers or text only, and text comes in any width.
    return HostArray(found, BY_NUMPY.get(found.dtype, BY_NAME["str"]), Memory.CALLER)


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
        entry = _Entry(type_or_qualified_name, lambda: ready)
    else:
        entry = _TypeEntry(type_or_qualified_name, lambda: ready)
    with _lock:
        _registered.insert(0, entry)
        forget_types()


class _TypeEntry(_Entry):
    """A type given as such: it may have no importable name."""

    __slots__ = ("cls",)

    def __init__(self, cls: type, load: Callable[[], Route]) -> None:
        super().__init__(qualified_name(cls), load)
        object.__setattr__(self, "cls", cls)

    def distance(self, cls: type) -> int | None:
        base: type = self.cls  # type: ignore[attr-defined]
        if not issubclass(cls, base):
            return None
        return cls.__mro__.index(base) if base in cls.__mro__ else len(cls.__mro__)


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
def _plug_ins() -> tuple[_Entry, ...]:
    """List the plug-ins of installed packages by the types they serve; nothing is imported."""

    def entry(point: importlib.metadata.EntryPoint) -> _Entry:
        return _Entry(point.name, functools.cache(lambda: _as_route(point.load())))

    return tuple(entry(point) for point in importlib.metadata.entry_points(group=ENTRY_POINTS))


def _protocol_route(cls: type) -> Route | None:
    protocols = ("__array_interface__", "__array__", "__dlpack__")
    if issubclass(cls, str) or not (
        any(hasattr(cls, name) for name in protocols) or _has_buffer(cls)
    ):
        return None
    return _PROTOCOLS.load()


def _has_buffer(cls: type) -> bool:
    if sys.version_info >= (3, 12):
        return hasattr(cls, "__buffer__")
    buffers = ("builtins.bytes", "builtins.bytearray", "builtins.memoryview", "array.array")
    return any(qualified_name(base) in (*buffers, "mmap.mmap") for base in cls.__mro__) or any(
        base.__module__ == "_ctypes" for base in cls.__mro__
    )
