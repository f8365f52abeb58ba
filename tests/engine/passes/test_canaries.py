"""For every pass a test that fails when the installed OpenVINO makes it needless.

Each looks at what OpenVINO does without the pass and with it. When the first half fails, delete the
pass and its canary; when the second half does, the pass no longer helps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from openvino import opset13
from torch import nn
from torch.nn import functional

from child import needs_proc, numbers
from devices import needs_bf16
from engine_graphs import converted, graph_of, kinds, picture
from ovtensor._core import core
from ovtensor.engine import GraphInput, convert
from ovtensor.engine.passes import PASSES
from ovtensor.engine.passes.drop_ones import DropOnes
from ovtensor.engine.passes.gated import SplitGates
from ovtensor.engine.passes.group_norms import GroupNorms
from ovtensor.engine.passes.int8 import Int8Weights
from ovtensor.engine.passes.mapped_weights import MappedWeights
from ovtensor.engine.passes.plain_attention import PlainAttention
from ovtensor.engine.passes.short_keys import ShortKeys
from ovtensor.engine.passes.sixteen_bit import SixteenBitWeights
from ovtensor.engine.passes.startup_fallback import NoStartupFallback
from ovtensor.engine.passes.upsample import FoldUpsample
from ovtensor.errors import ComponentError

WORDS = GraphInput("x", (-1, -1, 64), torch.zeros(2, 5, 64))
CANARIES = {
    PlainAttention: "test_sliced_attention_is_traced_for_the_slices_of_the_example",
    SplitGates: "test_a_split_is_executed_and_the_gate_is_not_merged",
    DropOnes: "test_a_product_with_one_takes_the_slowest_kernel",
    FoldUpsample: "test_an_upsampling_is_executed_by_itself",
    Int8Weights: "test_weights_are_compressed_by_request_alone",
    GroupNorms: "test_a_picture_is_copied_on_both_sides_of_a_norm",
    MappedWeights: "test_constant_weights_of_linear_layers_are_copied",
    SixteenBitWeights: "test_torch_does_not_trace_mixed_weights",
    NoStartupFallback: "test_auto_begins_on_another_device_by_default",
    ShortKeys: "test_attention_goes_wrong_after_a_single_key",
}


@pytest.mark.parametrize("one", PASSES, ids=lambda one: one.name)
def test_every_pass_has_a_canary(one):
    assert callable(globals()[CANARIES[one]])


def executed(model: ov.Model, hint: str = "f32") -> list[str]:
    """The types of the layers that the CPU plugin executes, in order, without constants."""
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    types = [info["layerType"].astype(str) for info in infos if "layerType" in info]
    return [kind for kind in types if kind not in ("Input", "Const", "Output")]


def test_sliced_attention_is_traced_for_the_slices_of_the_example():
    def error(module):
        """The largest one for another batch than that of the example."""
        x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = module(x)
        compiled = core().compile_model(converted(module, WORDS), "CPU")
        return float(np.abs(compiled(x.numpy())[0] - expected.numpy()).max())

    torch.manual_seed(0)
    module = Attention(query_dim=64, heads=2, dim_head=32).eval()
    module.set_attention_slice(1)
    assert error(module) > 0.01
    PlainAttention("f32").on_module(module, Path())
    assert error(module) < 1e-4


class Upsampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2.0))


def test_an_upsampling_is_executed_by_itself():
    model = converted(Upsampled(), picture(-1, 6, -1, -1))
    assert executed(model).count("Interpolate") == 1
    FoldUpsample("f32").on_model(model)
    found = executed(model)
    assert "Interpolate" not in found
    assert found.count("Deconvolution") == 1
    assert "Convolution" not in found


def test_a_picture_is_copied_on_both_sides_of_a_norm():
    def between(model):
        """What is executed between both convolutions of pictures."""
        found = executed(model)
        first = found.index("Convolution") + 1
        last = len(found) - 1 - found[::-1].index("Convolution")
        return [kind for kind in found[first:last] if kind != "Reshape"]  # also of weights

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(16, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, padding=1),
    )
    model = converted(module, picture(-1, 16, -1, -1))
    found = between(model)
    assert "MVN" in found
    middle = found.index("MVN")
    assert "Reorder" in found[:middle]
    assert "Reorder" in found[middle:]
    GroupNorms("f32").on_model(model)
    found = between(model)
    assert "MVN" not in found
    # One is of the sums, a few numbers.
    assert found.count("Reorder") <= 1
    assert found[-1] == "Eltwise"


def test_a_split_is_executed_and_the_gate_is_not_merged():
    def found_in(module):
        return executed(converted(module, WORDS))

    module = nn.Sequential(GEGLU(64, 128), nn.Linear(128, 64))
    found = found_in(module)
    assert {"Split", "StridedSlice"} & set(found)
    assert found.count("Eltwise") == 2  # the gate's activation, and its product with the value
    SplitGates("f32").on_module(module, Path())
    found = found_in(module)
    assert not {"Split", "StridedSlice"} & set(found)
    assert found.count("Eltwise") == 1
    assert found.count("FullyConnected") == 3


def _with_given_weights(form: str) -> ov.Model:
    """A linear layer whose weights are an input, and what diffusers and torch add after it."""
    x = opset13.parameter([-1, -1, 64], ov.Type.bf16, name="x")
    weights = opset13.parameter([64, -1], ov.Type.bf16, name="weights")
    bias = opset13.constant(np.linspace(-1, 1, 64, dtype=np.float32), ov.Type.bf16)
    one = opset13.constant(np.array(1.0, np.float32), ov.Type.bf16)
    result = opset13.add(opset13.matmul(x, weights, False, True), bias)
    if form == "divided":
        result = opset13.divide(result, one)
    elif form == "added":
        result = opset13.add(x, opset13.multiply(one, result))
    return ov.Model([result], [x, weights])


def _linear_kernels(model: ov.Model) -> set[str]:
    counting = {"INFERENCE_PRECISION_HINT": "bf16", "PERF_COUNT": True}
    request = core().compile_model(model, "CPU", counting).create_infer_request()
    for port, shape in zip(model.inputs, ([2, 7, 64], [64, 64]), strict=True):
        request.set_tensor(port.any_name, ov.Tensor(ov.Type.bf16, shape))
    request.infer()
    return {info.exec_type for info in request.profiling_info if info.node_type == "MatMul"}


@needs_bf16
def test_a_product_with_one_takes_the_slowest_kernel():
    """In float32 it takes the same kernel as without."""
    slow = set()
    for form in ("divided", "added"):
        model = _with_given_weights(form)
        slow |= _linear_kernels(model)
        DropOnes("bf16").on_model(model)
        assert "jit_gemm_bf16" not in _linear_kernels(model), form
    assert "jit_gemm_bf16" in slow


# What compiling one linear layer of 64 MB takes; its weights are read from a file.
_COMPILED = """
    import sys, numpy, openvino as ov
    from openvino import opset13

    x = opset13.parameter([-1, 4096], numpy.float32, name="x")
    weights = numpy.random.default_rng(0).standard_normal((4096, 4096), numpy.float32)
    path = sys.argv[1] + "/model.xml"
    ov.save_model(
        ov.Model([opset13.matmul(x, opset13.constant(weights), False, True)], [x]), path, False
    )
    del weights
    core = ov.Core()
    core.compile_model(ov.Model([opset13.relu(x)], [x]), "CPU")([numpy.zeros((2, 4096), "f4")])
    model = core.read_model(path)
    if sys.argv[2] == "input":
        for node in model.get_ops():
            if node.get_type_name() == "MatMul":
                own = node.input_value(1).get_node()
                given = opset13.parameter([4096, -1], numpy.float32)
                node.input(1).replace_source_output(given.output(0))
                model.add_parameters([given])
        model.validate_nodes_and_infer_types()
        stored = ov.Tensor(own.data)  # before it is measured
    before = anonymous()
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    if sys.argv[2] == "input":
        request.set_input_tensor(1, stored)
    request.set_input_tensor(0, ov.Tensor(numpy.ones((2, 4096), "f4")))
    request.infer()
    print(anonymous() - before)
