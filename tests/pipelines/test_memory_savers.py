"""What a pipeline was told to save memory with, or to draw with, before it was split."""

from __future__ import annotations

import numpy as np
import pytest

import ovtensor
from ovtensor import Backend
from ovtensor.errors import ComponentError
from sdxl_scenes import SCENES, draw, load

F32 = Backend("openvino", precision="f32")


@pytest.mark.slow
@pytest.mark.parametrize("slices", ["auto", "max"])
def test_sliced_attention_draws_what_plain_attention_does(slices, eager_pipeline):
    """It only saves memory, and the number of slices is that of the traced example."""
    calls = [{"guidance_scale": 0.0}, {}, {"num_images_per_prompt": 2}, {"width": 136}]
    calls = [call | {"num_inference_steps": 2} for call in calls]
    expected = [draw(eager_pipeline, SCENES[0], **call) for call in calls]
    own = load()
    own.enable_attention_slicing(slices)
    processors = dict(own.unet.attn_processors)
    with ovtensor.split_backends(own, unet=F32, vae=F32, progress=False) as pipe:
        pictures = [draw(pipe, SCENES[0], **call) for call in calls]
    for picture, eager in zip(pictures, expected, strict=True):
        assert np.abs(picture.astype(int) - eager.astype(int)).max() <= 2
    assert dict(own.unet.attn_processors) == processors


def test_freeu_is_refused_by_name_before_anything_is_converted():
    own = load()
    own.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(ComponentError, match=r"unet .* FreeU is on.*disable_freeu"):
        ovtensor.split_backends(own, unet=F32, progress=False).__enter__()
    own.disable_freeu()
    with ovtensor.split_backends(own, unet=F32, progress=False) as pipe:
        draw(pipe, SCENES[0], num_inference_steps=1)
