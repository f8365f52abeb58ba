"""Objects of any library that speak one of the array protocols."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from ovtensor.errors import ConversionError, DatalessTensorError
from ovtensor.tensors.dtypes import BY_NUMPY
from ovtensor.tensors.host import HostArray, Memory, NoNumbersError, TensorInfo
from ovtensor.tensors.registry import host
from ovtensor.tensors.route import self_description
from ovtensor.tensors.routes.numpy_ import ROUTE as NUMPY

__all__ = ["ROUTE"]


class ProtocolRoute:
    """``__array_interface__``, ``__dlpack__``, ``__array__`` or the buffer protocol.

    All of them share memory except ``__array__``, of which nobody knows what it gives: a copy,
    a view, or the very array that the object works on. An ``__array_interface__`` tells an address
    and keeps nothing alive but the object, which may let go of that memory; so may ctypes.
    """

    def read(self, x: Any, /) -> HostArray:
        """Take the first protocol that gives numbers; then what NumPy's route says of those."""
        if (reason := self.why_dataless(x)) is not None:
            raise DatalessTensorError(f"{self.describe(x)} has no values: {reason}")
        reasons, kind = [], ConversionError
        for name, way in _WAYS:
            if name is not None and not hasattr(x, name):
                continue
            try:
                found = host(NUMPY.read(way(x)))
            except Exception as error:  # noqa: BLE001  foreign code may raise anything
                reasons.append(f"{name or 'buffer'}: {error}")
                kind = NoNumbersError if isinstance(error, NoNumbersError) else kind
                continue
            if found.memory is Memory.CALLER:
                found.memory = _owner(name, x)
            return found
        raise kind(
            f"{self.describe(x)} gave no array ({'; '.join(reasons)}); "
            "bring it to the CPU, or teach its type with ovtensor.register_route"
        )

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what the object tells about itself."""
        told = self_description(x, "protocols")
        reason = self.why_dataless(x)
        owner = next(_owner(name, x) for name, _ in _WAYS if name is None or hasattr(x, name))
        return dataclasses.replace(
            told,
            has_data=reason is None,
            reason=reason,
            zero_copy=reason is None and _shares(x),
            owner=owner.value,
        )

    def why_dataless(self, x: Any, /) -> str | None:  # noqa: ARG002
        """Say why there are no values, for a library that can tell; None if there are."""
        return None


def _owner(protocol: str | None, x: Any) -> Memory:
    """Tell whose the memory is that a protocol gives."""
    if protocol == "__array__":
        return Memory.UNKNOWN
    resizable = any(base.__module__ == "_ctypes" for base in type(x).__mro__)
    borrowed = protocol == "__array_interface__" or (protocol is None and resizable)
    return Memory.BORROWED if borrowed else Memory.CALLER


def _shares(x: Any) -> bool:
    """Tell whether there is a protocol that shares memory and can say what is in it."""
    with contextlib.suppress(Exception):  # foreign code may raise anything
        if hasattr(x, "__array_interface__"):
            return _as_is(np.asarray(x).dtype)
        if hasattr(x, "__dlpack_device__"):
            dtype = np.dtype(str(x.dtype).rpartition(".")[2])
            return x.__dlpack_device__()[0] == _DLPACK_CPU and dtype in BY_NUMPY
        return not hasattr(x, "__array__") and _as_is(np.asarray(memoryview(x)).dtype)
    return False


def _as_is(dtype: np.dtype[Any]) -> bool:
    return dtype.isnative and (dtype in BY_NUMPY or dtype.kind == "U")


_DLPACK_CPU = 1
_WAYS = (
    ("__array_interface__", np.asarray),
    ("__dlpack__", np.from_dlpack),
    ("__array__", np.asanyarray),  # which keeps a mask
    (None, lambda x: np.asarray(memoryview(x))),
)
ROUTE = ProtocolRoute()
