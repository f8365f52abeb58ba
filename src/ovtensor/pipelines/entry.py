"""The two ways into a session: from a model, and from a pipeline that is already loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovtensor.cache import store_of
from ovtensor.engine.backend import Backend, resolve
from ovtensor.pipelines.session import Session
from ovtensor.pipelines.tasks import check_task

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from diffusers import StableDiffusionXLPipeline

    from ovtensor.cache import ModelCache
    from ovtensor.engine.events import Event
    from ovtensor.pipelines.lora import Given
    from ovtensor.pipelines.session import Pipe
    from ovtensor.pipelines.tasks import Task


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
    on_event: Callable[[Event], Any] | None = None,
) -> Session[Any]:
    """Run SDXL with each component on torch or on OpenVINO: load a model, then split it.

    Parameters
    ----------
    model : path, str or StableDiffusionXLPipeline
        A folder as ``save_pretrained`` writes it, a hub id, or a loaded pipeline, for which this
        is :func:`split_backends`.
    task : {"text2img", "img2img", "inpaint", "refiner"} or class, optional
        Which pipeline of diffusers to make of the model, by name or as its class; by default the
        one that the model's index names.
    unet, vae, text_encoders : {"torch", "openvino"} or Backend
        Where each component runs; ``text_encoders`` is for both of them. The VAE's encoder and
        decoder go together.
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
    on_event : callable, optional
        Called with an :class:`ovtensor.Event` when a stage begins or ends, in the thread that
        enters the block or calls the pipeline. What it raises ends that work.

    Returns
    -------
    Session
        A context manager; nothing is loaded before it is entered. Entering it gives a real
        diffusers pipeline: schedulers, callbacks, ``output_type``, guidance and generators work
        as diffusers documents them. Several threads may call it at once.

    Raises
    ------
    BackendError
        At once, for a backend, device or precision that this machine does not have.
    MissingExtraError
        If LoRAs or int8 weights are asked for and peft or nncf is not installed.
    InputError
        At once, for an unknown task; on entering, for LoRAs that are none.
    ModelError
        On entering, if ``model`` is no complete SDXL model or a LoRA does not fit it.
    ComponentError
        On entering, if a component cannot be converted or compiled, or would run elsewhere.
    ParityError
        On entering, if a converted component does not compute what torch does.
    NonFiniteError
        From the pipeline, where latents or pixels turn into NaN or infinity.

    Notes
    -----
    Images, latents and embeddings belong to the caller: no later step or call writes to them.
    Leaving the block releases compiled models, requests and converted weights. A pipeline that
    was passed in then has its own components back, the same objects with the same weights; one
    that the session loaded raises ``SessionClosedError`` from then on.

    Components are converted one after another, through a file from which their weights stay
    mapped; torch's weights of a component are dropped before it is compiled.

    Examples
    --------
    >>> import ovtensor
    >>> with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path()) as pipe:
    ...     image = pipe("a large red circle on a blue background", num_inference_steps=4).images[0]
    >>> image.size
    (128, 128)
    """
    check_task(task)
    backends = {
        "unet": Backend.of(unet, "unet"),
        "vae": Backend.of(vae, "vae"),
        "text_encoder": Backend.of(text_encoders, "text_encoders"),
        "text_encoder_2": Backend.of(text_encoders, "text_encoders"),
    }
    return Session(
        model,
        {name: resolve(backend, name) for name, backend in backends.items()},
        task=task,
        loras=loras,
        store=store_of(cache),
        verify=verify,
        progress=progress,
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
    on_event: Callable[[Event], Any] | None = None,
) -> Session[Pipe]:
    """Let components of a loaded pipeline run on OpenVINO, for as long as a block lasts.

    Parameters
    ----------
    pipe : DiffusionPipeline
        Any pipeline with SDXL's components: from ``from_pretrained``, ``from_single_file`` or
        ``from_pipe``, of a subclass, or put together by hand. Text encoders may be missing.
        Adapters that peft has put into them are converted as they are in effect.
    unet, vae, text_encoders, loras, cache, verify, progress, on_event
        See :func:`sdxl_pipeline`.

    Returns
    -------
    Session
        A context manager. Entering it gives ``pipe`` itself with stand-ins in place of its
        components; leaving it puts back the components, the same objects, unchanged.

    Raises
    ------
    BackendError, InputError, ModelError, ComponentError, ParityError
        See :func:`sdxl_pipeline`.

    Examples
    --------
    >>> import ovtensor
    >>> from diffusers import StableDiffusionXLPipeline
    >>> own = StableDiffusionXLPipeline.from_pretrained(ovtensor.tiny_sdxl_path())
    >>> with ovtensor.split_backends(own, unet="openvino", vae="openvino") as pipe:
    ...     pipe is own, pipe.ovtensor.report()[-1].backend
    (True, 'openvino')
    """
    return sdxl_pipeline(
        pipe,
        unet=unet,
        vae=vae,
        text_encoders=text_encoders,
        loras=loras,
        cache=cache,
        verify=verify,
        progress=progress,
        on_event=on_event,
    )
