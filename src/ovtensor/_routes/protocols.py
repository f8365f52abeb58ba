"""Objects of any library that speak one of the array protocols."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovtensor._host import HostArray, Memory, TensorInfo
from ovtensor._registry import host, self_description
from ovtensor._routes.numpy_ import ROUTE as NUMPY
from ovtensor.errors import ConversionError

__all__ = ["ROUTE"]


class ProtocolRoute:
    """``__array_interface__``, ``__array__``, ``__dlpack__`` or the buffer protocol."""

    def read(self, x: Any, /) -> HostArray:
        """Take the first protocol that gives numbers; then what NumPy's route says of those."""
        reasons = []
        for name, way in _WAYS:
            if name is not None and not hasattr(x, name):
                continue
            try:
                array = way(x)
            except Exception as error:  # noqa: BLE001  foreign code may raise anything
                reasons.append(f"{name or 'buffer'}: {error}")
                continue
            if isinstance(array, np.ndarray) and array.dtype != object:
                found = host(NUMPY.read(array))
                if array.flags.owndata:
                    found.memory = Memory.FRESH
                return found
            reasons.append(f"{name or 'buffer'}: no numbers")
        raise ConversionError(
            f"{self.describe(x)} gave no array ({'; '.join(reasons)}); "
            "bring it to the CPU, or teach its type with ovtensor.register_route"
        )

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell what the object tells about itself."""
        return self_description(x, "protocols")


_WAYS = (
    ("__array_interface__", np.asarray),
    ("__array__", np.asarray),
    ("__dlpack__", np.from_dlpack),
    (None, lambda x: np.asarray(memoryview(x))),
)
ROUTE = ProtocolRoute()
