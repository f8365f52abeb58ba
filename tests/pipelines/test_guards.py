"""Wrong numbers are told, not drawn: parity with torch, and NaN in latents and pixels."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

import ovtensor
from ovtensor import Backend
from ovtensor.cache import store
from ovtensor.engine import blobs, compiled, convert
from ovtensor.engine.copies import with_dtype
from ovtensor.engine.graph import GraphSpec
from ovtensor.engine.memory import MemoryPolicy
from ovtensor.engine.parity import demand_parity
from ovtensor.engine.plan import ConversionPlan
from ovtensor.engine.sources import ModuleSource
from ovtensor.errors import BackendError, ComponentError, NonFiniteError, ParityError
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
SCENE = SCENES[0]


def overflowing_vae(vae, factor: float):
    """A VAE that draws the same, but whose decoder's inner values are ``factor`` times as big.

    GroupNorm takes the factor out again, so that only the range of the numbers differs.
    """
    vae = copy.deepcopy(vae)
    with torch.no_grad():
        block = vae.decoder.up_blocks[-1].resnets[-1]
        block.conv1.weight *= factor
        block.conv1.bias *= factor
        block.norm2.eps *= factor**2
    return vae


@pytest.mark.parametrize("kind", ["torch"])
def test_a_vae_that_overflows_runs_once_more_in_f32(kind, eager_pipeline, eager_pictures):
    own = load()
    own.vae = overflowing_vae(own.vae, 1e5)
    assert np.abs(draw(own, SCENE).astype(int) - eager_pictures[0]).max() <= 2
    half = Backend(kind, precision="f16")
    with ovtensor.split_backends(own, unet="torch", vae=half) as pipe:
        with pytest.warns(UserWarning, match="vae_decoder gave NaN or infinity and runs once more"):
            picture = draw(pipe, SCENE)
        with pytest.warns(UserWarning, match="vae_decoder"):
            np.testing.assert_array_equal(draw(pipe, SCENE), picture)
    assert np.abs(picture.astype(int) - eager_pictures[0]).max() <= 3


def test_a_narrow_vae_of_a_narrow_pipeline_runs_once_more_too():
    own = load(torch.float16)
    own.vae.register_to_config(force_upcast=False)  # or diffusers widens it by itself
    expected = draw(own, SCENE)
    own.vae = overflowing_vae(own.vae, 1e5)
    with ovtensor.split_backends(own, unet="torch", vae="torch") as pipe:
        assert pipe.ovtensor.report().to_dict()["vae"]["precision"] == "f16"
        with pytest.warns(UserWarning, match="vae_decoder gave NaN or infinity and runs once more"):
            picture = draw(pipe, SCENE)
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_a_compiled_vae_that_overflows_is_compiled_in_f32(eager_pipeline, monkeypatch, need):
    """As with f16 on a GPU, which is not here: the first result of the decoder is made NaN."""
    need("nncf")
    narrow = dataclasses.replace(F32, weights="int8")
    infer, calls = compiled._Requests.infer, []

    def overflows_first(self, arrays):
        calls.append([array.shape for array in arrays])
        results = infer(self, arrays)
        return [result * np.inf for result in results] if len(calls) == 1 else results

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = eager_pipeline.vae.decode(latents).sample.detach()
    with ovtensor.split_backends(eager_pipeline, unet="torch", vae=narrow, verify=False) as pipe:
        monkeypatch.setattr(compiled._Requests, "infer", overflows_first)
        with pytest.warns(UserWarning, match="runs once more in float32"):
            pixels = pipe.vae.decode(latents).sample
        compressed = pipe.vae.decode(latents).sample
        compiles = pipe.ovtensor.report().to_dict()["vae"]["compiles"]
    assert calls == [[(1, 4, 8, 8)]] * 3
    assert compiles == 2
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-4)  # of whole weights
    assert not torch.allclose(compressed, expected, rtol=0, atol=1e-4)


def broken(module, value=float("nan")):
    """A copy of a module, one of whose last weights is NaN."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        list(module.parameters())[-1][0] = value
    return module


@pytest.mark.parametrize("backend", ["torch", F32], ids=["torch", "openvino"])
def test_a_broken_vae_is_named(backend):
    own = load()
    own.vae.decoder = broken(own.vae.decoder)
    with (
        ovtensor.split_backends(own, unet="torch", vae=backend) as pipe,
        pytest.raises(NonFiniteError, match="vae_decoder gave NaN or infinity in float32"),
    ):
        draw(pipe, SCENE, num_inference_steps=1)


@pytest.mark.parametrize("backend", ["torch", F32], ids=["torch", "openvino"])
def test_a_broken_unet_is_named_with_its_step(backend):
    own = load()
    own.unet = broken(own.unet)
    with (
        ovtensor.split_backends(own, unet=backend) as pipe,
        pytest.raises(NonFiniteError, match=r"the unet gave NaN .* at step 1 of 3 \(timestep \d"),
    ):
        draw(pipe, SCENE, num_inference_steps=3)


