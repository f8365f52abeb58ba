"""Scenes that the embedded model knows, and how the tests draw them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

import ovtensor
import shapes

STEPS = 20
SCENES = (
    shapes.Scene("large", "red", "circle", "blue"),
    shapes.Scene("small", "yellow", "triangle", "black"),
    shapes.Scene("large", "green", "square", "white"),
    shapes.Scene("small", "purple", "circle", "yellow"),
    shapes.Scene("large", "white", "triangle", "red"),
)


def draw(pipe, scene: shapes.Scene, **kwargs) -> np.ndarray:
    """One picture as ``(height, width, 3)`` uint8; the seed follows from the scene."""
    options = {
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(SCENES.index(scene)),
    }
    return np.asarray(pipe(scene.prompt, **(options | kwargs)).images[0])


def load(dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """The embedded model as diffusers loads it."""
    pipe = StableDiffusionXLPipeline.from_pretrained(ovtensor.tiny_sdxl_path(), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe
