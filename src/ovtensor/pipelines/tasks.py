"""What a pipeline is for: a task by name, or a class of diffusers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ovtensor.errors import InputError

Task: TypeAlias = Literal["text2img", "img2img", "inpaint", "refiner"]

_CLASSES = {
    "text2img": "StableDiffusionXLPipeline",
    "img2img": "StableDiffusionXLImg2ImgPipeline",
    "inpaint": "StableDiffusionXLInpaintPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


def check_task(task: str | type | None) -> None:
    """Raise ``InputError`` if it is no task and no class of a diffusers pipeline."""
    if task is None or (isinstance(task, str) and task in _CLASSES):
        return
    if isinstance(task, type):
        from diffusers import DiffusionPipeline

        if issubclass(task, DiffusionPipeline):
            return
    raise InputError(
        f"task={task!r} is no task; give one of {', '.join(map(repr, _CLASSES))} or the class of a "
        f"diffusers pipeline"
    )


def task_class(task: str | type | None) -> type | None:
    """The pipeline class of a task, or None for what the model's index says."""
    if not isinstance(task, str):
        return task
    import diffusers

    kind: type = getattr(diffusers, _CLASSES[task])
    return kind
