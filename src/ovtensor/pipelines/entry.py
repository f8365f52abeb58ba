"""The ways into a session: any known model, SDXL, and a pipeline that is already loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ovtensor.cache import store_of
from ovtensor.engine.backend import Backend, resolve
from ovtensor.errors import InputError
from ovtensor.nonfinite import checked_policy
from ovtensor.pipelines.families import ARGUMENTS, FAMILIES, check_task
from ovtensor.pipelines.session import Pipe, Session

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from diffusers import StableDiffusionXLPipeline

    from ovtensor.cache import ModelCache
    from ovtensor.engine.events import Event
    from ovtensor.engine.memory import MemoryPolicy
    from ovtensor.nonfinite import Policy
    from ovtensor.pipelines.lora import Given

    Task: TypeAlias = Literal["text2img", "img2img", "inpaint", "refiner"]

DEFAULTS = {"unet": "openvino", "vae": "torch", "text_encoders": "torch"}


def pipeline(
    model: str | os.PathLike[str] | Pipe,
    *,
    task: Task | type[Any] | None = None,
    backends: Mapping[str, str | Backend] | None = None,
    loras: Sequence[Given] = (),
    cache: bool | str | os.PathLike[str] | ModelCache | None = None,
    verify: bool | None = None,
    progress: bool | None = None,
    nonfinite: Policy | None = None,
    memory: MemoryPolicy | None = None,
    on_event: Callable[[Event], Any] | None = None,
) -> Session[Any]:
    """Run a model of any known family with each component on torch or on OpenVINO.

    Parameters
    ----------
    model : path, str or DiffusionPipeline
        A folder as ``save_pretrained`` writes it, a hub id, or a loaded pipeline: from
        ``from_pretrained``, ``from_single_file`` or ``from_pipe``, of a subclass, or put together
        by hand. Text encoders may be missing. Adapters that peft has put into a loaded pipeline
        are converted as they are in effect.
    task : {"text2img", "img2img", "inpaint", "refiner"} or class, optional
        Which pipeline of diffusers to make of the model, by name or as its class; by default the
        one that the model's index names.
    backends : mapping of str to {"torch", "openvino"} or Backend, optional
        Where each component runs: ``"unet"``, ``"vae"``, ``"text_encoders"`` for all of these, or
        the name of one in the pipeline, such as ``"text_encoder_2"``. By default the UNet on
        OpenVINO and the rest on torch. A VAE's encoder and decoder go together.
    loras : sequence of (path or state dict, float), optional
        LoRA weights, each with its scale, added to the weights before anything is converted. It
        takes the extra ``lora``.
    cache : bool, path or ModelCache, optional
        Where converted and compiled models are kept for the next time: True for the platform's
        cache folder, a path, or a :class:`ovtensor.ModelCache`. None and False keep nothing.
    verify : bool, optional
        Compare a small forward of each converted component with torch's. By default that is done
        where numbers are rounded: for bf16, f16 and int8.
    progress : bool, optional
        Show progress bars while converting, compiling and denoising; by default only where
        standard error is a terminal. A passed pipeline keeps its own setting for denoising.
    nonfinite : {"raise", "warn", "ignore"}, optional
        What NaN or infinity does in latents, embeddings and pixels; by default what
        :func:`ovtensor.patch_diffusers` was told, then the environment variable
        ``OVTENSOR_NONFINITE``, then ``"raise"``.
    memory : MemoryPolicy, optional
        When memory is saved at the cost of time.
    on_event : callable, optional
        Called with an :class:`ovtensor.Event` when a stage begins or ends, in the thread that
        enters the block or calls the pipeline. What it raises ends that work.

    Returns
    -------
    Session
        A context manager; nothing is loaded before it is entered. Entering it gives a diffusers
        pipeline of a subclass of the model's class: schedulers, callbacks, ``output_type``,
        guidance and generators work as diffusers documents them. Several threads may call it at
        once.

    Raises
    ------
    BackendError
        At once, for a backend, device or precision that this machine does not have.
    MissingExtraError
        If LoRAs or int8 weights are asked for and peft or nncf is not installed.
    InputError
        At once, for an unknown task or component; on entering, for LoRAs that are none.
    ModelError
        On entering, if ``model`` is of no known family, or not complete, or a LoRA does not fit it.
    ComponentError
        On entering, if a component cannot be converted or compiled, or would run elsewhere.
    ParityError
        On entering, if a converted component does not compute what torch does.
    NonFiniteError
        From the pipeline, where latents or pixels turn into NaN or infinity.

    Notes
    -----
    A loaded pipeline is not touched: the block gives a copy of it with proxies in place of
    components, and a scheduler and tokenizers of its own. Modules that stay on torch as they are
    belong to both. Images, latents and embeddings belong to the caller: no later step or call
    writes to them. Leaving the block releases compiled models, requests and converted weights;
    the block's pipeline raises ``SessionClosedError`` from then on.

    Components are converted one after another, through a file from which their weights stay
    mapped; torch's weights of a component are dropped before it is compiled.

    Examples
    --------
    >>> import ovtensor
    >>> backends = {"unet": "openvino", "vae": "openvino"}
    >>> with ovtensor.pipeline(ovtensor.tiny_sdxl_path(), backends=backends) as pipe:
    ...     image = pipe("a large red circle on a blue background", num_inference_steps=4).images[0]
    >>> image.size
    (128, 128)
    """
    check_task(task)
    asked = {**DEFAULTS, **(backends or {})}
    known = {*ARGUMENTS, *(name for family in FAMILIES for name in family.components)}
    if unknown := set(asked) - known:
        raise InputError(
            f"backends names {', '.join(map(repr, sorted(unknown, key=str)))}; give some of "
            f"{', '.join(map(repr, sorted(known)))}"
        )
    given = {name: Backend.of(value, name) for name, value in asked.items()}
    for backend in given.values():  # which devices and precisions are there is said at once
        resolve(backend)
    return Session(
        model,
        given,
        task=task,
        loras=loras,
        store=store_of(cache),
        verify=verify,
        progress=progress,
        nonfinite=None if nonfinite is None else checked_policy(nonfinite),
        memory=memory,
        on_event=on_event,
    )


def sdxl_pipeline(
    model: str | os.PathLike[str] | StableDiffusionXLPipeline,
    *,
    task: Task | type[Any] | None = None,
    unet: str | Backend = "openvino",
    vae: str | Backend = "torch",
    text_encoders: str | Backend = "torch",
    loras: Sequence[Given] = (),
    cache: bool | str | os.PathLike[str] | ModelCache | None = None,
    verify: bool | None = None,
    progress: bool | None = None,
    nonfinite: Policy | None = None,
    memory: MemoryPolicy | None = None,
    on_event: Callable[[Event], Any] | None = None,
) -> Session[Any]:
    """Run SDXL with each component on torch or on OpenVINO: :func:`pipeline` with words for it.

    Parameters
    ----------
    model, task, loras, cache, verify, progress, nonfinite, memory, on_event
        See :func:`pipeline`.
    unet, vae, text_encoders : {"torch", "openvino"} or Backend
        Where each component runs; ``text_encoders`` is for both of them.

    Returns
    -------
    Session
        See :func:`pipeline`.

    Raises
    ------
    BackendError, MissingExtraError, InputError, ModelError, ComponentError, ParityError
        See :func:`pipeline`.

    Examples
    --------
    >>> import ovtensor
    >>> with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path()) as pipe:
    ...     image = pipe("a large red circle on a blue background", num_inference_steps=4).images[0]
    >>> image.size
    (128, 128)
    """
    return pipeline(
        model,
        task=task,
        backends={"unet": unet, "vae": vae, "text_encoders": text_encoders},
        loras=loras,
        cache=cache,
        verify=verify,
        progress=progress,
        nonfinite=nonfinite,
        memory=memory,
        on_event=on_event,
    )


def split_backends(
    pipe: Pipe,
    *,
    unet: str | Backend = "openvino",
    vae: str | Backend = "torch",
    text_encoders: str | Backend = "torch",
    loras: Sequence[Given] = (),
    cache: bool | str | os.PathLike[str] | ModelCache | None = None,
    verify: bool | None = None,
    progress: bool | None = None,
    nonfinite: Policy | None = None,
    memory: MemoryPolicy | None = None,
    on_event: Callable[[Event], Any] | None = None,
) -> Session[Pipe]:
    """Let components of a loaded pipeline run on OpenVINO, for as long as a block lasts.

    Parameters
    ----------
    pipe : DiffusionPipeline
        Any loaded pipeline of a known family.
    unet, vae, text_encoders, loras, cache, verify, progress, nonfinite, memory, on_event
        See :func:`pipeline` and :func:`sdxl_pipeline`.

    Returns
    -------
    Session
        A context manager. Entering it gives a copy of ``pipe``, of a subclass of its class, with
        proxies in place of components; ``pipe`` itself is not touched.

    Raises
    ------
    BackendError, InputError, ModelError, ComponentError, ParityError
        See :func:`pipeline`.

    Examples
    --------
    >>> import ovtensor
    >>> from diffusers import StableDiffusionXLPipeline
    >>> own = StableDiffusionXLPipeline.from_pretrained(ovtensor.tiny_sdxl_path())
    >>> with ovtensor.split_backends(own, unet="openvino", vae="openvino") as pipe:
    ...     isinstance(pipe, StableDiffusionXLPipeline), pipe.ovtensor.report()[-1].backend
    (True, 'openvino')
    """
    return pipeline(
        pipe,
        backends={"unet": unet, "vae": vae, "text_encoders": text_encoders},
        loras=loras,
        cache=cache,
        verify=verify,
        progress=progress,
        nonfinite=nonfinite,
        memory=memory,
        on_event=on_event,
    )
