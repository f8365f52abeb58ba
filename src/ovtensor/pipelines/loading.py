"""From a folder to a torch pipeline, with an error that names what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline

from ovtensor.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def load_pipeline(folder: Path, kind: type | None, given: Mapping[str, Any]) -> Any:
    """Load a pipeline around the components that are ``given``.

    Raises
    ------
    ModelError
        If diffusers cannot load it.
    """
    owner: Any = DiffusionPipeline if kind is None else kind
    try:
        pipe = owner.from_pretrained(str(folder), dtype=torch.float32, **given)
    except Exception as error:
        raise ModelError(f"diffusers could not load {str(folder)!r}: {error}") from error
    check_pipeline(pipe)
    return pipe


def check_pipeline(pipe: Any) -> None:
    """Raise ``ModelError`` unless ``pipe`` is a diffusers pipeline with SDXL's parts."""
    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(
            f"a model is a folder, a hub id or a loaded StableDiffusionXLPipeline, "
            f"not a {type(pipe).__qualname__}"
        )
    given = type(pipe).__qualname__
    if not hasattr(pipe, "text_encoder_2"):
        raise ModelError(
            f"the {given} has no second text encoder, as Stable Diffusion 1.5 and 2 have none; "
            f"an SDXL pipeline has two"
        )
    # Text encoders may be gone: a refiner has one, and embeddings can be passed in.
    missing = [name for name in ("unet", "vae") if getattr(pipe, name, None) is None]
    if missing:
        raise ModelError(f"the {given} has no {', '.join(missing)}, which an SDXL pipeline needs")
    embedding = pipe.unet.config.get("addition_embed_type")
    if embedding != "text_time":
        raise ModelError(
            f"the UNet of the {given} has addition_embed_type={embedding!r}; an SDXL UNet has "
            f'"text_time"'
        )
