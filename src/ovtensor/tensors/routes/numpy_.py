"""NumPy arrays and scalars: their own answer, where their memory is what it says it is."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np

from ovtensor.errors import ConversionError
from ovtensor.tensors.dtypes import BY_NAME, BY_NATIVE, BY_NUMPY, BY_OPENVINO, ElementType
from ovtensor.tensors.host import HostArray, Memory, NoNumbersError, TensorInfo, qualified_name
from ovtensor.tensors.registry import route_for
from ovtensor.tensors.routes.exact import exact_numbers, foreign_type

__all__ = ["ROUTE"]


class NumpyRoute:
    """Arrays of every dtype that holds numbers or text, among them those of ``ml_dtypes``."""

    def read(self, x: Any, /) -> np.ndarray[Any, Any] | HostArray:
        """Find the values; a mask is kept, a subclass is left behind."""
        cls = type(x)
        if cls is np.ndarray and x.base is None and x.dtype in BY_NUMPY:
            return x  # type: ignore[no-any-return]
        if isinstance(x, np.str_):
            raise ConversionError("numpy.str_ is a string, not a number; give an array of them")
        if isinstance(x, np.generic):
            return _read_array(np.asarray(x), Memory.FRESH, x)
        found = _read_array(x.view(np.ndarray), _owner(x), x)
        if isinstance(x, np.ma.MaskedArray):
            found.mask = np.ma.getmaskarray(x)
            found.masked = x.view(np.ma.MaskedArray)
        if found.memory is Memory.CALLER and found.mask is None and found.element.numpy:
            return found.bits
        return found

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell shape, dtype and ownership."""
        memory = Memory.FRESH if isinstance(x, np.generic) else _owner(x)
        own = x.dtype.isnative and (x.dtype in BY_NUMPY or x.dtype.kind == "U")
        narrow = BY_NATIVE.get(x.dtype.name)
        return TensorInfo(
            library="numpy",
            type=qualified_name(type(x)),
            shape=x.shape,
            dtype=str(x.dtype),
            device="cpu",
            has_data=True,
            zero_copy=memory is not Memory.FRESH
            and (own or (narrow is not None and not narrow.integral)),
            route="numpy",
            owner=memory.value,
        )


def _owner(array: Any) -> Memory:
    return Memory.CALLER if _openvino_owner(array) is None else Memory.BORROWED


def _openvino_owner(array: Any) -> Any:
    """Return the ``openvino.Tensor`` whose memory an array shows, if there is one."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array if type(array).__module__.startswith("openvino") else None


def _read_array(array: np.ndarray[Any, Any], memory: Memory, source: Any) -> HostArray:
    dtype = array.dtype
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
        memory = Memory.FRESH
    if dtype.kind == "O":
        values = _numbers(array, source)
        return HostArray(values, BY_NUMPY[values.dtype], Memory.FRESH)
    if dtype.kind == "U":
        return HostArray(array, BY_NAME["str"], memory)
    element: ElementType | None = BY_NUMPY.get(array.dtype)
    if element is not None:
        return _true_element(array, element, memory)
    element = BY_NATIVE.get(dtype.name)
    if element is None:
        # what has no name of its own is a type of numbers that no row is about
        known = dtype.kind in "SMm" or dtype.names is not None
        raise (NoNumbersError if known else ConversionError)(
            f"{ROUTE.describe(source)} holds no plain numbers; "
            "convert a field or a cast of it, such as array.astype(float)"
        )
    if element.integral:  # ml_dtypes spends a byte on each
        return HostArray(array.astype(element.carrier), element, Memory.FRESH)
    return HostArray(array.view(element.carrier), element, memory)


def _true_element(array: np.ndarray[Any, Any], element: ElementType, memory: Memory) -> HostArray:
    """See through OpenVINO's views, in which bfloat16 poses as float16."""
    owner = _openvino_owner(array)
    told = BY_OPENVINO.get(owner.get_element_type().get_type_name()) if owner is not None else None
    if told is not None and told.name == "bfloat16" and element.name == "float16":
        return HostArray(array.view(told.carrier), told, memory)
    return HostArray(array, element, memory)


def _numbers(array: np.ndarray[Any, Any], source: Any) -> np.ndarray[Any, Any]:
    """Turn an object array of numbers into an array of numbers; what a mask hides counts as 0."""
    items = array.ravel().tolist()
    if isinstance(source, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(source).ravel().tolist()
        items = [0 if is_hidden else item for item, is_hidden in zip(items, hidden, strict=True)]
    if (foreign := foreign_type(items)) is not None:
        # tensors among objects are not left behind without a word
        tensors = any(
            route_for(kind) and not issubclass(kind, str | bytes | Number | np.bool_)
            for kind in set(map(type, items))
        )
        raise (ConversionError if tensors else NoNumbersError)(
            f"{ROUTE.describe(source)} holds a {qualified_name(foreign)}; "
            "convert its items one by one"
        )
    return exact_numbers(items, source).reshape(array.shape)


ROUTE = NumpyRoute()
