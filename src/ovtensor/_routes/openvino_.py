"""OpenVINO tensors: their memory, read with the element type that it really has."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino

from ovtensor._dtypes import BY_OPENVINO
from ovtensor._host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor._packed import unpack
from ovtensor.errors import ConversionError

__all__ = ["ROUTE", "read_tensor"]


class OpenvinoRoute:
    """An ``openvino.Tensor``: it does not tell whether a request owns it, so all are borrowed."""

    def read(self, x: Any, /) -> HostArray:
        """Show the memory as carriers, packed elements apart."""
        return read_tensor(x)

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell shape and element type."""
        element = BY_OPENVINO.get(x.element_type.get_type_name())
        return TensorInfo(
            library="openvino",
            type=qualified_name(type(x)),
            shape=tuple(x.shape),
            dtype=x.element_type.get_type_name(),
            device="cpu",
            has_data=True,
            zero_copy=element is not None and not element.packed and element.bits > 0,
            route="openvino",
            owner=Memory.BORROWED.value,
        )


def read_tensor(x: Any) -> HostArray:
    """Read an ``openvino.Tensor``."""
    element = _ELEMENT.get(x.element_type)
    if element is None:
        raise ConversionError(f"{ROUTE.describe(x)}: its element type is not known here")
    if element.name == "str":
        return HostArray(np.asarray(x.str_data), element, Memory.FRESH)
    data: np.ndarray[Any, Any] = x.data
    if element.numpy is not None:
        return HostArray(data, element, Memory.BORROWED)
    if element.packed:
        return HostArray(unpack(data, tuple(x.shape), element), element, Memory.FRESH)
    return HostArray(data.view(element.carrier), element, Memory.BORROWED)


# Types compare and hash by value; asking them for their name is slower.
_ELEMENT = {
    getattr(openvino.Type, name): row
    for name, row in BY_OPENVINO.items()
    if hasattr(openvino.Type, name)
}
ROUTE = OpenvinoRoute()
