"""The tiny models that other tests run are what they say, and diffusers draws with them."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import sd_models

FAMILIES = tuple(sd_models.FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return sd_models.save(family, tmp_path_factory.mktemp("models") / family)


@pytest.fixture(scope="module")
def pipe(folder):
    loaded = DiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def differ(a, b):
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_each_draws_with_diffusers(family, folder, pipe):
    assert type(pipe).__name__ == sd_models.FAMILIES[family].pipeline
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5e6
    picture = sd_models.draw(pipe)
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 20
    assert 64 < picture.mean() < 192
    assert np.isin(picture, (0, 255)).mean() < 0.05
    assert np.array_equal(picture, sd_models.draw(pipe))
    assert differ(picture, sd_models.draw(pipe, sd_models.PROMPTS[1])) > 2
    assert differ(picture, sd_models.draw(pipe, seed=1)) > 10


def test_a_seed_gives_the_same_weights(family, pipe):
    state = torch.get_rng_state()
    again = sd_models.build(family)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("unet", "vae", "text_encoder"):
        saved = getattr(pipe, name).state_dict()
        assert all(torch.equal(v, saved[k]) for k, v in getattr(again, name).state_dict().items())
    other = sd_models.build(family, seed=1)
    assert not torch.equal(other.unet.conv_in.weight, again.unet.conv_in.weight)


def test_the_text_encoder_fits_its_tokenizer(pipe):
    config = pipe.text_encoder.config
    assert config.eos_token_id == pipe.tokenizer.eos_token_id
    ids = pipe.tokenizer(list(sd_models.PROMPTS), padding="max_length", return_tensors="pt")
    assert ids.input_ids.shape == (2, config.max_position_embeddings) == (2, 77)
    output = pipe.text_encoder(ids.input_ids)
    ends = (ids.input_ids == config.eos_token_id).int().argmax(-1)
    assert torch.equal(output.pooler_output, output.last_hidden_state[torch.arange(2), ends])


def test_a_lora_shows_and_can_be_saved(tmp_path):
    pipe = sd_models.build("sd15")
    plain, state = sd_models.draw(pipe), sd_models.lora(pipe)
    save_file(state, tmp_path / "style.safetensors")
    assert load_file(tmp_path / "style.safetensors").keys() == state.keys()
    parts = [
        {name: value for name, value in state.items() if name.startswith(component)}
        for component in ("unet.", "text_encoder.")
    ]
    assert sum(map(len, parts)) == len(state)
    for part in (*parts, state):
        pipe.load_lora_weights(dict(part))
        assert differ(sd_models.draw(pipe), plain) > 2
        pipe.unload_lora_weights()
        assert np.array_equal(sd_models.draw(pipe), plain)


def test_the_rows_are_what_they_are_named_after(family, pipe):
    unet, scheduler = pipe.unet.config, pipe.scheduler
    assert isinstance(scheduler, getattr(diffusers, sd_models.FAMILIES[family].scheduler))
    assert unet.in_channels == (9 if family == "sd15-inpaint" else 4)
    assert (unet.time_cond_proj_dim is not None) == (family == "lcm")
    is_second = family == "sd2"
    assert (scheduler.config.prediction_type == "v_prediction") == is_second
    assert unet.use_linear_projection == is_second
    assert isinstance(unet.attention_head_dim, list) == is_second
    assert (pipe.text_encoder.config.hidden_act == "gelu") == is_second
    assert pipe.safety_checker is None
