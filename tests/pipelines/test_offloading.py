"""Pipelines whose modules accelerate moves to a device and back. Here that is the CPU too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload, ModelHook, add_hook_to_module

import ovtensor
from ovtensor import Backend
from ovtensor.engine.copies import not_offloaded
from ovtensor.errors import DatalessTensorError
from ovtensor.pipelines import components
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
TORCH = dict.fromkeys(("unet", "vae", "text_encoders"), "torch")
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def offloaded():
    pipe = load()
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def hooks(pipe):
    return [type(getattr(pipe, name)._hf_hook) for name in COMPONENTS]


def levels(one, other):
    return np.abs(one.astype(int) - other).max()


@pytest.mark.parametrize("component", TORCH)
def test_each_component_on_openvino(component, offloaded, eager_pictures, tmp_path):
    modules = {name: getattr(offloaded, name) for name in COMPONENTS}
    for state in ("miss", "hit"):
        kinds = TORCH | {component: F32}
        with ovtensor.split_backends(offloaded, **kinds, cache=tmp_path, progress=False) as pipe:
            for _ in range(2):
                assert levels(draw(pipe, SCENES[0]), eager_pictures[0]) <= 1
            assert {row.cache for row in pipe.ovtensor.report()} == {state, "off"}
        assert {name: getattr(offloaded, name) for name in COMPONENTS} == modules
        assert hooks(offloaded) == [CpuOffload] * 4
        assert offloaded.unet._hf_hook.prev_module_hook.model is offloaded.text_encoder_2
        np.testing.assert_array_equal(draw(offloaded, SCENES[0]), eager_pictures[0])


def test_everything_on_openvino_and_offloaded_inside(eager_pictures):
    kinds = dict.fromkeys(TORCH, F32)
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds, progress=False) as pipe:
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert levels(draw(pipe, SCENES[0]), eager_pictures[0]) <= 1


def test_a_session_that_does_not_open_leaves_it_offloaded(offloaded, eager_pictures, monkeypatch):
    build = components.Builder.build

    def fails(self, name, *args, **kwargs):
        if name == "text_encoder":
            raise MemoryError
        return build(self, name, *args, **kwargs)

    monkeypatch.setattr(components.Builder, "build", fails)
    with pytest.raises(MemoryError):
        ovtensor.split_backends(offloaded, unet=F32, progress=False).__enter__()
    assert hooks(offloaded) == [CpuOffload] * 4
    np.testing.assert_array_equal(draw(offloaded, SCENES[0]), eager_pictures[0])


def test_what_is_no_offloading_stays(offloaded):
    unet = offloaded.unet
    bare = not_offloaded(unet)
    assert not {"forward", "_hf_hook", "_old_forward"} & set(vars(bare))
    assert bare.conv_in is unet.conv_in
    assert "forward" in vars(unet)
    unet._old_forward = lambda *_: None  # of somebody's own, below the hook
    assert not_offloaded(unet) is unet
    linear = torch.nn.Linear(1, 1)
    assert not_offloaded(linear) is linear
    hooked = add_hook_to_module(linear, ModelHook())  # which may compute something
    assert not_offloaded(hooked) is hooked


def test_sequential_offloading_has_to_be_taken_back(eager_pictures):
    pipe = load()
    pipe.enable_sequential_cpu_offload(device="cpu")
    session = ovtensor.split_backends(pipe, unet=F32, progress=False)
    with pytest.raises(DatalessTensorError, match=r"remove_all_hooks\(\) brings back"):
        session.__enter__()
    pipe.remove_all_hooks()
    with ovtensor.split_backends(pipe, unet=F32, progress=False) as split:
        assert levels(draw(split, SCENES[0]), eager_pictures[0]) <= 1
