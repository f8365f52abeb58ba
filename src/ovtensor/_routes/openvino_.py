"""OpenVINO tensors: their memory, read with the element type that it really has."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino

from ovtensor._dtypes import BY_OPENVINO, ElementType
from ovtensor._host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor._packed import unpack
from ovtensor.errors import ConversionError

__all__ = ["ROUTE", "read_tensor", "shares"]


class OpenvinoRoute:
    """An ``openvino.Tensor``: it does not tell whether a request owns it, so all are borrowed."""

    def quick(self, x: Any, /) -> np.ndarray[Any, Any] | None:
        """Copy what no other element type is shown as; to ask for the type takes longer."""
        if x.byte_size >= 9 * x.size:  # text, of which .data warns
            return None
        data: np.ndarray[Any, Any] = x.data
        return data.copy() if data.dtype in _UNMISTAKABLE else None

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
            zero_copy=shares(element),
            route="openvino",
            owner=Memory.BORROWED.value,
        )


def shares(element: ElementType | None) -> bool:
    """Tell whether memory of an element type can be shown as it is: text and packed cannot."""
    return element is not None and not element.packed and element.bits > 0


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
# OpenVINO shows bfloat16 as float16, and float8 and packed elements as bytes.
_UNMISTAKABLE = frozenset(
    row.carrier
    for row in _ELEMENT.values()
    if row.in_numpy and row.name not in ("float16", "int8", "uint8", "str")
)
ROUTE = OpenvinoRoute()
