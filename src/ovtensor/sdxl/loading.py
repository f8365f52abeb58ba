"""From a folder or hub id to a torch pipeline, with an error that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from ovtensor.errors import ModelError

if TYPE_CHECKING:
    import os

_WEIGHTS = ("*.safetensors", "*.bin")
# Folders of a saved SDXL pipeline that must hold weights, and those that need only a config.
_MODEL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_OTHER_PARTS = ("tokenizer", "tokenizer_2", "scheduler")


def load_pipeline(
    model: str | os.PathLike[str], dtypes: dict[str, torch.dtype]
) -> StableDiffusionXLPipeline:
    """Load a pipeline whose components have the given dtypes (float32 where none is given).

    Raises
    ------
    ModelError
        If ``model`` is no complete SDXL model; the message says which part is missing.
    """
    path = Path(model)
    if path.exists():
        _check_folder(path)
        source = str(path)
    else:
        source = str(model)
        if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
            raise ModelError(
                f"there is no folder {source!r}, and it is no hub id of the form "
                f'"organisation/name" either'
            )
    try:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            source, dtype={**dtypes, "default": torch.float32}
        )
    except Exception as error:
        raise ModelError(f"diffusers could not load {source!r}: {error}") from error
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
    missing = [name for name in _MODEL_PARTS if getattr(pipe, name, None) is None]
    if missing == ["text_encoder_2"]:
        raise ModelError(
            f"the {given} has one text encoder, as Stable Diffusion 1.5 and 2 have; "
            f"an SDXL pipeline has two"
        )
    if missing:
        raise ModelError(f"the {given} has no {', '.join(missing)}, which an SDXL pipeline needs")
    embedding = pipe.unet.config.get("addition_embed_type")
    if embedding != "text_time":
        raise ModelError(
            f"the UNet of the {given} has addition_embed_type={embedding!r}; an SDXL UNet has "
            f'"text_time"'
        )


def _check_folder(path: Path) -> None:
    if path.is_file():
        raise ModelError(
            f"{str(path)!r} is a single file; load it with "
            f"StableDiffusionXLPipeline.from_single_file and pass the pipeline"
        )
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{str(path)!r} has no model_index.json, so it is not a saved diffusers pipeline"
        )
    try:
        name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{str(index)!r} is not the index of a pipeline: {error}") from error
    if name is None or not str(name).startswith("StableDiffusionXL"):
        known = " (Stable Diffusion 1.5 or 2)" if name == "StableDiffusionPipeline" else ""
        raise ModelError(
            f"{str(path)!r} holds a {name}{known}; ovtensor runs StableDiffusionXL pipelines"
        )
    missing = [part for part in (*_MODEL_PARTS, *_OTHER_PARTS) if not (path / part).is_dir()]
    if missing:
        raise ModelError(f"the SDXL model in {str(path)!r} has no {', '.join(missing)} folder")
    bare = [
        part
        for part in _MODEL_PARTS
        if not any(next((path / part).glob(kind), None) for kind in _WEIGHTS)
    ]
    if bare:
        raise ModelError(
            f"the SDXL model in {str(path)!r} has no weights (*.safetensors) in {', '.join(bare)}"
        )
