"""A contender of ``sdxl_peers.py``: openvino-genai, from optimum-intel's export.

It cannot read a checkpoint itself; a cold start is optimum-intel's export and the conversion of
the tokenizers (see ``export.py``) in one process, and this one after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import openvino as ov
import openvino_genai
from contender import GUIDANCE, PROMPT, latents, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

    import numpy as np


class _Given(openvino_genai.Generator):
    """A generator whose noise is given beforehand."""

    def __init__(self, noise: np.ndarray) -> None:
        super().__init__()
        self._noise = noise

    def next(self) -> float:
        raise NotImplementedError("noise is drawn as whole tensors")

    def randn_tensor(self, shape: ov.Shape) -> ov.Tensor:
        return ov.Tensor(self._noise.reshape(tuple(shape)).copy())


def open_pipeline(job: SimpleNamespace) -> Callable[[], np.ndarray]:
    """See :func:`contender.main`."""
    pipe = openvino_genai.Text2ImagePipeline(
        job.folder, "CPU", INFERENCE_PRECISION_HINT=job.precision
    )
    noise = latents(job)

    def draw() -> np.ndarray:
        result = pipe.generate(
            PROMPT,
            height=job.side,
            width=job.side,
            num_inference_steps=job.steps,
            guidance_scale=GUIDANCE,
            generator=_Given(noise),
        )
        return result.data[0]

    return draw


main(open_pipeline)
