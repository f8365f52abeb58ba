"""Every task, schedule and size through a session, against diffusers itself."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from PIL import Image, ImageDraw

import ovtensor
from ovtensor import Backend
from ovtensor.errors import InputError
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
ALL = {"unet": F32, "vae": F32, "text_encoders": F32}
PROMPT = SCENES[0].prompt


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_pictures(result, expected):
    for one, two in zip(result, expected, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(two)).max() <= 2


@pytest.fixture(scope="module")
def picture(eager_pictures):
    return Image.fromarray(eager_pictures[0])


@pytest.fixture(scope="module")
def mask():
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((16, 16, 80, 80), fill=255)
    return mask


@pytest.mark.parametrize("task", ["img2img", StableDiffusionXLImg2ImgPipeline])
def test_image_to_image(task, eager_pipeline, picture, converted):
    options = {"image": picture, "strength": 0.6, "num_inference_steps": 10}
    own = StableDiffusionXLImg2ImgPipeline.from_pipe(eager_pipeline)
    own.set_progress_bar_config(disable=True)
    expected = own(PROMPT, generator=seeded(), **options).images
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), task=task, progress=False, cache=converted, **ALL
    ) as pipe:
        assert isinstance(pipe, StableDiffusionXLImg2ImgPipeline)
        compiles = [row.compiles for row in pipe.ovtensor.report()]
        for _ in range(2):
            assert_same_pictures(pipe(PROMPT, generator=seeded(), **options).images, expected)
        assert [row.compiles for row in pipe.ovtensor.report()] == compiles
        assert compiles == [2, 1, 1, 1]  # the VAE's encoder was made ready with the rest


def test_inpainting(eager_pipeline, picture, mask, converted):
    options = {"image": picture, "mask_image": mask, "strength": 0.9, "num_inference_steps": 6}
    options |= {"width": 128, "height": 128}
    own = StableDiffusionXLInpaintPipeline.from_pipe(eager_pipeline)
    own.set_progress_bar_config(disable=True)
    expected = own(PROMPT, generator=seeded(), **options).images
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), task="inpaint", progress=False, cache=converted, **ALL
    ) as pipe:
        for _ in range(2):
            assert_same_pictures(pipe(PROMPT, generator=seeded(), **options).images, expected)


def test_base_and_refiner_share_the_steps(eager_pipeline, refiner, converted):
    def run(base, refining):
        latents = base(
            PROMPT,
            num_inference_steps=10,
            denoising_end=0.6,
            output_type="latent",
            generator=seeded(),
        ).images
        return refining(
            PROMPT,
            image=latents,
            num_inference_steps=10,
            denoising_start=0.6,
            generator=seeded(),
            output_type="pt",
        ).images

    own = StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner)
    own.set_progress_bar_config(disable=True)
    expected = run(eager_pipeline, own)
    with (
        ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), progress=False, cache=converted, **ALL
        ) as base,
        ovtensor.sdxl_pipeline(
            refiner, task="refiner", progress=False, cache=converted, **ALL
        ) as pipe,
    ):
        assert [row.component for row in pipe.ovtensor.report()] == [
            "vae",
            "text_encoder_2",
            "unet",
        ]
        results = [run(base, pipe) for _ in range(2)]
    torch.testing.assert_close(results[0], expected, rtol=0, atol=2 / 255)
    assert torch.equal(results[0], results[1])


def test_tasks_that_are_none(eager_pipeline):
    with pytest.raises(InputError, match=r"task='upscale' is no task; give one of 'text2img'"):
        ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), task="upscale")
    with pytest.raises(InputError, match="is no task"):
        ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), task=torch.nn.Linear)
    with pytest.raises(InputError, match=r"StableDiffusionXLInpaintPipeline\.from_pipe\(pipe\)"):
        ovtensor.sdxl_pipeline(eager_pipeline, task="inpaint").__enter__()
    assert not hasattr(eager_pipeline, "ovtensor")


def distilled() -> StableDiffusionXLPipeline:
    """A pipeline whose UNet takes guidance as an input, as latent consistency models do."""
    pipe = load()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**pipe.unet.config, "time_cond_proj_dim": 32})
    unet.load_state_dict(pipe.unet.state_dict(), strict=False)
    pipe.unet = unet.eval()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


@contextlib.contextmanager
def scheduled(pipe, scheduler):
    own, pipe.scheduler = pipe.scheduler, scheduler
    try:
        yield pipe
    finally:
        pipe.scheduler = own


def test_a_latent_consistency_model(converted):
    own = distilled()
    options = {"num_inference_steps": 4, "guidance_scale": 4.0}
    expected = own(PROMPT, generator=seeded(), **options).images
    stronger = own(PROMPT, generator=seeded(), num_inference_steps=4, guidance_scale=9.0).images
    assert np.abs(np.asarray(stronger[0]).astype(int) - np.asarray(expected[0])).max() > 2
    with ovtensor.split_backends(own, cache=converted, **ALL) as pipe:
        for _ in range(2):
            assert_same_pictures(pipe(PROMPT, generator=seeded(), **options).images, expected)


SCHEDULERS = {
    "turbo": (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}, 0.0, 2),
    "lightning": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, 0.0, 4),
    "dpm++ 2m karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, 5.0, 6),
    "unipc": (UniPCMultistepScheduler, {}, 5.0, 6),
    "heun": (HeunDiscreteScheduler, {}, 5.0, 4),
    "lms": (LMSDiscreteScheduler, {}, 5.0, 6),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}, 5.0, 6),
}


class _StopError(Exception):
    pass


@pytest.fixture(scope="module")
def split(converted):
    """An own pipeline inside a session for the tests of this module."""
    with ovtensor.split_backends(load(), cache=converted, **ALL) as pipe:
        yield pipe


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_as_new_after_a_run_and_after_an_error(name, eager_pipeline, split):
    kind, config, guidance, steps = SCHEDULERS[name]
    options = {"num_inference_steps": steps, "guidance_scale": guidance}

    def stop(_pipe, step, _timestep, _tensors):
        if step == steps // 2:
            raise _StopError
        return {}

    scheduler = kind.from_config(eager_pipeline.scheduler.config, **config)
    with scheduled(eager_pipeline, scheduler):
        expected = eager_pipeline(PROMPT, generator=seeded(), **options).images
    with scheduled(split, kind.from_config(split.scheduler.config, **config)):
        first = split(PROMPT, generator=seeded(), **options).images
        with pytest.raises(_StopError):
            split(PROMPT, generator=seeded(), callback_on_step_end=stop, **options)
        again = split(PROMPT, generator=seeded(), **options).images
    assert_same_pictures(first, expected)
    np.testing.assert_array_equal(np.asarray(again[0]), np.asarray(first[0]))


def long_embeddings(pipe, repeats: int) -> dict[str, torch.Tensor]:
    text, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT)
    return {
        "prompt_embeds": torch.cat([text] * repeats, dim=1),
        "negative_prompt_embeds": torch.cat([negative] * repeats, dim=1),
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }


def changing_sizes(pipe) -> list:
    """What a user does in an evening: sizes, batches, tokens and guidance up and down."""
    calls = [
        {"prompt": PROMPT},
        {"prompt": PROMPT, "width": 192, "height": 128},
        {"prompt": PROMPT},
        {"prompt": [PROMPT, SCENES[1].prompt]},
        {"prompt": PROMPT, "num_images_per_prompt": 3},
        long_embeddings(pipe, 2),
        long_embeddings(pipe, 3),
        {"prompt": PROMPT, "guidance_scale": 1.0},
        {"prompt": PROMPT},
    ]
    return [
        pipe(num_inference_steps=2, output_type="pt", generator=seeded(), **call).images
        for call in calls
    ]


def test_sizes_change_freely(eager_pipeline, split):
    before = [row.compiles for row in split.ovtensor.report()]
    results = changing_sizes(split)
    assert [row.compiles for row in split.ovtensor.report()] == before
    for result, expected in zip(results, changing_sizes(eager_pipeline), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
    for same in (results[2], results[-1]):
        assert torch.equal(same, results[0])


def test_static_shapes_keep_the_four_last_used(eager_pipeline, converted):
    static = Backend("openvino", precision="f32", static_shapes=True)
    with ovtensor.split_backends(
        eager_pipeline, unet=static, vae=static, text_encoders=static, cache=converted
    ) as pipe:

        def compiles() -> int:
            return next(row.compiles for row in pipe.ovtensor.report() if row.component == "unet")

        def run(width: int):
            return pipe(
                PROMPT, num_inference_steps=2, width=width, height=128, output_type="pt",
                generator=seeded(),
            ).images  # fmt: skip

        assert compiles() == 0
        first = run(128)
        assert compiles() == 1
        for width in (136, 144, 152):  # with the first one these are four
            run(width)
        assert torch.equal(run(128), first)
        assert compiles() == 4
        run(160)  # the least recently used one goes: 136
        run(128)
        assert compiles() == 5
        run(136)
        assert compiles() == 6
    expected = eager_pipeline(
        PROMPT, num_inference_steps=2, output_type="pt", generator=seeded()
    ).images
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_slicing_and_tiling_are_diffusers_own(kind, eager_pipeline, converted):
    def run(pipe):
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()
        try:
            return [
                draw(pipe, SCENES[3], num_inference_steps=2, width=256, height=192),
                *map(np.asarray, pipe([PROMPT] * 2, num_inference_steps=1, generator=seeded())[0]),
            ]
        finally:
            pipe.vae.disable_tiling()
            pipe.vae.disable_slicing()

    expected = run(eager_pipeline)
    vae = Backend(kind, precision="f32")
    with ovtensor.split_backends(eager_pipeline, unet=F32, vae=vae, cache=converted) as pipe:
        result = run(pipe)
    assert_same_pictures(result, expected)


def test_text_encoders_may_be_gone(eager_pipeline, converted):
    embeddings = long_embeddings(eager_pipeline, 1)
    options = {"num_inference_steps": 2, "generator": seeded(), **embeddings}
    expected = eager_pipeline(**options).images
    parts = {**eager_pipeline.components, "text_encoder": None, "text_encoder_2": None}
    bare = StableDiffusionXLPipeline(**parts)
    bare.set_progress_bar_config(disable=True)
    with ovtensor.split_backends(bare, cache=converted, **ALL) as pipe:
        options["generator"] = seeded()
        assert_same_pictures(pipe(**options).images, expected)
    assert bare.text_encoder is None
