"""What diffusers alone draws with the embedded model, and models that tests share."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel

import ovtensor
from sdxl_scenes import SCENES, draw, load


@pytest.fixture(scope="session")
def eager_pipeline():
    """What diffusers loads; tests may give it to a session, which must not touch it."""
    return load()


@pytest.fixture(scope="session")
def eager_pictures(eager_pipeline):
    """What diffusers draws in float32, one picture a scene."""
    return [draw(eager_pipeline, scene) for scene in SCENES]


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A cache for tests of what comes after conversion."""
    return ovtensor.ModelCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def refiner(eager_pipeline, tmp_path_factory):
    """The folder of a refiner for the embedded model: one text encoder, five sizes a picture."""
    config = dict(eager_pipeline.unet.config)
    width = eager_pipeline.text_encoder_2.config.hidden_size
    pooled = eager_pipeline.text_encoder_2.config.projection_dim
    config["cross_attention_dim"] = width
    config["projection_class_embeddings_input_dim"] = pooled + 5 * config["addition_time_embed_dim"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config).eval()
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=eager_pipeline.vae,
        text_encoder=None,
        text_encoder_2=eager_pipeline.text_encoder_2,
        tokenizer=None,
        tokenizer_2=eager_pipeline.tokenizer_2,
        unet=unet,
        scheduler=eager_pipeline.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    folder = tmp_path_factory.mktemp("refiner")
    pipe.save_pretrained(folder)
    return folder
