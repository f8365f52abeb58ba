"""The session: an SDXL pipeline whose components run where they were asked to.

A session owns what it opens. It is NEW when made, OPEN inside its ``with`` block, CLOSED after it,
and never opened twice. Whatever fails half-way, everything opened until then is released and a
pipeline that the caller passed in has its own components back.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm.auto import tqdm

from ovtensor.errors import InputError, SessionClosedError
from ovtensor.sdxl import graphs
from ovtensor.sdxl.loading import check_pipeline, load_pipeline
from ovtensor.sdxl.runners import OpenVINORunner, Runner, RunnerStats, TorchRunner
from ovtensor.sdxl.spec import Backend, resolve, torch_dtype
from ovtensor.sdxl.stand_ins import (
    ClosedComponent,
    TextEncoderStandIn,
    UNetStandIn,
    vae_stand_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from diffusers import StableDiffusionXLPipeline

# The order of conversion is the order of weight, so that the largest one finds the most memory.
COMPONENTS = ("unet", "text_encoder_2", "text_encoder", "vae")
_GRAPHS = {"unet": 1, "text_encoder_2": 1, "text_encoder": 1, "vae": 2}  # a VAE has two halves


@dataclasses.dataclass(frozen=True, slots=True)
class ComponentReport:
    """What one component runs on and what it has cost; seconds are wall-clock."""

    component: str
    backend: str
    device: str
    precision: str
    convert_seconds: float
    compile_seconds: float
    compiles: int
    inferences: int


class Session:
    """Context manager that lends a diffusers pipeline with exchanged components.

    Made by :func:`sdxl_pipeline`; ``with session as pipe:`` gives the pipeline, and
    ``pipe.ovtensor`` is the session again.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | StableDiffusionXLPipeline,
        backends: dict[str, Backend],
        progress: bool | None,
    ) -> None:
        self._model: Any = model
        self._backends = backends
        self._progress = progress
        self._state: Literal["NEW", "OPEN", "CLOSED"] = "NEW"
        self._changing_state = threading.Lock()
        self._undo = contextlib.ExitStack()
        self._runners: dict[str, list[Runner]] = {}
        self._torch_precisions: dict[str, str] = {}

    def __enter__(self) -> StableDiffusionXLPipeline:
        with self._changing_state:
            if self._state != "NEW":
                raise SessionClosedError(
                    "this session was already opened once; make a new one with sdxl_pipeline(...)"
                )
            self._state = "OPEN"
        with contextlib.ExitStack() as undo:  # undone at once if anything below raises
            undo.callback(self._mark_closed)
            pipe = self._open(undo)
            self._undo = undo.pop_all()
        return pipe

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release compiled models, requests and weights; closing twice is fine."""
        self._undo.pop_all().close()

    def report(self) -> list[ComponentReport]:
        """What each component runs on and what it has cost so far, in the pipeline's order.

        Raises
        ------
        SessionClosedError
            If the session was never opened.
        """
        if self._state == "NEW":
            raise SessionClosedError("this session was not opened; use it in a `with` statement")
        return [self._component_report(name) for name in reversed(COMPONENTS)]

    def _component_report(self, name: str) -> ComponentReport:
        backend = self._backends[name]
        stats = [runner.stats for runner in self._runners.get(name, [])] or [RunnerStats()]
        return ComponentReport(
            component=name,
            backend=backend.kind,
            device=backend.device,
            precision=self._torch_precisions.get(name, backend.precision),
            convert_seconds=sum(entry.convert_seconds for entry in stats),
            compile_seconds=sum(entry.compile_seconds for entry in stats),
            compiles=sum(entry.compiles for entry in stats),
            inferences=sum(entry.inferences for entry in stats),
        )

    def _mark_closed(self) -> None:
        self._state = "CLOSED"

    def _open(self, undo: contextlib.ExitStack) -> StableDiffusionXLPipeline:
        owned = isinstance(self._model, str | os.PathLike)
        if owned:
            pipe = load_pipeline(
                self._model,
                {name: torch_dtype(backend.precision) for name, backend in self._backends.items()},
            )
            undo.callback(_release, pipe)
            pipe.set_progress_bar_config(disable=_disabled(self._progress))
        else:
            pipe = self._model
            if getattr(pipe, "ovtensor", None) is not None:
                raise InputError(
                    "this pipeline is inside another open session; leave that one first, or pass "
                    "the model's folder to have a pipeline of its own"
                )
            check_pipeline(pipe)
        pipe.ovtensor = self
        undo.callback(delattr, pipe, "ovtensor")
        self._model = None  # the session must not keep a folder's pipeline alive by itself
        undo.enter_context(_sizes_checked(pipe))

        # What surrounds the components computes in float32 in a pipeline that is ours; in the
        # caller's it goes on in the dtype that each component has.
        interfaces = {
            name: torch.float32 if owned else getattr(pipe, name).dtype for name in COMPONENTS
        }
        exchanged = [name for name in COMPONENTS if self._is_exchanged(name, interfaces[name])]
        stages = sum(
            2 * _GRAPHS[name] for name in exchanged if self._backends[name].kind == "openvino"
        )
        with tqdm(total=stages, disable=_disabled(self._progress), leave=False) as bar:
            started = itertools.count()

            def announce(stage: str) -> None:
                bar.update(min(1, next(started)))  # with each but the first, another one is done
                bar.set_description(stage)

            for name in exchanged:
                original = getattr(pipe, name)
                stand_in = self._build(name, original, interfaces[name], undo, announce)
                setattr(pipe, name, stand_in)
                if not owned:
                    undo.callback(setattr, pipe, name, original)
                del original  # so that an owned component's torch weights can go at once
        for name in COMPONENTS:
            self._torch_precisions.setdefault(name, _precision_of(getattr(pipe, name).dtype))
        return pipe

    def _is_exchanged(self, name: str, interface: torch.dtype) -> bool:
        """Whether a component needs a stand-in: a torch one of the right dtype runs as it is."""
        backend = self._backends[name]
        if backend.kind == "openvino":
            return True
        return backend.precision != "auto" and torch_dtype(backend.precision) != interface

    def _build(
        self,
        name: str,
        original: Any,
        interface: torch.dtype,
        undo: contextlib.ExitStack,
        announce: Callable[[str], None],
    ) -> Any:
        backend = self._backends[name]
        module = _with_dtype(original, torch_dtype(backend.precision))
        runners = self._runners.setdefault(name, [])
        self._torch_precisions[name] = _precision_of(torch_dtype(backend.precision))

        def run(graph: graphs.Graph) -> Runner:
            runner = (
                OpenVINORunner(graph, backend, announce)
                if backend.kind == "openvino"
                else TorchRunner(graph)
            )
            undo.callback(runner.close)
            runners.append(runner)
            return runner

        if name == "unet":
            return UNetStandIn(run(graphs.unet_graph(module)), original, interface)
        if name == "vae":
            encoder = run(graphs.vae_encoder_graph(module))
            return vae_stand_in(encoder, run(graphs.vae_decoder_graph(module)), original)
        runner = run(graphs.text_encoder_graph(name, module))
        return TextEncoderStandIn(runner, original, interface)


def sdxl_pipeline(
    model: str | os.PathLike[str] | StableDiffusionXLPipeline,
    *,
    unet: str | Backend = "openvino",
    vae: str | Backend = "torch",
    text_encoders: str | Backend = "torch",
    progress: bool | None = None,
) -> Session:
    """Run SDXL with each component on torch or on OpenVINO.

    Parameters
    ----------
    model : path, str or StableDiffusionXLPipeline
        A folder as ``save_pretrained`` writes it, a hub id, or a loaded pipeline.
    unet, vae, text_encoders : {"torch", "openvino"} or Backend
        Where each component runs; ``text_encoders`` is for both of them. The VAE's encoder and
        decoder go together.
    progress : bool, optional
        Show progress bars while converting, compiling and denoising; by default only where
        standard error is a terminal. A passed pipeline keeps its own setting for denoising.

    Returns
    -------
    Session
        A context manager; nothing is loaded before it is entered. Entering it gives a real
        diffusers pipeline: schedulers, callbacks, ``output_type``, guidance and generators work
        as diffusers documents them.

    Raises
    ------
    BackendError
        At once, for a backend, device or precision that this machine does not have.
    ModelError
        On entering, if ``model`` is no complete SDXL model.
    ComponentError
        On entering, if a component cannot be converted or compiled.

    Notes
    -----
    Images, latents and embeddings belong to the caller: no later step or call writes to them.
    Leaving the block releases compiled models, requests and converted weights. A pipeline that
    was passed in then has its own components back, the same objects with the same weights; one
    that the session loaded raises ``SessionClosedError`` from then on.

    Examples
    --------
    >>> import ovtensor
    >>> with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path()) as pipe:
    ...     image = pipe("a large red circle on a blue background", num_inference_steps=4).images[0]
    >>> image.size
    (128, 128)
    """
    backends = {
        "unet": Backend.of(unet, "unet"),
        "vae": Backend.of(vae, "vae"),
        "text_encoder": Backend.of(text_encoders, "text_encoders"),
        "text_encoder_2": Backend.of(text_encoders, "text_encoders"),
    }
    return Session(
        model, {name: resolve(backend, name) for name, backend in backends.items()}, progress
    )


def _disabled(progress: bool | None) -> bool | None:
    """The value of tqdm's ``disable``, for which None asks whether stderr is a terminal."""
    return None if progress is None else not progress


