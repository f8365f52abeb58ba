"""Libraries that one call or one question of their own is enough for."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ovtensor.errors import ConversionError, DatalessTensorError
from ovtensor.tensors.host import NoNumbersError, TensorInfo, qualified_name
from ovtensor.tensors.registry import Unwrap
from ovtensor.tensors.route import self_description
from ovtensor.tensors.routes.protocols import ProtocolRoute

if TYPE_CHECKING:
    from ovtensor.tensors.host import HostArray

__all__ = [
    "CUPY",
    "DASK",
    "JAX",
    "JAX_SPARSE",
    "PILLOW",
    "PROXY",
    "SCIPY",
    "SYMBOLIC",
    "TENSORFLOW",
    "TF_SPARSE",
]


def dense(x: Any) -> Any:
    """Write out the zeros of a SciPy sparse matrix or array."""
    return np.asarray(x.toarray())


def dense_jax(x: Any) -> Any:
    """Write out the zeros of a sparse JAX array."""
    return x.todense()


def dense_tensorflow(x: Any) -> Any:
    """Write out the zeros of a ``tf.SparseTensor``, in whatever order its values are."""
    sparse = sys.modules["tensorflow"].sparse
    return sparse.to_dense(sparse.reorder(x))


def pixels(x: Any) -> Any:
    """Take a copy of a picture's pixels: ``(height, width)`` or ``(height, width, bands)``."""
    return np.asarray(x)


def to_host(x: Any) -> Any:
    """Copy a CuPy array from its device; CuPy refuses to do that implicitly."""
    return x.get()


def computed(x: Any) -> Any:
    """Compute a lazy collection; what comes may have a mask, which ``__array__`` drops."""
    return x.compute()


class SymbolicRoute:
    """What stands for values while a function is traced or a model is built."""

    def read(self, x: Any, /) -> HostArray:
        """Refuse."""
        raise DatalessTensorError(
            f"{self.describe(x)} has no values: it stands for some while a function is traced or a "
            "model is built; convert outside of that"
        )

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell the shape and dtype that values would have."""
        told = self_description(x, "symbolic")
        return dataclasses.replace(told, has_data=False, reason="it stands for values only")


class ProxyRoute(SymbolicRoute):
    """``torch.fx.Proxy``, which records what it is asked for."""

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what can be told without asking it."""
        reason = "it stands for values only"
        return TensorInfo("torch", qualified_name(type(x)), reason=reason, route="symbolic")


class JaxRoute(ProtocolRoute):
    """``jax.Array``, whose memory may have been given away."""

    def why_dataless(self, x: Any, /) -> str | None:
        """Ask whether the memory is still there."""
        if not x.is_deleted():
            return None
        return "it was deleted, or donated to a compiled function; keep a copy of it before"


class TensorflowRoute(ProtocolRoute):
    """``tf.Tensor``: its ``__dlpack__`` ends the process where there is no plain memory."""

    def read(self, x: Any, /) -> HostArray:
        """Refuse text and handles before TensorFlow is asked for them."""
        if x.dtype.name in ("string", "resource", "variant"):
            raise NoNumbersError(
                f"{self.describe(x)} holds no numbers; "
                "decode its items one by one, such as with x.numpy()"
            )
        if x.dtype.is_quantized:
            raise ConversionError(
                f"{self.describe(x)} holds codes, and their range is in two other tensors; "
                "pass tf.quantization.dequantize(x, min_range, max_range)"
            )
        return super().read(x)

    def why_dataless(self, x: Any, /) -> str | None:
        """Tell a symbolic tensor, which has no ``numpy`` at all."""
        if hasattr(x, "numpy"):
            return None
        return "it stands for values in a tf.function or a graph; convert outside of that"


SCIPY, PILLOW, CUPY, DASK = Unwrap(dense), Unwrap(pixels), Unwrap(to_host), Unwrap(computed)
JAX, JAX_SPARSE = JaxRoute(), Unwrap(dense_jax)
TENSORFLOW, TF_SPARSE = TensorflowRoute(), Unwrap(dense_tensorflow)
SYMBOLIC, PROXY = SymbolicRoute(), ProxyRoute()
