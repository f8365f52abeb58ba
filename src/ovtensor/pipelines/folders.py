"""The folder of a saved pipeline: where it is, and whether it is a whole SDXL model."""

from __future__ import annotations

import json
from pathlib import Path

from ovtensor.errors import ModelError

WEIGHTS = ("*.safetensors", "*.bin")
# Folders of a saved SDXL pipeline that must hold weights, and those that need only a config. A
# refiner's index says of the first text encoder and tokenizer that there are none.
MODEL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_OTHER_PARTS = ("tokenizer", "tokenizer_2", "scheduler")


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
        from diffusers import DiffusionPipeline

        try:
            path = Path(DiffusionPipeline.download(source))
        except Exception as error:
            raise ModelError(f"diffusers could not download {source!r}: {error}") from error
    _check_folder(path)
    return path


def variant_of(folder: Path) -> str | None:
    """The variant that a folder of weights holds if it lacks the plain one, such as ``"fp16"``."""
    names = [path.name for kind in WEIGHTS for path in folder.glob(kind)]
    plain = ("diffusion_pytorch_model", "model", "pytorch_model")
    for name in names:
        stem = name.partition(".")[0].partition("-0")[0]
        if stem in plain and name.count(".") == 1:
            return None
    variants = {name.split(".")[1].partition("-0")[0] for name in names if name.count(".") == 2}
    return min(variants) if variants else None


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
        for part in (*MODEL_PARTS, *_OTHER_PARTS)
        if part not in absent and not (path / part).is_dir()
    ]
    if missing:
        raise ModelError(f"the SDXL model in {str(path)!r} has no {', '.join(missing)} folder")
    bare = [
        part
        for part in MODEL_PARTS
        if part not in absent and not any(next((path / part).glob(kind), None) for kind in WEIGHTS)
    ]
    if bare:
        raise ModelError(
            f"the SDXL model in {str(path)!r} has no weights (*.safetensors) in {', '.join(bare)}"
        )
