"""Stable Diffusion 1.5, 2.x and LCM: what holds for SDXL holds for every family, by its row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image

import ovtensor
import sd_models
from ovtensor import Backend, cli
from ovtensor.errors import InputError
from sdxl_scenes import SCENES, draw

pytestmark = pytest.mark.slow

PARTS = ("unet", "vae", "text_encoders")
SPLITS = [
    {part: "openvino" if number >> index & 1 else "torch" for index, part in enumerate(PARTS)}
    for number in range(8)
]


def f32(kind: str) -> Backend:
    return Backend(kind, precision="f32")


@pytest.fixture(scope="module", params=sorted(sd_models.FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return sd_models.save(family, tmp_path_factory.mktemp(family))


def call(pipe, family, **options):
    """One picture, with what the kind of pipeline wants besides a prompt."""
    options = {
        "prompt": sd_models.PROMPTS[0],
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(3),
        **options,
    }
    if family == "sd15-inpaint":
        picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
        mask = np.zeros((128, 128), np.uint8)
        mask[:64] = 255
        options |= {"image": Image.fromarray(picture), "mask_image": Image.fromarray(mask)}
        options |= {"width": 128, "height": 128}
    return np.asarray(pipe(**options).images[0]).astype(int)


@pytest.fixture(scope="module")
def eager(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: "-".join(v[0] for v in split.values()))
def test_every_split_draws_what_diffusers_draws_and_run_two_is_run_one(
    family, folder, eager, split
):
    if family != "sd15" and len(set(split.values())) == 2:
        pytest.skip("every split of one family; of the others all on torch and all on OpenVINO")
    backends = {part: f32(kind) for part, kind in split.items()}
    expected = call(eager, family)
    with ovtensor.pipeline(folder, backends=backends, progress=False) as pipe:
        assert isinstance(pipe, type(eager))
        first, second = call(pipe, family), call(pipe, family)
        rows = {row.component: row.backend for row in pipe.ovtensor.report()}
    assert np.abs(first - expected).max() <= 4
    np.testing.assert_array_equal(second, first)
    assert rows == {
        "unet": split["unet"],
        "vae": split["vae"],
        "text_encoder": split["text_encoders"],
    }
    assert first.std() > 5, "a flat picture shows nothing"


def test_a_loaded_pipeline_is_split_at_changing_sizes_and_not_touched(family, eager):
    sizes = [{"width": 128, "height": 128}, {"width": 192, "height": 136}, {"guidance_scale": 1.0}]
    if family == "sd15-inpaint":
        sizes = sizes[::2]
    expected = [call(eager, family, **size) for size in sizes]
    before, attributes = dict(eager.components), dict(vars(eager))
    everything = dict.fromkeys(PARTS, f32("openvino"))
    with ovtensor.pipeline(eager, backends=everything, verify=True, progress=False) as pipe:
        pictures = [call(pipe, family, **size) for size in sizes]
        assert vars(eager) == attributes
    for picture, eager_picture in zip(pictures, expected, strict=True):
        assert np.abs(picture - eager_picture).max() <= 4
    assert eager.components == before


def test_the_cache_is_hit_by_the_same_model_and_missed_by_another(family, folder, tmp_path):
    def states(model):
        everything = dict.fromkeys(PARTS, f32("openvino"))
        with ovtensor.pipeline(
            model, backends=everything, cache=tmp_path / "cache", progress=False
        ) as pipe:
            return {row.cache for row in pipe.ovtensor.report()}, call(pipe, family)

    (cold, one), (warm, two) = states(folder), states(folder)
    assert (cold, warm) == ({"miss"}, {"hit"})
    np.testing.assert_array_equal(one, two)
    other = sd_models.save(family, tmp_path / "other", seed=1)
    assert states(other)[0] == {"miss"}


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return sd_models.save("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_a_task_is_drawn_as_diffusers_draws_it(task, sd15):
    picture = np.random.default_rng(1).integers(0, 255, (128, 128, 3), np.uint8)
    options = {"image": Image.fromarray(picture), "strength": 0.7, "num_inference_steps": 6}
    if task == "inpaint":
        options["mask_image"] = Image.fromarray(picture[..., 0] // 128 * 255)
    everything = dict.fromkeys(PARTS, f32("openvino"))
    with ovtensor.pipeline(sd15, task=task, backends=everything, progress=False) as pipe:
        drawn = call(pipe, task, **options)
        kind = type(pipe).__mro__[2]
    own = kind.from_pretrained(sd15, dtype=torch.float32)
    own.set_progress_bar_config(disable=True)
    assert np.abs(drawn - call(own, task, **options)).max() <= 4


def test_a_task_that_a_family_does_not_have_is_refused(sd15):
    with pytest.raises(InputError, match=r"1\.5 and 2 has no task 'refiner'; it has 'text2img'"):
        ovtensor.pipeline(sd15, task="refiner", progress=False).__enter__()


def test_skipped_layers_of_the_text_encoder_are_those_of_torch(sd15):
    from_folder = dict.fromkeys(PARTS, f32("openvino"))
    with ovtensor.pipeline(sd15, backends=from_folder, progress=False) as pipe:
        results = [
            pipe.encode_prompt("a circle", "cpu", 1, False, clip_skip=skip)[0] for skip in (1, 2)
        ]
    encoder = sd_models.build("sd15")
    ids = encoder.tokenizer(
        "a circle", padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        states = encoder.text_encoder(ids, output_hidden_states=True).hidden_states
        for skip, result in zip((1, 2), results, strict=True):
            expected = encoder.text_encoder.final_layer_norm(states[-(skip + 1)])
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_a_lora_changes_the_picture_as_in_diffusers(sd15, need):
    need("peft")
    state = sd_models.lora(sd_models.build("sd15"))
    everything = dict.fromkeys(PARTS, f32("openvino"))
    with ovtensor.pipeline(sd15, backends=everything, progress=False) as pipe:
        plain = call(pipe, "sd15")
    with ovtensor.pipeline(sd15, backends=everything, loras=[(state, 0.7)], progress=False) as pipe:
        adapted = call(pipe, "sd15")
    own = DiffusionPipeline.from_pretrained(sd15, dtype=torch.float32)
    own.set_progress_bar_config(disable=True)
    own.load_lora_weights(dict(state), adapter_name="a")
    own.set_adapters(["a"], [0.7])
    assert np.abs(adapted - call(own, "sd15")).max() <= 4
    assert np.abs(adapted - plain).max() > 8


def test_the_command_line_draws_with_it(sd15, tmp_path, capsys):
    out = tmp_path / "picture.png"
    options = ["--model", str(sd15), "--size", "128x128", "--steps", "2", "--out", str(out)]
    assert cli.main(["generate", "a circle", *options, "--quiet"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (128, 128)


def test_several_blocks_over_one_pipeline_at_once(eager_pipeline, eager_pictures):
    on = {"unet": f32("openvino"), "vae": f32("torch")}
    with (
        ovtensor.split_backends(eager_pipeline, **on, progress=False) as one,
        ovtensor.split_backends(eager_pipeline, unet="torch", vae=f32("openvino")) as two,
    ):
        pictures = [draw(pipe, SCENES[0]) for pipe in (one, two, eager_pipeline)]
    for picture in pictures:
        assert np.abs(picture.astype(int) - eager_pictures[0].astype(int)).max() <= 2


def test_image_to_image_of_a_block_is_made_of_it(sd15):
    with ovtensor.pipeline(sd15, progress=False) as pipe:
        task = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        task.set_progress_bar_config(disable=True)
        image = Image.fromarray(np.full((128, 128, 3), 99, np.uint8))
        picture = call(task, "img2img", image=image, strength=0.5)
    assert picture.std() > 1
