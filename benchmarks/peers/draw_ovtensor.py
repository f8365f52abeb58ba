"""A contender of ``sdxl_peers.py``: ovtensor, every component on OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from contender import GUIDANCE, PROMPT, latents, main

import ovtensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace


def open_pipeline(job: SimpleNamespace) -> Callable[[], np.ndarray]:
    """See :func:`contender.main`."""
    backend = ovtensor.Backend("openvino", precision=job.precision)
    session = ovtensor.sdxl_pipeline(
        job.model,
        unet=backend,
        vae=backend,
        text_encoders=backend,
        progress=False,
        cache=job.folder,
    )
    pipe = session.__enter__()
    noise = torch.from_numpy(latents(job))

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
