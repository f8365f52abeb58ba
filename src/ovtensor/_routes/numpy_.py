"""NumPy arrays and scalars."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovtensor._dtypes import BY_NUMPY, BY_OPENVINO
from ovtensor._host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.errors import ConversionError

__all__ = ["ROUTE"]


class NumpyRoute:
    """Arrays are their own answer, if their memory is what it says it is."""

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        array: np.ndarray[Any, Any] = np.asarray(x)
        if array.dtype.byteorder not in "=|":
            array = array.astype(array.dtype.newbyteorder("="))
            return HostArray(array, BY_NUMPY[array.dtype], Memory.FRESH)
        if array.dtype not in BY_NUMPY:
            raise ConversionError(f"{self.describe(x)}: no numbers that an array could hold")
        owner: Any = array
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        if type(owner).__module__.startswith("openvino"):
            # Memory of an infer request; bf16 masquerades as float16 there.
            element = BY_OPENVINO[owner.get_element_type().get_type_name()]
            if element.name == "bfloat16" and array.dtype == np.float16:
                array = array.view(np.uint16)
            else:
                element = BY_NUMPY[array.dtype]
            return HostArray(array, element, Memory.BORROWED)
        return array

    def describe(self, x: Any, /) -> TensorInfo:
        return TensorInfo(
            library="numpy",
            type=qualified_name(type(x)),
            shape=x.shape,
            dtype=str(x.dtype),
            device="cpu",
            has_data=True,
            route="numpy",
        )


ROUTE = NumpyRoute()