"""


@needs_proc
def test_constant_weights_of_linear_layers_are_copied(tmp_path):
    size = 64 << 20
    (constant,) = numbers(_COMPILED, 1, tmp_path, "constant")
    assert constant > 0.8 * size
    (given,) = numbers(_COMPILED, 1, tmp_path, "input")
    assert given < 0.2 * size


def test_torch_does_not_trace_mixed_weights(tmp_path):
    """And the operator of OpenVINO's own extension for them, which is private, is there."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32).half(), nn.LayerNorm(32))
    module[0].bias.data = module[0].bias.data.float()
    module.requires_grad_(False)
    x = torch.randn(2, 7, 64)
    with torch.no_grad():
        weight, bias = module[0].weight.float(), module[0].bias
        expected = module[1](functional.linear(x, weight, bias))
    with pytest.raises(ComponentError, match="dtype"):
        converted(module, WORDS)
    SixteenBitWeights("f32").on_module(module, tmp_path)
    model = converted(module, WORDS)
    stored = {
        str(node.get_element_type())
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and list(node.shape) in ([32, 64], [64, 32])
    }
    assert stored == {"<Type: 'float16'>"}
    result = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x.numpy()])[0]
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=1e-5)


def test_auto_begins_on_another_device_by_default():
    for name, value in NoStartupFallback.properties(None).items():  # type: ignore[arg-type]
        assert core().get_property("AUTO", name) is not value


def test_weights_are_compressed_by_request_alone(need):
    """No workaround: what ``Backend.weights`` asks for."""
    need("nncf")

    def types(model):
        sizes = (node for node in model.get_ops() if node.get_type_name() == "Constant")
        return {str(node.get_element_type()) for node in sizes if len(node.shape) == 2}

    model = converted(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)), WORDS)
    assert "<Type: 'uint8_t'>" not in types(model)
    Int8Weights("f32").on_model(model)
    assert "<Type: 'uint8_t'>" in types(model)


class _Attention(nn.Module):
    def forward(self, queries, keys):
        heads = [x.view(x.shape[0], -1, 2, 16).transpose(1, 2) for x in (queries, keys)]
        return functional.scaled_dot_product_attention(heads[0], heads[1], heads[1])


def test_attention_goes_wrong_after_a_single_key():
    attention = _Attention().eval()
    given = [GraphInput(name, (-1, -1, 32), torch.zeros(1, 5, 32)) for name in ("queries", "keys")]
    model = convert.convert(graph_of(attention, *given))
    assert "ScaledDotProductAttention" in kinds(model)

    def errors(*sizes):
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        generator = torch.Generator().manual_seed(0)
        for queries, keys in sizes:
            x, y = (torch.randn(1, n, 32, generator=generator) for n in (queries, keys))
            result = torch.from_numpy(compiled([x.numpy(), y.numpy()])[0])
            yield float((result - attention(x, y)).abs().max())

    first, later = errors((64, 1), (256, 77))
    assert first < 1e-5
    assert later > 0.1
    assert max(errors((64, 2), (256, 77), (64, 1), (256, 77))) < 1e-5
    ShortKeys.check_call("net", [(1, 64, 32)], 2)
    with pytest.raises(ComponentError, match="too small for OpenVINO's attention"):
        ShortKeys.check_call("net", [(1, 64, 32)], 1)
