"""From a folder or hub id to a torch pipeline, with an error that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from ovtensor.errors import InputError, ModelError
from ovtensor.sdxl.sources import WEIGHTS, variant_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Task: TypeAlias = Literal["text2img", "img2img", "inpaint", "refiner"]

_TASKS: dict[str, Any] = {
    "text2img": StableDiffusionXLPipeline,
    "img2img": StableDiffusionXLImg2ImgPipeline,
    "inpaint": StableDiffusionXLInpaintPipeline,
    "refiner": StableDiffusionXLImg2ImgPipeline,
}
# Folders of a saved SDXL pipeline that must hold weights, and those that need only a config. A
# refiner's index says of the first text encoder and tokenizer that there are none.
_MODEL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_OTHER_PARTS = ("tokenizer", "tokenizer_2", "scheduler")


def task_class(task: str | type | None) -> type | None:
    """The pipeline class of a task, or None for what the model's index says.

    Raises
    ------
    InputError
        If it is no task and no class of a diffusers pipeline.
    """
    if task is None:
        return None
    if isinstance(task, str) and task in _TASKS:
        kind: type = _TASKS[task]
        return kind
    if isinstance(task, type) and issubclass(task, DiffusionPipeline):
        return task
    raise InputError(
        f"task={task!r} is no task; give one of {', '.join(map(repr, _TASKS))} or the class of a "
        f"diffusers pipeline"
    )


def model_folder(model: str | Path) -> Path:
    """The folder of a model, downloaded if it is a hub id.

    Raises
    ------
    ModelError
        If it is no complete SDXL model; the message says which part is missing.
    """
    path, source = Path(model), str(model)
    if not path.exists():
        if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
            raise ModelError(
                f"there is no folder {source!r}, and it is no hub id of the form "
                f'"organisation/name" either'
            )
        try:
            path = Path(DiffusionPipeline.download(source))
        except Exception as error:
            raise ModelError(f"diffusers could not download {source!r}: {error}") from error
    _check_folder(path)
    return path


def load_pipeline(
    folder: Path,
    kind: type | None,
    dtypes: Mapping[str, torch.dtype],
    given: Mapping[str, Any],
) -> Any:
    """Load a pipeline around some ``given`` components; the others have the given dtypes.

    Raises
    ------
    ModelError
        If diffusers cannot load it.
    """
    owner: Any = DiffusionPipeline if kind is None else kind
    left = [part for part in _MODEL_PARTS if part not in given and (folder / part).is_dir()]
    variants = [variant_of(folder / part) for part in left]
    try:
        pipe = owner.from_pretrained(
            str(folder),
            dtype={**dtypes, "default": torch.float32},
            variant=None if None in variants else next(iter(variants), None),
            **given,
        )
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
        content = json.loads(index.read_text(encoding="utf-8"))
        name = content.get("_class_name")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{str(index)!r} is not the index of a pipeline: {error}") from error
    if name is None or not str(name).startswith("StableDiffusionXL"):
        known = " (Stable Diffusion 1.5 or 2)" if name == "StableDiffusionPipeline" else ""
        raise ModelError(
            f"{str(path)!r} holds a {name}{known}; ovtensor runs StableDiffusionXL pipelines"
        )
    absent = {part for part, entry in content.items() if entry == [None, None]}
    missing = [
        part
        for part in (*_MODEL_PARTS, *_OTHER_PARTS)
        if part not in absent and not (path / part).is_dir()
    ]
    if missing:
        raise ModelError(f"the SDXL model in {str(path)!r} has no {', '.join(missing)} folder")
    bare = [
        part
        for part in _MODEL_PARTS
        if part not in absent and not any(next((path / part).glob(kind), None) for kind in WEIGHTS)
    ]
    if bare:
        raise ModelError(
            f"the SDXL model in {str(path)!r} has no weights (*.safetensors) in {', '.join(bare)}"
        )
