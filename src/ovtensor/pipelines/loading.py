"""From a folder to a torch pipeline, with an error that names what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline

from ovtensor.engine.process import EXCLUSIVE, handed_on
from ovtensor.errors import ModelError
from ovtensor.pipelines.families import family_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@handed_on()
def load_pipeline(folder: Path, kind: type | None, given: Mapping[str, Any]) -> Any:
    """Load a pipeline around the components that are ``given``.

    Raises
    ------
    ModelError
        If diffusers cannot load it.
    """
    owner: Any = DiffusionPipeline if kind is None else kind
    try:
        with EXCLUSIVE:
            pipe = owner.from_pretrained(str(folder), dtype=torch.float32, **given)
    except Exception as error:
        raise ModelError(f"diffusers could not load {str(folder)!r}: {error}") from error
    family_of(pipe)
    return pipe
