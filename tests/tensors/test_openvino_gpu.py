"""Tensors in the memory of a GPU of OpenVINO's."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

import ovtensor
from devices import needs_gpu
from ovtensor._core import core
from ovtensor.errors import ConversionError
from ovtensor.tensors.dtypes import BY_OPENVINO

pytestmark = needs_gpu

TYPES = sorted(set(BY_OPENVINO) - {"string"})
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


@pytest.fixture(scope="module")
def context():
    return core().get_default_context("GPU")


def remote(context, host):
    out = context.create_tensor(host.element_type, host.shape, {})
    out.copy_from(host)
    return out


@pytest.mark.parametrize("name", TYPES)
def test_every_element_type(context, name):
    count = BY_OPENVINO[name].bits * 16 // 8
    bits = np.arange(count, dtype=np.uint8) % (2 if name == "boolean" else 255)
    host = ov.Tensor(bits, ov.Shape([2, 8]), getattr(ov.Type, name))
    there = remote(context, host)
    np.testing.assert_array_equal(ovtensor.to_numpy(there), ovtensor.to_numpy(host))
    back = ovtensor.to_openvino(there)
    assert back.element_type == host.element_type
    assert back.shape == host.shape


def test_what_is_made_of_one(context):
    there = remote(context, ov.Tensor(VALUES))
    out = ovtensor.to_numpy(there)
    assert type(out) is np.ndarray
    assert out.flags.writeable
    out[:] = 7
    np.testing.assert_array_equal(ovtensor.to_numpy(there), VALUES)
    assert torch.equal(ovtensor.to_torch(there), torch.from_numpy(VALUES))
    np.testing.assert_array_equal(ovtensor.tree_to_numpy({"a": [there]})["a"][0], VALUES)
    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match="made by the conversion itself"):
            convert(there, copy=False)
    info = ovtensor.describe(there)
    assert (info.shape, info.has_data, info.zero_copy) == ((2, 3), True, False)
    assert info.device.startswith("GPU")


def test_a_region_of_one(context):
    there = remote(context, ov.Tensor(VALUES))
    region = ov.RemoteTensor(there, ov.Coordinate([0, 1]), ov.Coordinate([2, 3]))
    np.testing.assert_array_equal(ovtensor.to_numpy(region), VALUES[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_what_a_request_hands_out(context, dtype):
    """It is of the type of host tensors, and OpenVINO says "Not Implemented" of its data."""
    able = core().get_property("GPU", "OPTIMIZATION_CAPABILITIES")
    if dtype is torch.float16 and "FP16" not in able:
        pytest.skip("this GPU does not compute in float16")
    values = torch.from_numpy(VALUES).abs().to(dtype)
    host = ovtensor.to_openvino(values)
    node = ops.parameter(ov.Shape([2, 3]), host.element_type, name="x")
    node.output(0).set_names({"x"})
    doubled = ops.result(ops.concat([node, node], 0))
    doubled.output(0).set_names({"y"})
    compiled = core().compile_model(ov.Model([doubled], [node]), context, {})
    request = compiled.create_infer_request()
    request.set_tensor("x", remote(context, host))
    request.set_tensor("y", context.create_tensor(host.element_type, ov.Shape([4, 3]), {}))
    request.start_async()
    request.wait()
    out = request.get_output_tensor()
    assert type(out) is ov.Tensor
    with pytest.raises(RuntimeError, match="Not Implemented"):
        _ = out.data
    expected = torch.cat([values, values])
    np.testing.assert_array_equal(ovtensor.to_numpy(out), ovtensor.to_numpy(expected))
    assert torch.equal(ovtensor.to_torch(out), expected)
    info = ovtensor.describe(out)
    assert (info.device, info.has_data, info.zero_copy) == (None, True, False)
    with pytest.raises(ConversionError, match="made by the conversion itself"):
        ovtensor.to_numpy(out, copy=False, dtype="native")
