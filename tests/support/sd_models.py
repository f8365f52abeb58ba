"""Tiny Stable Diffusion models of random weights, saved as folders: 1.5, 2.x, inpainting, LCM.

Their structure and their configs are those of the real ones, only narrower. The weights come from a
seed and draw coloured textures that follow the prompt: neither flat nor saturated.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import ovtensor

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import DiffusionPipeline

PROMPTS = ("a large red circle on a blue background", "a small green square on a white background")
_RAMP = np.arange(128, dtype=np.uint8)[:, None].repeat(128, 1)
IMAGE = Image.fromarray(np.stack([2 * _RAMP, 2 * _RAMP.T, 255 - 2 * _RAMP], -1))
MASK = Image.fromarray(np.where(_RAMP < 64, np.uint8(0), np.uint8(255)))  # the lower half

_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_LORA_LAYERS = {
    "unet": ("attn1.to_q", "attn2.to_k", "attn2.to_v", "ff.net.2"),
    "text_encoder": ("self_attn.q_proj", "self_attn.v_proj", "mlp.fc1"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What sets one kind of model apart from Stable Diffusion 1.5."""

    pipeline: str = "StableDiffusionPipeline"
    scheduler: str = "PNDMScheduler"
    scheduler_config: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {**_BETAS, "skip_prk_steps": True, "steps_offset": 1}
    )
    unet: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_encoder: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = "tokenizer"


FAMILIES = {
    "sd15": Family(),
    "sd2": Family(
        scheduler="DDIMScheduler",
        scheduler_config={
            **_BETAS,
            "prediction_type": "v_prediction",
            "set_alpha_to_one": False,
            "clip_sample": False,
            "steps_offset": 1,
        },
        unet={
            "attention_head_dim": [2, 4, 4],  # the number of heads, as in the real one
            "use_linear_projection": True,
            "cross_attention_dim": 64,
        },
        # The real one is saved without its last layer, so that the last is the penultimate one.
        text_encoder={"hidden_size": 64, "hidden_act": "gelu", "num_hidden_layers": 3},
        tokenizer="tokenizer_2",  # pads with "!"
    ),
    "sd15-inpaint": Family(pipeline="StableDiffusionInpaintPipeline", unet={"in_channels": 9}),
    "lcm": Family(
        pipeline="LatentConsistencyModelPipeline",
        scheduler="LCMScheduler",
        scheduler_config={**_BETAS, "original_inference_steps": 50, "set_alpha_to_one": True},
        unet={"time_cond_proj_dim": 32},
    ),
}


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Save a model of `FAMILIES` as a folder, and return the folder."""
    build(name, seed).save_pretrained(folder)
    return folder


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """Make a pipeline of float32 weights; the same seed gives the same ones."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _pipeline(family)


def _pipeline(family: Family) -> DiffusionPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(ovtensor.tiny_sdxl_path() / family.tokenizer)
    text_encoder = _text_encoder(tokenizer, family.text_encoder)
    unet = _unet(family.unet)
    scheduler = getattr(diffusers, family.scheduler)(**family.scheduler_config)
    pipe = getattr(diffusers, family.pipeline)(
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _text_encoder(tokenizer: CLIPTokenizer, changes: dict[str, Any]) -> CLIPTextModel:
    config = {"hidden_size": 32, "hidden_act": "quick_gelu", "num_hidden_layers": 2} | changes
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=77,
            num_attention_heads=4,
            intermediate_size=2 * config["hidden_size"],
            projection_dim=config["hidden_size"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    ).eval()


def _unet(changes: dict[str, Any]) -> diffusers.UNet2DConditionModel:
    config = {"in_channels": 4, "cross_attention_dim": 32, "attention_head_dim": 4} | changes
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        **config,
    ).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".attn2.to_v." in name or ".attn2.to_out." in name:
                parameter.mul_(3)  # so that the prompt shows
        unet.conv_out.weight.mul_(3)  # to noise of unit variance
    return unet


def _vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        sample_size=128,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()


def lora(pipe: DiffusionPipeline, seed: int = 0, rank: int = 4) -> dict[str, torch.Tensor]:
    """Random adapters for the UNet and the text encoder, under the names that diffusers saves."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for component, layers in _LORA_LAYERS.items():
        for name, layer in getattr(pipe, component).named_modules():
            if name.endswith(layers):
                shapes = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
                for part, shape in shapes.items():
                    values = torch.randn(shape, generator=generator) * 0.15
                    state[f"{component}.{name}.lora_{part}.weight"] = values
    return state


def draw(pipe: DiffusionPipeline, prompt: str = PROMPTS[0], seed: int = 0, **kwargs) -> np.ndarray:
    """One picture of 128 pixels as ``(height, width, 3)`` uint8."""
    options = {"num_inference_steps": 4, "height": 128, "width": 128}
    if "mask_image" in inspect.signature(pipe.__call__).parameters:
        options |= {"image": IMAGE, "mask_image": MASK}
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(prompt, generator=generator, **(options | kwargs)).images[0])