def test_nan_at_a_later_step_names_that_step(eager_pipeline):
    def spoil(_pipe, step, _timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")} if step == 1 else {}

    with (
        ovtensor.split_backends(eager_pipeline, unet="torch") as pipe,
        pytest.raises(NonFiniteError, match="at step 3 of 4"),
    ):
        draw(pipe, SCENE, num_inference_steps=4, callback_on_step_end=spoil)


def test_broken_latents_are_not_blamed_on_the_vae(eager_pipeline):
    with (
        ovtensor.split_backends(eager_pipeline, unet="torch") as pipe,
        pytest.raises(NonFiniteError, match="the latents that vae_decoder was given"),
    ):
        pipe.vae.decode(torch.full((1, 4, 4, 4), float("nan")))


def test_a_broken_text_encoder_is_named():
    own = load()
    own.text_encoder_2 = broken(own.text_encoder_2)
    with (
        ovtensor.split_backends(own, unet="torch", text_encoders=F32) as pipe,
        pytest.raises(NonFiniteError, match="text_encoder_2 gave NaN"),
    ):
        pipe.encode_prompt(SCENE.prompt)


def test_a_component_that_computes_something_else_is_refused(eager_pipeline, tmp_path, monkeypatch):
    """As a device with a faulty kernel would do; there is none here, so the weights are changed."""
    convert_graph, components = convert.convert, dict(eager_pipeline.components)
    changed = []  # alive until the model is written, as the right one is

    def convert_something_else(graph):
        changed.append(with_dtype(graph.module, torch.float32, own=True))
        with torch.no_grad():
            changed[-1].unet.conv_out.weight[0] *= -1  # the sign of one of four channels
        return convert_graph(dataclasses.replace(graph, module=changed[-1]))

    monkeypatch.setattr(convert, "convert", convert_something_else)
    monkeypatch.setattr(store, "temporary_folder", lambda: tmp_path)
    with pytest.raises(
        ParityError, match=r"unet on CPU in f32 .* cosine similarity of 0\.\d+ \(wanted 0\.9999\)"
    ):
        ovtensor.split_backends(eager_pipeline, unet=F32, verify=True).__enter__()
    assert eager_pipeline.components == components
    assert not [*tmp_path.iterdir()]
    with ovtensor.split_backends(eager_pipeline, unet=F32):  # f32 is not verified by itself
        pass


def plan(precision):
    spec = GraphSpec("unet", ModuleSource(torch.nn.Linear(1, 1)), None)
    backend = Backend("openvino", precision=precision)
    return ConversionPlan.of(spec, backend, verify=None, memory=MemoryPolicy())


def test_what_parity_says():
    right = (torch.ones(3), torch.tensor([1.0, 2.0, -3.0]))
    f32 = plan("f32")
    bf16 = dataclasses.replace(f32, precision="bf16")
    demand_parity(f32, right, right)
    demand_parity(bf16, right, (right[0], right[1] + 0.1))
    with pytest.raises(ParityError, match=r"output 1 .* maximum error of 0\.1 .* reach 3"):
        demand_parity(f32, right, (right[0], right[1] + 0.1))
    with pytest.raises(ParityError, match="cosine similarity of nan"):
        demand_parity(bf16, right, (right[0], right[1] * float("nan")))
    with pytest.raises(ParityError, match="output 0"):
        demand_parity(bf16, right, (-right[0], right[1]))
    zeros = (torch.zeros(2),)
    demand_parity(f32, zeros, zeros)
    with pytest.raises(ParityError):
        demand_parity(f32, zeros, (torch.ones(2),))


def test_int8_weights(eager_pipeline, need, tmp_path):
    need("nncf")
    int8 = dataclasses.replace(F32, weights="int8")
    rows = {}
    for name, unet in (("f32", F32), ("int8", int8)):
        with ovtensor.split_backends(eager_pipeline, unet=unet, cache=tmp_path) as pipe:
            rows[name] = pipe.ovtensor.report()[-1]
            latents = pipe(SCENE.prompt, num_inference_steps=2, output_type="latent").images
            assert torch.isfinite(latents).all()
    assert rows["int8"].cache == "miss"
    assert rows["int8"].weight_bytes < 0.5 * rows["f32"].weight_bytes


def test_options_that_torch_does_not_have():
    for options in ({"weights": "int8"}, {"static_shapes": True}):
        with pytest.raises(BackendError, match="are OpenVINO's"):
            Backend("torch", **options)
    with pytest.raises(BackendError, match=r"weights='int4' is no compression"):
        Backend("openvino", weights="int4")


def test_another_device_than_the_one_asked_for_is_an_error(eager_pipeline, monkeypatch):
    monkeypatch.setattr(blobs, "execution_devices", lambda _compiled: ["GPU.0"])
    with pytest.raises(ComponentError, match=r"would run unet on GPU\.0 and not on CPU"):
        ovtensor.split_backends(eager_pipeline, unet=F32).__enter__()
