"""The session: a pipeline whose components run where they were asked to.

A session owns what it opens. It is NEW when made, OPEN inside its ``with`` block, CLOSED after it,
and never opened twice. Whatever fails half-way, everything opened until then is released; the
pipeline that a caller passed in is not touched at any moment.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import torch

from ovtensor.engine.events import Events
from ovtensor.engine.memory import give_back
from ovtensor.engine.opening import Opener
from ovtensor.errors import SessionClosedError
from ovtensor.pipelines.attached import ClosedComponent, attach, copied, put
from ovtensor.pipelines.components import Builder
from ovtensor.pipelines.prepare import prepare

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from ovtensor.cache import Store
    from ovtensor.engine.backend import Backend
    from ovtensor.engine.events import Event
    from ovtensor.engine.memory import MemoryPolicy
    from ovtensor.nonfinite import Policy
    from ovtensor.pipelines.lora import Given
    from ovtensor.pipelines.report import Report

Pipe = TypeVar("Pipe")


class Session(Generic[Pipe]):
    """Context manager that gives a diffusers pipeline with some components on OpenVINO.

    Made by :func:`ovtensor.pipeline`, :func:`ovtensor.sdxl_pipeline` and
    :func:`ovtensor.split_backends`; ``with session as pipe:`` gives the pipeline, and
    ``pipe.ovtensor`` is the session again.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Pipe,
        backends: Mapping[str, Backend],
        *,
        task: str | type | None,
        loras: Sequence[Given],
        store: Store,
        verify: bool | None,
        progress: bool | None,
        nonfinite: Policy | None,
        memory: MemoryPolicy | None,
        on_event: Callable[[Event], Any] | None,
    ) -> None:
        self._model: Any = model
        self._asked = dict(backends)
        self._task = task
        self._loras = tuple(loras)
        self._store = store
        self._verify = verify
        self._progress = progress
        self._nonfinite = nonfinite
        self._memory = memory
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
                raise SessionClosedError("this session was already opened once; make a new one")
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
        opener = Opener(self._store, self._events, verify=self._verify, memory=self._memory)
        undo.callback(opener.close)
        with self._events.bar(_disabled(self._progress)):
            found = prepare(self._model, self._asked, self._task, self._loras, opener, self._events)
            self._model = None  # the session must not keep the weights alive by itself
            if not found.owned:  # whose hooks offload modules that both have
                undo.callback(found.pipe.maybe_free_model_hooks)
            names = tuple(found.family.components)
            pipe = attach(
                found.pipe,
                tokenizers=found.family.tokenizers,
                events=self._events,
                nonfinite=self._nonfinite,
                ended=opener.activations.end,
            )
            if found.owned:
                pipe.set_progress_bar_config(disable=_disabled(self._progress))
            undo.callback(_release, pipe, names)
            pipe.__dict__["ovtensor"] = self
            undo.callback(pipe.__dict__.pop, "ovtensor", None)
            self._pipe = weakref.ref(pipe)
            undo.callback(self._close_clones, names)
            self._builder = builder = Builder(found, opener, self._events, self._nonfinite, undo)
            sources, owned = found.sources, found.owned
            del found  # and with it the only other holder of an owned pipeline's modules
            for name in sources:
                original = getattr(pipe, name)
                # What surrounds the components computes in float32 in a pipeline that is ours; in
                # the caller's it goes on in the dtype that each component has.
                interface = torch.float32 if owned else original.dtype
                proxy = builder.build(name, original, interface)
                if proxy is not original:
                    put(pipe, name, proxy)
                del original, proxy  # so that an owned component's torch weights can go at once
            del sources
            # Proxies take part in offloading, as after each call of the pipeline.
            pipe.maybe_free_model_hooks()
        give_back(collect=False)  # what imports and opening have freed
        return pipe

    def _close_clones(self, names: tuple[str, ...]) -> None:
        for clone in self._clones:
            _release(clone, names)


def _disabled(progress: bool | None) -> bool | None:
    """The value of tqdm's ``disable``, for which None asks whether stderr is a terminal."""
    return None if progress is None else not progress


def _release(pipe: Any, names: tuple[str, ...]) -> None:
    """Take the components, and with them all weights, from a pipeline of the session's."""
    for name in names:
        if getattr(pipe, name, None) is not None:
            put(pipe, name, ClosedComponent(name))
            pipe.__dict__["save_pretrained"] = ClosedComponent(name)
