"""The session: an SDXL pipeline whose components run where they were asked to.

A session owns what it opens. It is NEW when made, OPEN inside its ``with`` block, CLOSED after it,
and never opened twice. Whatever fails half-way, everything opened until then is released and a
pipeline that the caller passed in has its own components back.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import torch

from ovtensor.engine.backend import Backend, torch_dtype
from ovtensor.engine.events import Events
from ovtensor.engine.memory import give_back, uncollected
from ovtensor.engine.opening import Opener
from ovtensor.engine.runners import Turns
from ovtensor.errors import DatalessTensorError, InputError, SessionClosedError
from ovtensor.pipelines.attached import ClosedComponent, copied, lend
from ovtensor.pipelines.folders import model_folder
from ovtensor.pipelines.sources import COMPONENTS, ModuleSource, Source, folder_sources
from ovtensor.pipelines.tasks import task_class
from ovtensor.tensors.convert import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from ovtensor.cache import Store
    from ovtensor.engine.events import Event
    from ovtensor.pipelines.components import Builder
    from ovtensor.pipelines.lora import Given, Lora
    from ovtensor.pipelines.report import Report
    from ovtensor.pipelines.sources import FolderSource
    from ovtensor.pipelines.tasks import Task

Pipe = TypeVar("Pipe")
S = TypeVar("S", bound="Source")


class Session(Generic[Pipe]):
    """Context manager that lends a diffusers pipeline with exchanged components.

    Made by :func:`ovtensor.sdxl_pipeline` and :func:`ovtensor.split_backends`; ``with session as
    pipe:`` gives the pipeline, and ``pipe.ovtensor`` is the session again.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Pipe,
        backends: dict[str, Backend],
        *,
        task: Task | type | None,
        loras: Sequence[Given],
        store: Store,
        verify: bool | None,
        progress: bool | None,
        on_event: Callable[[Event], Any] | None,
    ) -> None:
        self._model: Any = model
        self._backends = backends
        self._task = task
        self._loras = tuple(loras)
        self._store = store
        self._verify = verify
        self._progress = progress
        self._events = Events(on_event)
        self._state: Literal["NEW", "OPEN", "CLOSED"] = "NEW"
        self._changing_state = threading.Lock()
        self._undo = contextlib.ExitStack()
        self._builder: Builder | None = None
        self._pipe: Callable[[], Pipe | None] = lambda: None
        self._clones: weakref.WeakSet[Any] = weakref.WeakSet()

    def __enter__(self) -> Pipe:
        with self._changing_state:
            if self._state != "NEW":
                raise SessionClosedError(
                    "this session was already opened once; make a new one with sdxl_pipeline(...)"
                )
            self._state = "OPEN"
        with contextlib.ExitStack() as undo:  # undone at once if anything below raises
            undo.callback(give_back)
            undo.callback(self._mark_closed)
            with torch.autocast("cpu", enabled=False):  # weights are cast as they are told to be
                pipe = self._open(undo)
            self._undo = undo.pop_all()
        return cast("Pipe", pipe)

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

    def report(self) -> Report:
        """What each component runs on and what it has cost so far, in the pipeline's order.

        Raises
        ------
        SessionClosedError
            If the session was never opened.
        """
        if self._builder is None:
            raise SessionClosedError("this session was not opened; use it in a `with` statement")
        return self._builder.report()

    def clone(self) -> Pipe:
        """Another pipeline of the same components, for another worker.

        Returns
        -------
        DiffusionPipeline
            Of the same class. It shares components and so the weights, and has a scheduler of
            its own, as new. It ends with the session, like the pipeline that it is a copy of.

        Raises
        ------
        SessionClosedError
            If the session is not open.
        """
        pipe = self._pipe()
        if self._state != "OPEN" or pipe is None:
            raise SessionClosedError("only an open session can be cloned; use its `with` block")
        other: Pipe = copied(pipe)
        self._clones.add(other)
        return other

    def _mark_closed(self) -> None:
        self._state = "CLOSED"

    def _open(self, undo: contextlib.ExitStack) -> Any:
        owned = isinstance(self._model, str | os.PathLike)
        turns = Turns()
        opener = Opener(self._backends, self._store, self._events, turns, self._verify)
        undo.callback(opener.close)
        with self._events.bar(_disabled(self._progress)):
            folder = model_folder(self._model) if owned else None
            on_disk = folder_sources(folder) if folder is not None else {}
            early = owned and not self._loras  # which can be told apart when layers are known
            if early:
                # While diffusers and transformers are imported, which takes seconds; if that has
                # been done, the first one is opened here meanwhile.
                imported = "ovtensor.pipelines.components" in sys.modules
                opener.look_ahead(self._on_openvino(on_disk)[imported:], {})
            with uncollected():
                from ovtensor.pipelines import components

            pipe, sources = (
                self._borrowed() if folder is None else self._loaded(folder, on_disk, undo)
            )
            # Pipelines that take a picture need the VAE's encoder at once.
            encodes = "image" in inspect.signature(type(pipe).__call__).parameters
            self._model = None  # the session must not keep the weights alive by itself
            loras = self._read_loras(sources)
            if not early:
                opener.look_ahead(self._on_openvino(sources)[1:], loras)
            pipe.ovtensor = self
            undo.callback(delattr, pipe, "ovtensor")
            undo.callback(lend(pipe, self._events, turns.end))
            self._pipe = weakref.ref(pipe)
            undo.callback(self._close_clones)
            self._builder = builder = components.Builder(
                self._backends, sources, loras, opener, self._events, undo
            )
            undo.callback(pipe.maybe_free_model_hooks)  # when the components are back
            for name in sources:
                original = getattr(pipe, name)
                # What surrounds the components computes in float32 in a pipeline that is ours; in
                # the caller's it goes on in the dtype that each component has.
                interface = torch.float32 if owned else original.dtype
                stand_in = builder.build(name, original, interface, encodes=encodes)
                if stand_in is not original:
                    setattr(pipe, name, stand_in)
                    if not owned:
                        undo.callback(setattr, pipe, name, original)
                del original, stand_in  # so that an owned component's torch weights can go at once
            # Stand-ins take part in offloading, as after each call of the pipeline.
            pipe.maybe_free_model_hooks()
        give_back(collect=False)  # what imports and opening have freed
        return pipe

    def _on_openvino(self, sources: Mapping[str, S]) -> list[tuple[str, S]]:
        """Those that OpenVINO runs, the largest one first."""
        return [
            (name, source)
            for name, source in sources.items()
            if self._backends[name].kind == "openvino"
        ]

    def _read_loras(self, sources: Mapping[str, Source]) -> dict[str, list[Lora]]:
        """The LoRAs of each component."""
        from ovtensor.pipelines import lora

        skeletons = {name: sources[name].skeleton for name in lora.ADAPTED if name in sources}
        loras = lora.read(self._loras, skeletons)
        return {
            name: found
            for name in skeletons
            if (found := [one for one in loras if name in one.tensors])
        }

    @uncollected()
    def _loaded(
        self, folder: Path, on_disk: Mapping[str, FolderSource], undo: contextlib.ExitStack
    ) -> tuple[Any, dict[str, Source]]:
        """A pipeline from a folder, with skeletons of what will be compiled."""
        from ovtensor.pipelines import loading

        compiled = dict(self._on_openvino(on_disk))
        with self._events.stage("load", "pipeline"):
            given = {
                name: source.skeleton
                if name in compiled
                else source.load(torch_dtype(self._backends[name].precision), ())
                for name, source in on_disk.items()
            }
            pipe = loading.load_pipeline(folder, task_class(self._task), given)
            del given
        undo.callback(_release, pipe)
        pipe.set_progress_bar_config(disable=_disabled(self._progress))
        sources: dict[str, Source] = {
            name: ModuleSource(name, module, owned=True, folder=on_disk.get(name))
            for name, module in _modules(pipe).items()
        }
        return pipe, {**sources, **compiled}

    def _borrowed(self) -> tuple[Any, dict[str, Source]]:
        """The caller's pipeline."""
        from ovtensor.pipelines import loading
        from ovtensor.pipelines.proxies import stands_in

        pipe = self._model
        if getattr(pipe, "ovtensor", None) is not None:
            raise InputError(
                "this pipeline is inside another open session; leave that one first, or pass "
                "the model's folder to have a pipeline of its own"
            )
        loading.check_pipeline(pipe)
        kind = task_class(self._task)
        if kind is not None and not isinstance(pipe, kind):
            raise InputError(
                f"the pipeline is a {type(pipe).__qualname__} already; make another one with "
                f"{kind.__qualname__}.from_pipe(pipe), or pass the model's folder"
            )
        modules = _modules(pipe)
        for name, module in modules.items():
            if stands_in(module):
                raise InputError(
                    f"the pipeline's {name} is of another session; make more pipelines of that "
                    f"one with its clone(), or pass the model's folder"
                )
            if self._backends[name].kind == "openvino":
                _demand_values(name, module)
        return pipe, {
            name: ModuleSource(name, module, owned=False) for name, module in modules.items()
        }

    def _close_clones(self) -> None:
        for clone in self._clones:
            _release(clone)


def _modules(pipe: Any) -> dict[str, Any]:
    modules = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {name: module for name, module in modules.items() if module is not None}


def _demand_values(name: str, module: torch.nn.Module) -> None:
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not (info := describe(tensor)).has_data:
            offloaded = "; the pipeline's remove_all_hooks() brings back what is offloaded"
            raise DatalessTensorError(
                f"the {name}'s {key}, {info}, has no values to convert: {info.reason}"
                + offloaded * tensor.is_meta
            )


def _disabled(progress: bool | None) -> bool | None:
    """The value of tqdm's ``disable``, for which None asks whether stderr is a terminal."""
    return None if progress is None else not progress


def _release(pipe: Any) -> None:
    """Take the components, and with them all weights, from a pipeline of the session's."""
    for name in COMPONENTS:
        if getattr(pipe, name, None) is not None:
            setattr(pipe, name, ClosedComponent(name))
            pipe.save_pretrained = ClosedComponent(name)
