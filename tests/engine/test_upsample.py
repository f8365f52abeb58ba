"""Upsampling and the convolution after it become one operator, and nothing else does."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
import torch
from torch.nn import functional

from engine_graphs import converted, kinds, picture
from ovtensor.engine import convert
from ovtensor.engine.passes.upsample import FoldUpsample
from ovtensor.pipelines.kinds.autoencoder_kl import decoder_graph
from sdxl_scenes import load


class Upsample(torch.nn.Module):
    def __init__(self, kernel=3, stride=1, padding=1, groups=1, mode="nearest", factor=2.0):
        super().__init__()
        self.conv = torch.nn.Conv2d(6, 6, kernel, stride, padding, groups=groups)
        self.mode, self.factor = mode, factor

    def forward(self, x):
        x = x.to(self.conv.weight.dtype)
        return self.conv(functional.interpolate(x, scale_factor=self.factor, mode=self.mode))


def fold(model: ov.Model) -> None:
    FoldUpsample("f32").on_model(model)


def model_of(module: torch.nn.Module) -> ov.Model:
    return converted(module, picture(-1, 6, -1, -1))


def computed(model, x):
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return ov.Core().compile_model(model, "CPU", hint)([x.numpy()])[0]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (16, 9)])
def test_it_computes_the_same(height, width):
    torch.manual_seed(0)
    module = Upsample()
    model = model_of(module)
    fold(model)
    assert "ConvolutionBackpropData" in kinds(model)
    assert not kinds(model) & {"Interpolate", "Convolution"}
    x = torch.randn(2, 6, height, width)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(computed(model, x), expected, rtol=0, atol=3e-6)


def test_weights_keep_their_type():
    module = Upsample().bfloat16()  # whose memory is that of the model's weights
    model = model_of(module)
    fold(model)
    (folded,) = (op for op in model.get_ops() if op.get_type_name() == "ConvolutionBackpropData")
    assert folded.input_value(1).get_element_type() == ov.Type.bf16


class Shared(Upsample):
    def forward(self, x):
        larger = functional.interpolate(x, scale_factor=2.0)
        return self.conv(larger) + larger


class Given(Upsample):
    def forward(self, x):
        larger = functional.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3] + 1))
        return self.conv(larger)


@pytest.mark.parametrize(
    "module",
    [
        Upsample(kernel=5, padding=1),
        Upsample(stride=2),
        Upsample(padding=0),
        Upsample(groups=2),
        Upsample(mode="bilinear"),
        Upsample(factor=3.0),
        Shared(),
        Given(),
    ],
    ids=["kernel", "stride", "padding", "groups", "bilinear", "threefold", "shared", "size"],
)
def test_anything_else_is_left_alone(module):
    model = model_of(module)
    fold(model)
    assert "ConvolutionBackpropData" not in kinds(model)
    assert "Interpolate" in kinds(model)


def test_every_upsampling_of_a_decoder_is_folded():
    model = convert.convert(decoder_graph("vae_decoder", load().vae))
    assert "Interpolate" in kinds(model)
    fold(model)
    assert "Interpolate" not in kinds(model)
