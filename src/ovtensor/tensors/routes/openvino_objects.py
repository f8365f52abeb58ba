"""OpenVINO objects that are no tensors: results and constants have values, others name who has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ovtensor.errors import ConversionError, DatalessTensorError
from ovtensor.tensors.dtypes import BY_OPENVINO
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, pinned, qualified_name
from ovtensor.tensors.packed import unpack
from ovtensor.tensors.registry import host
from ovtensor.tensors.routes.numpy_ import ROUTE as NUMPY
from ovtensor.tensors.routes.openvino_ import element_type, read_remote, read_tensor, shares

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ROUTE", "result"]

_ADVICE = {
    "InferRequest": "take request.get_output_tensor(index), or request.results for all",
    "CompiledModel": "run it: compiled_model(inputs) gives the results",
    "Model": "compile it with openvino.compile_model and run that",
}
_PORT = "a port names a tensor and holds none; take result[port] or request.get_tensor(port)"


class ObjectRoute:
    """Inference results, constants, remote tensors, and everything that only looks the part."""

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        """Read what has values; say of the others which call does."""
        if isinstance(x, Mapping):
            return _only_result(x)
        if hasattr(x, "get_tensor_view"):
            return _constant(x)
        if hasattr(x, "copy_to"):
            return read_remote(x)
        advice = next(
            (_ADVICE[b.__name__] for b in type(x).__mro__ if b.__name__ in _ADVICE), _PORT
        )
        raise DatalessTensorError(f"{self.describe(x)} has no values that can be read: {advice}")

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell the type; shape and element type where they are static."""
        has_data = isinstance(x, Mapping) or hasattr(x, "get_tensor_view") or hasattr(x, "copy_to")
        shape = dtype = element = device = None
        if isinstance(x, Mapping):
            if len(x) == 1:
                ((_, array),) = x.items()
                shape, dtype = tuple(array.shape), str(array.dtype)
        elif hasattr(x, "get_element_type"):
            dtype = x.get_element_type().get_type_name()
            element = BY_OPENVINO.get(dtype)
            partial = x.get_partial_shape() if hasattr(x, "get_partial_shape") else None
            if partial is not None and partial.is_static:
                shape = tuple(partial.to_shape())
        elif hasattr(x, "copy_to"):
            shape, device = tuple(x.get_shape()), x.get_device_name()
        return TensorInfo(
            library="openvino",
            type=qualified_name(type(x)),
            shape=shape,
            dtype=dtype,
            device=device,
            has_data=has_data,
            reason=None if has_data else "it holds no tensor",
            zero_copy=hasattr(x, "get_tensor_view") and shares(element),
            route="openvino",
            owner=Memory.BORROWED.value,
        )


def result(port: Any, array: np.ndarray[Any, Any]) -> HostArray:
    """Read one output of an inference with the element type that its port tells.

    OpenVINO hands out bfloat16 as float16, float8 as uint8, and packed elements as bytes.
    """
    found = host(NUMPY.read(array))
    element = element_type(port.get_element_type(), port)
    if element.in_numpy or element is found.element:
        return found
    if element.packed:
        shape = tuple(port.get_partial_shape().to_shape())
        return HostArray(unpack(array, shape, element), element, Memory.FRESH)
    return HostArray(array.view(element.carrier), element, found.memory)


def _only_result(x: Any) -> HostArray:
    if len(x) != 1:
        raise ConversionError(
            f"{qualified_name(type(x))} holds {len(x)} outputs; take one with x[0], "
            "or convert them all with tree_to_numpy"
        )
    ((port, array),) = x.items()
    return result(port, array)


def _constant(x: Any) -> HostArray:
    found = read_tensor(x.get_tensor_view())
    if found.memory is Memory.BORROWED:
        # The view does not keep the constant alive that owns its memory.
        found.bits = pinned(found.bits.__array_interface__, (x, found.bits))
    return found


ROUTE = ObjectRoute()
