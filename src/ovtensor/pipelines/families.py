"""The families of pipelines that are known: a row each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ovtensor.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """What pipelines of one architecture have in common.

    Attributes
    ----------
    name : str
        For messages.
    pipelines : tuple of str
        How the names of its pipeline classes in diffusers begin; no other family's begin so.
    tasks : mapping
        The class of each task.
    components : mapping
        The session's argument for each component, in the order of conversion: the largest one
        finds the most memory.
    tokenizers : tuple of str
        Components that keep the padding of the call that goes on.
    added : str or None
        What the UNet is conditioned on besides text: ``addition_embed_type`` of its config.
    """

    name: str
    pipelines: tuple[str, ...]
    tasks: Mapping[str, str]
    components: Mapping[str, str]
    tokenizers: tuple[str, ...]
    added: str | None

    @property
    def loader(self) -> str:
        """The class of diffusers that reads and fuses its LoRAs."""
        return self.tasks["text2img"]

    @property
    def adapted(self) -> tuple[str, ...]:
        """The components that a LoRA can change, in diffusers' order."""
        return tuple(name for name in sorted(self.components, key=_lora_order) if name != "vae")

    def demand_unet(self, added: Any, of: str) -> None:
        """Raise ``ModelError`` unless a UNet is conditioned on what this family's is."""
        if added != self.added:
            raise ModelError(
                f"the UNet of {of} has addition_embed_type={added!r}; a UNet of {self.name} "
                f"has {self.added!r}"
            )


def _lora_order(name: str) -> tuple[bool, str]:
    return name != "unet", name


SDXL = Family(
    name="Stable Diffusion XL",
    pipelines=("StableDiffusionXL",),
    tasks={
        "text2img": "StableDiffusionXLPipeline",
        "img2img": "StableDiffusionXLImg2ImgPipeline",
        "inpaint": "StableDiffusionXLInpaintPipeline",
        "refiner": "StableDiffusionXLImg2ImgPipeline",
    },
    components={
        "unet": "unet",
        "text_encoder_2": "text_encoders",
        "text_encoder": "text_encoders",
        "vae": "vae",
    },
    tokenizers=("tokenizer", "tokenizer_2"),
    added="text_time",
)
SD = Family(
    name="Stable Diffusion 1.5 and 2",
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionControlNet",
        "StableDiffusionPAG",
        "LatentConsistencyModel",
    ),
    tasks={
        "text2img": "StableDiffusionPipeline",
        "img2img": "StableDiffusionImg2ImgPipeline",
        "inpaint": "StableDiffusionInpaintPipeline",
    },
    components={"unet": "unet", "text_encoder": "text_encoders", "vae": "vae"},
    tokenizers=("tokenizer",),
    added=None,
)
FAMILIES = (SDXL, SD)
ARGUMENTS = ("unet", "vae", "text_encoders")


def family_called(pipeline: str) -> Family | None:
    """The family of a pipeline class of diffusers, by its name."""
    return next((one for one in FAMILIES if pipeline.startswith(one.pipelines)), None)


def family_of(pipe: Any) -> Family:
    """The family of a loaded pipeline: by its class or the nearest one it is a subclass of.

    A class of somebody's own that comes from no pipeline of a family is known by its parts.

    Raises
    ------
    ModelError
        If it is no pipeline, of no known family, or lacks a part.
    """
    from diffusers import DiffusionPipeline

    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(
            f"a model is a folder, a hub id or a loaded pipeline of diffusers, "
            f"not a {type(pipe).__qualname__}"
        )
    given = type(pipe).__qualname__
    classes = [base.__name__ for base in type(pipe).__mro__ if base is not DiffusionPipeline]
    named = next((found for name in classes if (found := family_called(name))), None)
    unet = getattr(pipe, "unet", None)
    config = getattr(unet, "config", {})
    theirs = all(
        base.__module__.partition(".")[0] == "diffusers" for base in type(pipe).__mro__[:1]
    )
    if named is None and theirs:
        raise unknown_family(f"a {given}")
    missing = [name for name in ("unet", "vae") if getattr(pipe, name, None) is None]
    if missing:
        raise ModelError(
            f"the {given} has no {', '.join(missing)}, which a pipeline of "
            f"{(named or SDXL).name} needs"
        )
    added = config.get("addition_embed_type")
    two = hasattr(pipe, "text_encoder_2")
    if named is None:
        named = next(
            (
                one
                for one in FAMILIES
                if one.added == added and two == ("text_encoder_2" in one.components)
            ),
            None,
        )
        if named is None:
            raise unknown_family(f"a {given}")
    named.demand_unet(added, f"the {given}")
    return named


def unknown_family(what: str) -> ModelError:
    """The error for a model of no known family, which lists the known ones."""
    known = "; ".join(
        f"{one.name} ({', '.join(dict.fromkeys(one.tasks.values()))})" for one in FAMILIES
    )
    return ModelError(f"{what} is of no family that ovtensor runs; it runs {known}")


def check_task(task: Any) -> None:
    """Raise ``InputError`` if it is no task of any family and no class of a diffusers pipeline."""
    names = list(dict.fromkeys(name for one in FAMILIES for name in one.tasks))
    if task is None or (isinstance(task, str) and task in names):
        return
    if isinstance(task, type):
        from diffusers import DiffusionPipeline

        if issubclass(task, DiffusionPipeline):
            return
    raise InputError(
        f"task={task!r} is no task; give one of {', '.join(map(repr, names))} or the class of a "
        f"diffusers pipeline"
    )


def task_class(task: str | type | None, family: Family) -> type | None:
    """The pipeline class of a task, or None for what the model's index says.

    Raises
    ------
    InputError
        If the family has no such task.
    """
    if not isinstance(task, str):
        return task
    if task not in family.tasks:
        raise InputError(
            f"{family.name} has no task {task!r}; it has {', '.join(map(repr, family.tasks))}"
        )
    import diffusers

    kind: type = getattr(diffusers, family.tasks[task])
    return kind
