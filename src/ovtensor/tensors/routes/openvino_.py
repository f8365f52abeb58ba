"""OpenVINO tensors: their memory, read with the element type that it really has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino

from ovtensor.errors import ConversionError
from ovtensor.tensors.dtypes import BY_OPENVINO, TABLE, ElementType, installed
from ovtensor.tensors.host import HostArray, Memory, TensorInfo, qualified_name
from ovtensor.tensors.packed import packed_size, unpack

__all__ = ["ROUTE", "element_type", "read_remote", "read_tensor", "shares"]


class OpenvinoRoute:
    """An ``openvino.Tensor``: it does not tell whether a request owns it, so all are borrowed."""

    def quick(self, x: Any, /) -> np.ndarray[Any, Any] | None:
        """Copy what no other element type is shown as; to ask for the type takes longer."""
        if x.byte_size >= 9 * x.size:  # text, of which .data warns
            return None
        try:
            data: np.ndarray[Any, Any] = x.data
        except RuntimeError:  # memory of a device
            return None
        return data.copy() if data.dtype in _UNMISTAKABLE else None

    def read(self, x: Any, /) -> HostArray:
        """Show the memory as carriers, packed elements apart."""
        return read_tensor(x)

    def describe(self, x: Any, /) -> TensorInfo:
        """Tell shape and element type."""
        element = BY_OPENVINO.get(x.element_type.get_type_name())
        here = element is None or element.bits == 0 or _is_here(x)
        return TensorInfo(
            library="openvino",
            type=qualified_name(type(x)),
            shape=tuple(x.shape),
            dtype=x.element_type.get_type_name(),
            device="cpu" if here else None,
            has_data=True,
            zero_copy=here and shares(element),
            route="openvino",
            owner=Memory.BORROWED.value,
        )


def shares(element: ElementType | None) -> bool:
    """Tell whether memory of an element type can be shown as it is: text and packed cannot."""
    return element is not None and not element.packed and element.bits > 0


def read_tensor(x: Any) -> HostArray:
    """Read an ``openvino.Tensor``."""
    element = element_type(x.element_type, x)
    if element.name == "str":
        text = np.asarray(x.str_data)
        if (np.char.find(text, "\ufffd") >= 0).any():  # which stands for bytes that are no UTF-8
            np.char.decode(x.bytes_data, "utf-8")  # and here they are an error
        return HostArray(text, element, Memory.FRESH)
    data: np.ndarray[Any, Any]
    try:
        data, memory = x.data, Memory.BORROWED
    except RuntimeError:  # memory of a device
        data, memory = _copied_here(x).data, Memory.FRESH
    if element.numpy is not None:
        return HostArray(data, element, memory)
    if element.packed:
        return HostArray(unpack(data, tuple(x.shape), element), element, Memory.FRESH)
    return HostArray(data.view(element.carrier), element, memory)


def element_type(kind: openvino.Type, x: Any) -> ElementType:
    """Return the row of an element type of OpenVINO, which `x` has."""
    element = _ELEMENT.get(kind)
    if element is None:
        raise ConversionError(
            f"{qualified_name(type(x))} (dtype {kind.get_type_name()}): its element type is not "
            "known here; convert it in the model first, such as to f32"
        )
    return element


def read_remote(x: Any) -> HostArray:
    """Copy an ``openvino.RemoteTensor`` to host memory.

    From Python it does not tell its element type. But OpenVINO copies only between tensors of one
    type: so it has the one type, of those with its size in bytes, that it can be copied to.
    """
    taken = []
    refusal = "no element type gives its size in bytes"
    count = math.prod(x.get_shape())
    for kind, element in _ELEMENT.items():
        if element.bits == 0 or packed_size(count, element.bits) != x.get_byte_size():
            continue
        target = openvino.Tensor(kind, x.get_shape())
        try:
            x.copy_to(target)
        except RuntimeError as error:
            refusal = str(error)
        else:
            taken.append(target)
    if len(taken) != 1:
        known = "does not tell its element type" if taken else f"cannot be copied ({refusal})"
        raise ConversionError(
            f"{qualified_name(type(x))} of shape {tuple(x.get_shape())} {known}; make a host "
            "tensor and copy: host = openvino.Tensor(element_type, remote.get_shape()); "
            "remote.copy_to(host)"
        )
    found = read_tensor(taken[0])
    found.memory = Memory.FRESH
    return found


def _is_here(x: Any) -> bool:
    """Tell whether a tensor's memory can be read; that of a device cannot, and it says so."""
    try:
        x.data  # noqa: B018
    except RuntimeError:
        return False
    return True


def _copied_here(x: Any) -> openvino.Tensor:
    # A request that was given a remote tensor hands it out as openvino.Tensor.
    target = openvino.Tensor(x.element_type, x.shape)
    try:
        x.copy_to(target)
    except RuntimeError as error:
        raise ConversionError(
            f"{ROUTE.describe(x)} is not in host memory and cannot be copied there: {error}"
        ) from error
    return target


# Types compare and hash by value; asking them for their name is slower.
_ELEMENT = {
    kind: row
    for row in TABLE
    if (kind := installed(openvino.Type, row.openvino, openvino.Type)) is not None
}
# OpenVINO shows bfloat16 as float16, and float8 and packed elements as bytes.
_UNMISTAKABLE = frozenset(
    row.carrier
    for row in _ELEMENT.values()
    if row.in_numpy and row.name not in ("float16", "int8", "uint8", "str")
)
ROUTE = OpenvinoRoute()
