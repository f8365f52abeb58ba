"""Every split of the components, every task, changing sizes, run after run: diffusers' pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image, ImageDraw

import ovtensor
from ovtensor import Backend
from sdxl_scenes import SCENES

KINDS = ("torch", "openvino")
SPLITS = list(itertools.product(KINDS, KINDS, KINDS))
SIZES = ((128, 128), (192, 128), (128, 136), (128, 128))
TASKS = {
    "text2img": StableDiffusionXLPipeline,
    "img2img": StableDiffusionXLImg2ImgPipeline,
    "inpaint": StableDiffusionXLInpaintPipeline,
}


def own_pipeline(task, eager_pipeline):
    pipe = TASKS[task](**eager_pipeline.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, task, picture) -> list[np.ndarray]:
    """One picture for each size."""
    pictures = []
    for width, height in SIZES:
        given = picture.resize((width, height))
        mask = Image.new("L", given.size)
        ImageDraw.Draw(mask).rectangle((16, 16, 80, 80), fill=255)
        options = {
            "text2img": {"width": width, "height": height, "num_inference_steps": 2},
            "img2img": {"image": given, "strength": 0.5, "num_inference_steps": 4},
            "inpaint": {
                "image": given,
                "mask_image": mask,
                "strength": 0.5,
                "width": width,
                "height": height,
                "num_inference_steps": 4,
            },
        }
        generator = torch.Generator().manual_seed(1)
        output = pipe(SCENES[0].prompt, generator=generator, **options[task])
        pictures.append(np.asarray(output.images[0]))
    return pictures


@pytest.fixture(scope="module")
def picture(eager_pictures):
    return Image.fromarray(eager_pictures[0])


@pytest.fixture(scope="module")
def expected(eager_pipeline, picture):
    return {task: run(own_pipeline(task, eager_pipeline), task, picture) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("unet", "vae", "text"), SPLITS, ids=map("-".join, SPLITS))
def test_every_run_is_what_diffusers_draws(
    unet, vae, text, task, eager_pipeline, expected, picture, converted
):
    unet, vae, text = (Backend(kind, precision="f32") for kind in (unet, vae, text))
    with ovtensor.split_backends(
        own_pipeline(task, eager_pipeline),
        unet=unet, vae=vae, text_encoders=text, cache=converted,
    ) as pipe:  # fmt: skip
        runs = [run(pipe, task, picture)]
        compiles = pipe.ovtensor.report().to_dict()
        runs += [run(pipe, task, picture) for _ in range(2)]
        for name, row in pipe.ovtensor.report().to_dict().items():
            assert row["compiles"] == compiles[name]["compiles"]
    for one, two, three, eager in zip(*runs, expected[task], strict=True):
        assert np.abs(one.astype(int) - eager).max() <= 2
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    for again in runs:  # the first size came back as the last one
        np.testing.assert_array_equal(again[0], again[-1])
