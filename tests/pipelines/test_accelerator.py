"""Pipelines whose torch components are in the memory of another device than the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

import ovtensor
from ovtensor import Backend
from sdxl_scenes import SCENES, draw, load

# A build of torch can name an accelerator that this machine lacks.
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None

pytestmark = pytest.mark.skipif(DEVICE is None, reason="torch has no accelerator here")

F32 = Backend("openvino", precision="f32")
TORCH = dict.fromkeys(("unet", "vae", "text_encoders"), "torch")
SPLITS = {
    "unet": {"unet": F32},
    "vae": {"vae": F32},
    "text encoders": {"text_encoders": F32},
    "all": dict.fromkeys(TORCH, F32),
    "torch in float32": dict.fromkeys(TORCH, Backend("torch", precision="f32")),
}


def where(pipe):
    """Every module of a pipeline, with the device and dtype of its weights."""
    return {
        name: (part, {(weight.device.type, weight.dtype) for weight in part.parameters()})
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }


def levels(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other)).max()


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("split", SPLITS)
def test_each_component_on_openvino(split, dtype):
    own = load(dtype).to(DEVICE)
    before = where(own)
    expected = draw(own, SCENES[0], num_inference_steps=4)
    with ovtensor.split_backends(own, **(TORCH | SPLITS[split]), progress=False) as pipe:
        assert pipe._execution_device.type == DEVICE.type
        found = draw(pipe, SCENES[0], num_inference_steps=4)
        np.testing.assert_array_equal(draw(pipe, SCENES[0], num_inference_steps=4), found)
        devices = {row.component: row.execution_devices for row in pipe.ovtensor.report()}
    for name, (here,) in devices.items():
        argument = name if name in TORCH else "text_encoders"
        on_openvino = SPLITS[split].get(argument) is F32
        assert here == "CPU" if on_openvino else here.startswith(DEVICE.type)
    assert levels(found, expected) <= (2 if dtype == torch.float32 else 4)
    assert where(own) == before


@pytest.mark.parametrize("split", ["unet", "vae", "all"])
def test_an_attached_pipeline_is_moved(split, eager_pictures):
    kinds = TORCH | SPLITS[split]
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds, progress=False) as pipe:
        for device in (DEVICE, torch.device("cpu")):
            pipe.to(device)
            assert pipe._execution_device.type == device.type
            assert levels(draw(pipe, SCENES[0]), eager_pictures[0]) <= 2


def test_weights_in_another_precision_stay_where_they_are():
    """They are no part of the pipeline, which takes along what it has."""
    bf16 = TORCH | {"unet": Backend("torch", precision="bf16")}
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **bf16, progress=False) as pipe:
        expected = draw(pipe, SCENES[0], num_inference_steps=4)
        pipe.to(DEVICE)
        assert levels(draw(pipe, SCENES[0], num_inference_steps=4), expected) <= 8  # 6 were seen


def test_pictures_are_encoded():
    own = StableDiffusionXLImg2ImgPipeline.from_pipe(load().to(DEVICE))
    options = {"image": torch.zeros(1, 3, 64, 64), "strength": 0.6, "num_inference_steps": 5}
    expected = draw(own, SCENES[0], **options)
    with ovtensor.split_backends(own, unet=F32, vae=F32, progress=False) as pipe:
        assert levels(draw(pipe, SCENES[0], **options), expected) <= 2


def test_weights_of_the_device_are_told_apart_in_a_cache(tmp_path):
    def state(pipe) -> str:
        with ovtensor.split_backends(pipe, unet=F32, cache=tmp_path, progress=False) as split:
            return {row.component: row.cache for row in split.ovtensor.report()}["unet"]

    own = load().to(DEVICE)
    assert [state(own), state(own), state(load())] == ["miss", "hit", "hit"]
    with torch.no_grad():
        own.unet.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert state(own) == "miss"


@pytest.mark.parametrize("split", ["unet", "vae", "text encoders", "all"])
def test_what_is_offloaded_computes_on_the_device(split):
    own = load()
    own.enable_model_cpu_offload(device=DEVICE)
    expected = draw(own, SCENES[0], num_inference_steps=4)
    with ovtensor.split_backends(own, **(TORCH | SPLITS[split]), progress=False) as pipe:
        for _ in range(2):
            assert pipe._execution_device.type == DEVICE.type
            assert levels(draw(pipe, SCENES[0], num_inference_steps=4), expected) <= 2
    np.testing.assert_array_equal(draw(own, SCENES[0], num_inference_steps=4), expected)
