"""Packed elements, against OpenVINO's own conversion of them."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from ovtensor.tensors.cast import widen
from ovtensor.tensors.dtypes import TABLE
from ovtensor.tensors.packed import pack, packed_size, unpack

PACKED = [row for row in TABLE if row.packed and row.openvino]


@pytest.mark.parametrize("element", PACKED, ids=lambda e: e.name)
def test_bit_order_is_openvinos(element):
    raw = np.random.default_rng(1).integers(0, 256, packed_size(24, element.bits), np.uint8)
    constant = ops.constant(ov.Tensor(raw, ov.Shape([24]), getattr(ov.Type, element.openvino)))
    model = ov.Model([ops.result(ops.convert(constant, "f32"))], [])
    theirs = ov.Core().compile_model(model, "CPU")([])[0]
    np.testing.assert_array_equal(widen(unpack(raw, (24,), element), element), theirs)


@pytest.mark.parametrize("element", PACKED, ids=lambda e: e.name)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (1,), (3, 5), (8,), (2, 3, 7)])
def test_pack_is_the_inverse(element, shape):
    values = np.random.default_rng(2).integers(0, 1 << element.bits, shape).astype(np.uint8)
    if element.name == "int4":
        values = (values.astype(np.int8) - 8).astype(np.int8)
    packed = pack(values, element)
    assert packed.dtype == np.uint8
    assert packed.size == packed_size(values.size, element.bits)
    kind = getattr(ov.Type, element.openvino)
    assert packed.size == ov.Tensor(kind, ov.Shape(shape)).byte_size
    back = unpack(packed, shape, element)
    assert back.shape == shape
    np.testing.assert_array_equal(back, values)
