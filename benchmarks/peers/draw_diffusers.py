"""A contender of ``sdxl_peers.py``: diffusers, eager or compiled by inductor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from contender import GUIDANCE, PROMPT, latents, main
from diffusers import StableDiffusionXLPipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def open_pipeline(job: SimpleNamespace) -> Callable[[], np.ndarray]:
    """See :func:`contender.main`."""
    pipe = StableDiffusionXLPipeline.from_pretrained(job.model, torch_dtype=DTYPES[job.precision])
    pipe.set_progress_bar_config(disable=True)
    if job.compiled:
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    noise = torch.from_numpy(latents(job)).to(DTYPES[job.precision])

    def draw() -> np.ndarray:
        result = pipe(
            PROMPT,
            height=job.side,
            width=job.side,
            num_inference_steps=job.steps,
            guidance_scale=GUIDANCE,
            latents=noise.clone(),
        )
        return np.asarray(result.images[0])

    return draw


main(open_pipeline)
