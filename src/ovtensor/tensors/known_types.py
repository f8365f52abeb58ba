"""The types that are known here, by name: a row a type, and nothing is imported for it.

A framework's type can only be met once the framework has been imported, so names are looked up
in ``sys.modules``.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import TYPE_CHECKING

from ovtensor.tensors.host import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.tensors.route import Route

__all__ = ["OWN", "PROTOCOLS", "Entry", "object_speaks", "type_speaks"]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A type by its qualified name, and where its route is found once it is needed."""

    name: str
    load: Callable[[], Route]
    exact: bool = False  # serves no subclasses
    as_such: type | None = None  # where it may have no importable name

    def distance(self, cls: type) -> int | None:
        """Tell how far `cls` is derived from the type; None if it is not."""
        module, _, attribute = self.name.rpartition(".")
        base = self.as_such or getattr(sys.modules.get(module), attribute, None)
        if not isinstance(base, type) or not issubclass(cls, base):
            return None
        if self.exact and cls is not base:
            return None
        # A virtual base class (jax.Array is one) does not show in the order of resolution.
        return cls.__mro__.index(base) if base in cls.__mro__ else len(cls.__mro__)


def _own(route: str, *names: str, exact: bool = False) -> list[Entry]:
    def load() -> Route:
        module, _, attribute = route.partition(":")
        loaded = importlib.import_module(f"ovtensor.tensors.routes.{module}")
        found: Route = getattr(loaded, attribute or "ROUTE")
        return found

    return [Entry(name, load, exact) for name in names]


OWN = [
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
    *_own(
        "columns:PANDAS", "pandas.Series", "pandas.Index", "pandas.api.extensions.ExtensionArray"
    ),
    *_own("columns:PANDAS_TABLE", "pandas.DataFrame"),
    *_own("columns:ARROW", "pyarrow.Array", "pyarrow.ChunkedArray"),
    *_own("columns:ARROW_TABLE", "pyarrow.Table", "pyarrow.RecordBatch"),
    *_own("columns:POLARS", "polars.Series"),
    *_own("columns:POLARS_TABLE", "polars.DataFrame"),
    *_own("foreign:DASK", "dask.array.Array", "dask.dataframe.DataFrame", "dask.dataframe.Series"),
    *_own("foreign:SCIPY", "scipy.sparse.sparray", "scipy.sparse.spmatrix"),
    *_own("foreign:PILLOW", "PIL.Image.Image"),
    *_own("foreign:CUPY", "cupy.ndarray"),
    *_own("foreign:JAX", "jax.Array"),
    *_own("foreign:JAX_SPARSE", "jax.experimental.sparse.JAXSparse"),
    *_own("foreign:TENSORFLOW", "tensorflow.Tensor"),
    *_own("foreign:TF_SPARSE", "tensorflow.SparseTensor"),
    *_own("foreign:SYMBOLIC", "jax.core.Tracer", "keras.KerasTensor"),
    *_own("python_", "builtins.bool", "builtins.int", "builtins.float", "builtins.complex"),
    *_own("python_", "builtins.list", "builtins.tuple", "builtins.range", "collections.deque"),
    *_own("python_:FOUND", "ovtensor.tensors.host.HostArray"),
]
PROTOCOLS = _own("protocols", "any.type")[0]


_NAMES = ("__array_interface__", "__array__", "__dlpack__")


def type_speaks(cls: type) -> bool:
    """Tell whether a type has one of the array protocols, or the buffer protocol."""
    return not issubclass(cls, str) and (
        any(hasattr(cls, name) for name in _NAMES) or _has_buffer(cls)
    )


def object_speaks(x: object) -> bool:
    """Tell whether an object has one of the array protocols of its own, as NumPy asks for them."""
    if isinstance(x, type):
        return False
    try:
        return any(
            callable(found := getattr(x, name, None)) or isinstance(found, dict) for name in _NAMES
        )
    except Exception:  # noqa: BLE001  odd objects raise anything
        return False


def _has_buffer(cls: type) -> bool:
    if sys.version_info >= (3, 12):
        return hasattr(cls, "__buffer__")
    buffers = ("builtins.bytes", "builtins.bytearray", "builtins.memoryview", "array.array")
    return any(qualified_name(base) in (*buffers, "mmap.mmap") for base in cls.__mro__) or any(
        base.__module__ == "_ctypes" for base in cls.__mro__
    )
