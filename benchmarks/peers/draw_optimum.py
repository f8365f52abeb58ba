"""A contender of ``sdxl_peers.py``: optimum-intel, from the checkpoint or from its export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from contender import GUIDANCE, PROMPT, latents, main
from optimum.intel import OVStableDiffusionXLPipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace


def open_pipeline(job: SimpleNamespace) -> Callable[[], np.ndarray]:
    """See :func:`contender.main`; from the export in ``job.folder`` if there is one."""
    exported = (Path(job.folder) / "model_index.json").is_file()
    pipe = OVStableDiffusionXLPipeline.from_pretrained(
        job.folder if exported else job.model,
        export=not exported,
        load_in_8bit=False,
        ov_config={"INFERENCE_PRECISION_HINT": job.precision},
    )
    pipe.set_progress_bar_config(disable=True)
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