def _precision_of(dtype: torch.dtype) -> str:
    return {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}.get(
        dtype, str(dtype)
    )


def _with_dtype(module: Any, dtype: torch.dtype) -> Any:
    """``module`` itself if it has the dtype already, else a copy; the original is not touched."""
    tensors = [*module.parameters(), *module.buffers()]
    changed = [t for t in tensors if t.is_floating_point() and t.dtype != dtype]
    if not changed:
        return module
    # What deepcopy finds in its memo it takes as copied: no tensor is copied in the old dtype.
    memo = {id(tensor): tensor for tensor in tensors}
    for tensor in changed:
        cast = tensor.detach().to(dtype)
        memo[id(tensor)] = (
            torch.nn.Parameter(cast, requires_grad=False)
            if isinstance(tensor, torch.nn.Parameter)
            else cast
        )
    return copy.deepcopy(module, memo)


def _release(pipe: StableDiffusionXLPipeline) -> None:
    """Take the components, and with them all weights, from a pipeline that the session loaded."""
    for name in COMPONENTS:
        setattr(pipe, name, ClosedComponent(name))


@contextlib.contextmanager
def _sizes_checked(pipe: Any) -> Iterator[None]:
    """Let the pipeline's own argument check raise this library's ``InputError``."""
    check: Callable[..., None] = pipe.check_inputs

    def check_inputs(*args: Any, **kwargs: Any) -> None:
        try:
            check(*args, **kwargs)
        except ValueError as error:
            raise InputError(str(error)) from error

    pipe.check_inputs = check_inputs
    try:
        yield
    finally:
        del pipe.check_inputs
