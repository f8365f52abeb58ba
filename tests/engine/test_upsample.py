"""Doubling and the convolution after it become one operator, and nothing else does."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
import torch
from torch.nn import functional

from ovtensor.engine import convert as ir
from ovtensor.engine.passes.upsample import fold_doubling
from ovtensor.pipelines import graphs
from sdxl_scenes import load


class Doubling(torch.nn.Module):
    def __init__(self, kernel=3, stride=1, padding=1, groups=1, mode="nearest", factor=2.0):
        super().__init__()
        self.conv = torch.nn.Conv2d(6, 6, kernel, stride, padding, groups=groups)
        self.mode, self.factor = mode, factor

    def forward(self, x):
        x = x.to(self.conv.weight.dtype)
        return self.conv(functional.interpolate(x, scale_factor=self.factor, mode=self.mode))


def converted(module) -> ov.Model:
    given = graphs.GraphInput("x", (-1, 6, -1, -1), torch.zeros(1, 6, 5, 4))
    return ir.convert(graphs.Graph("doubling", module.eval(), (given,), len, lambda: ()))


def kinds(model) -> set[str]:
    return {node.get_type_name() for node in model.get_ops()}


def computed(model, x):
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return ov.Core().compile_model(model, "CPU", hint)([x.numpy()])[0]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (16, 9)])
def test_it_computes_the_same(height, width):
    torch.manual_seed(0)
    module = Doubling()
    model = converted(module)
    fold_doubling(model)
    assert "ConvolutionBackpropData" in kinds(model)
    assert not kinds(model) & {"Interpolate", "Convolution"}
    x = torch.randn(2, 6, height, width)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(computed(model, x), expected, rtol=0, atol=3e-6)


def test_weights_keep_their_type():
    module = Doubling().bfloat16()  # whose memory is that of the model's weights
    model = converted(module)
    fold_doubling(model)
    (folded,) = (op for op in model.get_ops() if op.get_type_name() == "ConvolutionBackpropData")
    assert folded.input_value(1).get_element_type() == ov.Type.bf16


class Shared(Doubling):
    def forward(self, x):
        doubled = functional.interpolate(x, scale_factor=2.0)
        return self.conv(doubled) + doubled


class Given(Doubling):
    def forward(self, x):
        doubled = functional.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3] + 1))
        return self.conv(doubled)


@pytest.mark.parametrize(
    "module",
    [
        Doubling(kernel=5, padding=1),
        Doubling(stride=2),
        Doubling(padding=0),
        Doubling(groups=2),
        Doubling(mode="bilinear"),
        Doubling(factor=3.0),
        Shared(),
        Given(),
    ],
    ids=["kernel", "stride", "padding", "groups", "bilinear", "threefold", "shared", "size"],
)
def test_anything_else_is_left_alone(module):
    model = converted(module)
    fold_doubling(model)
    assert "ConvolutionBackpropData" not in kinds(model)
    assert "Interpolate" in kinds(model)


def test_all_doublings_of_a_decoder_are_folded():
    model = ir.convert(graphs.vae_decoder_graph(load().vae))
    assert "Interpolate" in kinds(model)
    fold_doubling(model)
    assert "Interpolate" not in kinds(model)
