"""Group norms as sums per channel compute what torch does, in every precision."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
import torch

import engine_graphs
from devices import needs_bf16
from engine_graphs import CONVOLUTIONAL, EVERY_STEP, kinds, picture, plan_of
from ovtensor import Backend
from ovtensor.engine.passes import group_norms
from ovtensor.engine.passes.group_norms import GroupNorms

needs_sums_in_bf16 = pytest.mark.skipif(
    not group_norms.HOLD_IN_BFLOAT16, reason="this OpenVINO does not run the sums in bfloat16"
)


class Normed(torch.nn.Module):
    """A norm between two convolutions, the first of which gives it a mean against its deviation."""

    def __init__(self, ratio=0.0, groups=8):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = torch.nn.Conv2d(4, 64, 1), torch.nn.Conv2d(64, 64, 3, padding=1)
        self.norm = torch.nn.GroupNorm(groups, 64, eps=1e-6)
        with torch.no_grad():
            self.before.weight /= self.before(torch.randn(1, 4, 64, 64)).std()
            self.before.bias.copy_(torch.randn(64) + ratio)
            self.norm.weight += 0.2 * torch.randn(64)
            self.norm.bias += 0.2 * torch.randn(64)

    def forward(self, x):
        normed = self.norm(self.before(x.to(self.before.weight.dtype)))
        return self.after(torch.nn.functional.silu(normed)).float()


def converted(module, shape=(-1, 4, -1, -1)) -> ov.Model:
    return engine_graphs.converted(module, picture(*shape))


def computed(model, x, folder, precision="f32"):
    sums = GroupNorms(precision)
    sums.on_model(model)
    assert not kinds(model) & {"GroupNormalization", "MVN"}
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    sums.on_file(folder / "model.xml")
    hint = {"INFERENCE_PRECISION_HINT": precision}
    return ov.Core().compile_model(folder / "model.xml", "CPU", hint)([x.numpy()])[0]


def expected(module, x):
    with torch.no_grad():
        return module.double()(x.double()).numpy()


@pytest.mark.parametrize(
    ("batch", "height", "width", "groups"),
    [(1, 64, 64, 8), (3, 5, 2, 8), (1, 1, 9, 64), (2, 1, 1, 1), (1, 300, 7, 32)],
)
def test_in_float32_it_is_as_exact_as_torch(batch, height, width, groups, tmp_path):
    module = Normed(groups=groups)
    x = torch.randn(batch, 4, height, width)
    result = computed(converted(module), x, tmp_path)
    np.testing.assert_allclose(result, expected(module, x), rtol=0, atol=4e-6)


@pytest.mark.parametrize("ratio", [10, 100])
def test_in_float32_a_large_mean_costs_less_than_bfloat16_does(ratio, tmp_path):
    module = Normed(ratio)
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        rounded = module.bfloat16()(x).numpy()
    module = Normed(ratio)
    result = computed(converted(module), x, tmp_path)
    right = expected(module, x)
    assert np.abs(result - right).max() < np.abs(rounded - right).max() / 150


@needs_bf16
@needs_sums_in_bf16
@pytest.mark.parametrize("ratio", [0, 3, 30, 300])
def test_in_bfloat16_it_is_as_exact_as_torch(ratio, tmp_path):
    """Fails when OpenVINO no longer computes the sums in float32: then it is far off, or NaN."""
    module = Normed(ratio).bfloat16()
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        rounded = module(x).numpy()
    result = computed(converted(module), x, tmp_path, "bf16")
    right = expected(Normed(ratio), x)
    assert np.abs(result - right).mean() < 1.1 * np.abs(rounded - right).mean()


@needs_bf16
def test_it_is_known_which_releases_of_openvino_run_it_in_bfloat16(tmp_path):
    """Else the two tests that ask for it would be skipped, and the sums left out, unnoticed."""
    runs = True
    try:
        computed(converted(Normed()), torch.randn(1, 4, 8, 8), tmp_path, "bf16")
    except RuntimeError:
        runs = False
    assert runs is group_norms.HOLD_IN_BFLOAT16


@pytest.mark.parametrize("value", [0.0, 3.0, 5.1, 100.1, -4096.0])
def test_equal_values_give_the_shift(value, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(2, 4, eps=1e-6))
    torch.nn.init.zeros_(module[0].bias)
    torch.nn.init.eye_(module[0].weight[:, :, 0, 0])
    torch.nn.init.normal_(module[1].bias)
    x = torch.full((1, 4, 33, 31), value)
    result = computed(converted(module), x, tmp_path)
    shift = module[1].bias.detach().numpy().reshape(1, 4, 1, 1)
    # Two units in the last place of the value, times the most that a norm multiplies by.
    tolerance = 1e-6 + 1000 * abs(value) * 2**-22
    np.testing.assert_allclose(result, np.broadcast_to(shift, x.shape), rtol=0, atol=tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "precision", ["f32", pytest.param("bf16", marks=[needs_bf16, needs_sums_in_bf16])]
)
def test_what_is_not_finite_stays_so(value, precision, tmp_path):
    module = Normed()
    x = torch.randn(1, 4, 16, 16)
    x[0, :, 3, 4] = value
    result = computed(converted(module), x, tmp_path, precision)
    assert np.isnan(result).all()


@pytest.mark.parametrize(
    ("traits", "backend", "done"),
    [
        (CONVOLUTIONAL, Backend("openvino", precision="f32"), True),
        (CONVOLUTIONAL, Backend("openvino", precision="bf16"), True),
        (CONVOLUTIONAL, Backend("openvino", precision="bf16", weights="int8"), True),
        (CONVOLUTIONAL, Backend("openvino", precision="f16"), False),
        (CONVOLUTIONAL, Backend("openvino", "GPU", precision="f32"), False),
        (EVERY_STEP, Backend("openvino", precision="f32"), False),
    ],
)
def test_where_it_is_done(traits, backend, done, monkeypatch):
    monkeypatch.setattr(group_norms, "HOLD_IN_BFLOAT16", True)
    passes = plan_of(backend, traits).passes
    assert ("group_norms" in passes) is done
    assert ("upsample" in passes) is done


def test_where_older_releases_of_openvino_do_it(monkeypatch):
    monkeypatch.setattr(group_norms, "HOLD_IN_BFLOAT16", False)
    for precision, done in (("f32", True), ("bf16", False)):
        plan = plan_of(Backend("openvino", precision=precision), CONVOLUTIONAL)
        assert ("group_norms" in plan.passes) is done


class Residual(torch.nn.Module):
    """As after attention: the picture comes from a convolution and from something else."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(2, 4)

    def forward(self, x):
        return self.norm(self.conv(x) + torch.softmax(x, 1))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Residual(), (-1, 4, -1, -1)),
        (torch.nn.Sequential(torch.nn.GroupNorm(2, 4)), (-1, 4, -1, -1)),
        (torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1), torch.nn.GroupNorm(2, 4)), (-1, 4, -1)),
        (
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(2, 4, affine=False)),
            (-1, 4, -1, -1),
        ),
    ],
    ids=["residual", "input", "line", "no scale"],
)
def test_other_norms_are_left_alone(module, shape):
    """Those of pictures that are kept in no certain layout; others are in no VAE."""
    model = converted(module, shape)
    GroupNorms("f32").on_model(model)
    assert "GroupNormalization" in kinds(model)
