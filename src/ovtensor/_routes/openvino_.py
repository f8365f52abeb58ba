"""OpenVINO tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovtensor._dtypes import BY_OPENVINO
from ovtensor._host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ROUTE"]


class OpenvinoRoute:
    """An ``openvino.Tensor``: it does not tell whether a request owns it, so all are borrowed."""

    def read(self, x: Any, /) -> HostArray:
        element = BY_OPENVINO[x.element_type.get_type_name()]
        data: np.ndarray[Any, Any] = x.data
        if not element.in_numpy:
            if element.bits < 8:
                raise ConversionError(f"{self.describe(x)}: packed elements")
            data = data.view(element.carrier)
        return HostArray(data, element, Memory.BORROWED)

    def describe(self, x: Any, /) -> TensorInfo:
        return TensorInfo(
            library="openvino",
            type=qualified_name(type(x)),
            shape=tuple(x.shape),
            dtype=x.element_type.get_type_name(),
            device="cpu",
            has_data=True,
            route="openvino",
        )


ROUTE = OpenvinoRoute()
