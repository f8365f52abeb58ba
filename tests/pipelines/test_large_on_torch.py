"""Weights of torch components that would take much of the memory: in a file instead."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

import ovtensor
from child import needs_proc, numbers
from ovtensor import Backend, MemoryPolicy
from ovtensor.pipelines import components
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
BF16 = Backend("torch", precision="bf16")
# Little enough memory for every component to be a large one.
SCARCE = MemoryPolicy(file_weights=0)
TORCH = {
    "unet": "torch",
    "vae": "torch",
    "text_encoders": "torch",
    "progress": False,
    "memory": SCARCE,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The embedded model in float32."""
    folder = tmp_path_factory.mktemp("saved")
    load().save_pretrained(folder)
    return folder


@pytest.fixture
def released(monkeypatch):
    """The bytes that moved to files."""
    moved = []
    release = components.release_weights

    def watched(module):
        moved.append(release(module))
        return moved[-1]

    monkeypatch.setattr(components, "release_weights", watched)
    return moved


# Anonymous memory that goes with a session, in one where the UNet is no large component and in
# one where it is; and whether both drew the same.
_MEMORY = """
    import sys, torch, ovtensor
    import numpy as np
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from ovtensor import Backend, MemoryPolicy

    own = StableDiffusionXLPipeline.from_pretrained(ovtensor.tiny_sdxl_path())
    config = {**own.unet.config, "block_out_channels": (160, 320, 320), "attention_head_dim": 20}
    own.unet = UNet2DConditionModel.from_config(config).eval()
    own.to(torch.float16).save_pretrained(sys.argv[1])
    size = 2 * sum(parameter.numel() for parameter in own.unet.parameters())
    del own
    kinds = dict(unet=Backend("torch", precision="bf16"), vae="torch", text_encoders="torch")

    def session(memory=None):
        with ovtensor.sdxl_pipeline(sys.argv[1], **kinds, progress=False, memory=memory) as pipe:
            noise = torch.Generator().manual_seed(1)
            image = pipe("a small red circle", num_inference_steps=1, generator=noise).images[0]
            drawn = anonymous()
        return drawn - anonymous(), np.asarray(image)

    session()  # what every session needs
    in_memory, expected = session()
    # Of such a machine the UNet is more than a fifth, and nothing else is.
    in_file, picture = session(MemoryPolicy(limit=5 * size - 1))
    print(size, in_memory, in_file, int((picture == expected).all()))
"""


@needs_proc
def test_they_take_no_memory_that_cannot_be_dropped(tmp_path):
    size, in_memory, in_file, equal = numbers(_MEMORY, 4, tmp_path)
    assert size > 50 * 2**20
    assert in_memory - in_file > size / 2  # 0.84 to 1.0 were seen, 0.2 if nothing moves
    assert equal


def test_what_was_cast_moves_and_what_is_mapped_does_not(saved, released):
    size = 2 * sum(parameter.numel() for parameter in load().unet.parameters())
    with ovtensor.sdxl_pipeline(saved, **TORCH | {"unet": BF16}) as pipe:
        draw(pipe, SCENES[0], num_inference_steps=1)
    assert released == [size]


def test_what_a_lora_changed_moves_too(saved, released):
    pytest.importorskip("peft")
    unet = load().unet
    name = next(
        key.removesuffix(".weight") for key in unet.state_dict() if key.endswith("to_q.weight")
    )
    size = unet.get_submodule(name).in_features
    change = {
        f"unet.{name}.lora_A.weight": torch.ones(1, size),
        f"unet.{name}.lora_B.weight": torch.ones(size, 1),
    }
    with ovtensor.sdxl_pipeline(saved, **TORCH, loras=[(change, 0.5)]) as pipe:
        changed = pipe.unet.get_parameter(f"{name}.weight")
        torch.testing.assert_close(changed, unet.get_parameter(f"{name}.weight") + 0.5)
    assert len(released) == 1


def test_a_pipeline_of_the_caller_is_left_alone(released):
    own = load()
    addresses = [parameter.data_ptr() for parameter in own.unet.parameters()]
    with ovtensor.split_backends(own, **TORCH | {"unet": BF16, "vae": F32}) as pipe:
        draw(pipe, SCENES[0], num_inference_steps=1)
    assert not released
    assert [parameter.data_ptr() for parameter in own.unet.parameters()] == addresses


def test_they_stay_in_memory_where_no_file_can_be_written(saved, released, monkeypatch):
    with ovtensor.sdxl_pipeline(saved, **TORCH | {"unet": BF16}) as pipe:
        expected = draw(pipe, SCENES[0], num_inference_steps=4)
    assert released

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(components, "release_weights", full)
    with (
        pytest.warns(RuntimeWarning, match="weights of unet, .* stay in memory.*No space left"),
        ovtensor.sdxl_pipeline(saved, **TORCH | {"unet": BF16}) as pipe,
    ):
        picture = draw(pipe, SCENES[0], num_inference_steps=4)
    np.testing.assert_array_equal(picture, expected)
