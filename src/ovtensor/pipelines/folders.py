"""The folder of a saved pipeline: where it is, what family it is of, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovtensor.errors import ModelError
from ovtensor.pipelines.families import family_called, unknown_family

WEIGHTS = ("*.safetensors", "*.bin")
if TYPE_CHECKING:
    import os

    from ovtensor.pipelines.families import Family


def model_folder(model: str | os.PathLike[str]) -> tuple[Path, Family]:
    """The folder of a model, downloaded if it is a hub id, and its family.

    Raises
    ------
    ModelError
        If it is no complete model of a known family; the message says which part is missing.
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
    return path, _checked(path)


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises
    ------
    ModelError
        If it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{str(path)!r} holds a {type(content).__name__} and not an object")
    return content


def _checked(path: Path) -> Family:
    """The family of a folder's pipeline, whose parts are all there."""
    if path.is_file():
        raise ModelError(
            f"{str(path)!r} is a single file; load it with from_single_file of diffusers' pipeline "
            f"and pass that"
        )
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{str(path)!r} has no model_index.json, so it is not a saved diffusers pipeline"
        )
    content = read_json(index)
    name = content.get("_class_name")
    if not isinstance(name, str):
        raise ModelError(f"{str(index)!r} is not the index of a pipeline: it has no _class_name")
    family = family_called(name)
    if family is None:
        raise unknown_family(f"the {name} in {str(path)!r}")
    parts = (*family.components, *family.tokenizers, "scheduler")
    odd = [part for part in parts if part in content and not _is_entry(content[part])]
    if odd:
        raise ModelError(
            f"{str(index)!r} is not the index of a pipeline: {odd[0]} is {content[odd[0]]!r:.60}, "
            f"and should be a pair of a library and a class"
        )
    # A refiner's index says of the first text encoder and tokenizer that there are none.
    present = [part for part in parts if content.get(part) != [None, None]]
    missing = [part for part in present if not (path / part).is_dir()]
    if missing:
        raise ModelError(
            f"the {family.name} model in {str(path)!r} has no {', '.join(missing)} folder"
        )
    bare = [
        part
        for part in present
        if part in family.components
        and not any(next((path / part).glob(kind), None) for kind in WEIGHTS)
    ]
    if bare:
        raise ModelError(
            f"the {family.name} model in {str(path)!r} has no weights (*.safetensors) in "
            f"{', '.join(bare)}"
        )
    for part in present:
        _check_shards(path / part)
    if (config := path / "unet" / "config.json").is_file():
        family.demand_unet(read_json(config).get("addition_embed_type"), repr(str(path)))
    return family


def _is_entry(entry: Any) -> bool:
    """Whether an index says of a component what it is: two names, or twice that there is none."""
    pair = isinstance(entry, list) and len(entry) == 2
    return pair and (all(isinstance(one, str) for one in entry) or entry == [None, None])


def _check_shards(folder: Path) -> None:
    """Refuse an index of shards that leads out of its folder."""
    for index in folder.glob("*.index.json"):
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict):
            raise ModelError(f"{str(index)!r} has no weight_map, so it is no index of shards")
        for name in set(map(str, files.values())):
            if set(name) & set("/\\:") or not (folder / name).is_file():
                raise ModelError(f"{str(index)!r} names {name!r}, which is no file beside it")
