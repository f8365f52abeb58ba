"""Every split of the components, every task, changing sizes, run after run: diffusers' pictures."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

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

pytestmark = pytest.mark.slow

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


def digest(split, task, picture, cache=None) -> tuple[str, set[str]]:
    """Two equal runs in a session of its own, and what its cache had for OpenVINO's components."""
    unet, vae, text = (Backend(kind, precision="f32") for kind in split)
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(),
        task=task, unet=unet, vae=vae, text_encoders=text, cache=cache, progress=False,
    ) as pipe:  # fmt: skip
        runs = [b"".join(p.tobytes() for p in run(pipe, task, picture)) for _ in range(2)]
        states = {row.cache for row in pipe.ovtensor.report() if row.backend == "openvino"}
    assert runs[0] == runs[1]
    return hashlib.sha256(runs[0]).hexdigest(), states


@pytest.mark.parametrize(
    ("split", "task"),
    [
        *((split, "text2img") for split in SPLITS if "openvino" in split),
        *((("openvino",) * 3, task) for task in ("img2img", "inpaint")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_every_run_is_the_same_with_the_cache_off_cold_warm_and_in_a_fresh_process(
    split, task, picture, tmp_path
):
    picture.save(tmp_path / "picture.png")
    off, _ = digest(split, task, picture)
    assert digest(split, task, picture, tmp_path / "cache") == (off, {"miss"})
    assert digest(split, task, picture, tmp_path / "cache") == (off, {"hit"})
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "support"), str(here.parents[1] / "tools")]
    code = f"""
        import sys
        sys.path[:0] = {paths!r}
        from pathlib import Path
        from PIL import Image
        from test_grid import digest
        folder = Path({str(tmp_path)!r})
        print(*digest({split!r}, {task!r}, Image.open(folder / "picture.png"), folder / "cache"))
    """
    fresh = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert fresh.stdout.split("\n")[-2] == f"{off} {{'hit'}}"
