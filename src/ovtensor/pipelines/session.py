"""The session: a pipeline whose components run where they were asked to.

A session owns what it opens. It is NEW when made, OPEN inside its ``with`` block, CLOSED after it,
and never opened twice. Whatever fails half-way, everything opened until then is released; the
pipeline that a caller passed in is not touched at any moment.
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

from ovtensor.engine.backend import resolve
from ovtensor.engine.devices import torch_dtype
from ovtensor.engine.events import Events
from ovtensor.engine.memory import give_back
from ovtensor.engine.opening import Opener
from ovtensor.errors import DatalessTensorError, InputError, SessionClosedError
from ovtensor.pipelines import components
from ovtensor.pipelines.attached import ClosedComponent, attach, copied, put
from ovtensor.pipelines.families import family_of, task_class
from ovtensor.pipelines.folders import model_folder
from ovtensor.pipelines.kinds import kind_called, kind_of
from ovtensor.pipelines.proxies import is_proxy
from ovtensor.pipelines.sources import LoadedSource, folder_sources
from ovtensor.tensors.convert import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import TypeAlias

    from ovtensor.cache import Store
    from ovtensor.engine.backend import Backend
    from ovtensor.engine.events import Event
    from ovtensor.engine.graph import GraphSpec
    from ovtensor.engine.memory import MemoryPolicy
    from ovtensor.nonfinite import Policy
    from ovtensor.pipelines.components import Builder
    from ovtensor.pipelines.families import Family
    from ovtensor.pipelines.kinds import Kind
    from ovtensor.pipelines.lora import Given, Lora
    from ovtensor.pipelines.report import Report
    from ovtensor.pipelines.sources import ComponentSource

    # A torch pipeline, its family, its components' sources, and the LoRAs of each.
    _Opened: TypeAlias = tuple[
        Any, Family, Mapping[str, ComponentSource], Mapping[str, Sequence[Lora]]
    ]

Pipe = TypeVar("Pipe")
S = TypeVar("S", bound="ComponentSource")


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
        self._backends: dict[str, Backend] = {}  # by component, with nothing left open
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
            if isinstance(self._model, str | os.PathLike):
                base, family, sources, loras = self._from_folder(self._model, opener)
                owned = True
            else:
                base, family, sources, loras = self._from_pipeline(self._model, opener)
                owned = False
                undo.callback(base.maybe_free_model_hooks)  # whose hooks offload shared modules
            self._model = None  # the session must not keep the weights alive by itself
            pipe = attach(
                base,
                tokenizers=family.tokenizers,
                events=self._events,
                nonfinite=self._nonfinite,
                ended=opener.activations.end,
            )
            del base
            if owned:
                pipe.set_progress_bar_config(disable=_disabled(self._progress))
            undo.callback(_release, pipe, tuple(family.components))
            pipe.__dict__["ovtensor"] = self
            undo.callback(pipe.__dict__.pop, "ovtensor", None)
            self._pipe = weakref.ref(pipe)
            undo.callback(self._close_clones, tuple(family.components))
            self._attach_components(pipe, family, sources, loras, opener, undo, owned=owned)
            # Proxies take part in offloading, as after each call of the pipeline.
            pipe.maybe_free_model_hooks()
        give_back(collect=False)  # what imports and opening have freed
        return pipe

    def _attach_components(
        self,
        pipe: Any,
        family: Family,
        sources: Mapping[str, ComponentSource],
        loras: Mapping[str, Sequence[Lora]],
        opener: Opener,
        undo: contextlib.ExitStack,
        *,
        owned: bool,
    ) -> None:
        # Pipelines that take a picture need the VAE's encoder at once.
        encodes = "image" in inspect.signature(type(pipe).__call__).parameters
        self._builder = builder = components.Builder(
            self._backends,
            family.components,
            _adapted(sources, loras),
            opener,
            self._events,
            self._nonfinite,
            undo,
        )
        for name in sources:
            original = getattr(pipe, name)
            # What surrounds the components computes in float32 in a pipeline that is ours; in
            # the caller's it goes on in the dtype that each component has.
            interface = torch.float32 if owned else original.dtype
            proxy = builder.build(name, original, interface, encodes=encodes)
            if proxy is not original:
                put(pipe, name, proxy)
            del original, proxy  # so that an owned component's torch weights can go at once

    def _from_folder(self, model: str | os.PathLike[str], opener: Opener) -> _Opened:
        """A pipeline from a folder, with meta modules of what will be compiled."""
        folder, family = model_folder(model)
        on_disk = folder_sources(folder, family.components)
        self._settle(family, {name: kind_called(one.class_name) for name, one in on_disk.items()})
        compiled = dict(self._on_openvino(on_disk))
        early = not self._loras  # which can be told apart when layers are known
        if early:
            # While diffusers and transformers are imported, which takes seconds; if that has
            # been done, the first one is opened here meanwhile.
            imported = "diffusers" in sys.modules
            opener.look_ahead(self._specs(compiled)[imported:])
        from ovtensor.pipelines import loading

        self._demand_convertible(family, compiled)
        with self._events.stage("load", "pipeline"):
            given = {
                name: source.meta_module
                if name in compiled
                else source.load(torch_dtype(self._backends[name].precision))
                for name, source in on_disk.items()
            }
            pipe = loading.load_pipeline(folder, task_class(self._task, family), given)
            del given
        modules = _modules(pipe, family)
        self._settle(family, {name: kind_of(module) for name, module in modules.items()})
        sources: dict[str, ComponentSource] = {
            name: compiled.get(name) or LoadedSource(module, owned=True, folder=on_disk.get(name))
            for name, module in modules.items()
        }
        loras = self._read_loras(family, sources)
        if not early:
            opener.look_ahead(self._specs(_adapted(sources, loras))[1:])
        return pipe, family, sources, loras

    def _from_pipeline(self, pipe: Any, opener: Opener) -> _Opened:
        """The caller's pipeline."""
        family = family_of(pipe)
        if getattr(pipe, "ovtensor", None) is not None:
            raise InputError(
                "this pipeline is that of an open session; make another one of it with its "
                "clone(), or pass the pipeline that the session was made from"
            )
        kind = task_class(self._task, family)
        if kind is not None and not isinstance(pipe, kind):
            raise InputError(
                f"the pipeline is a {type(pipe).__qualname__} already; make another one with "
                f"{kind.__qualname__}.from_pipe(pipe), or pass the model's folder"
            )
        modules = _modules(pipe, family)
        self._settle(family, {name: kind_of(module) for name, module in modules.items()})
        for name, module in modules.items():
            if is_proxy(module):
                raise InputError(
                    f"the pipeline's {name} is of another session; make more pipelines of that "
                    f"one with its clone(), or pass the model's folder"
                )
            if self._backends[name].kind == "openvino":
                _demand_values(name, module)
        sources: dict[str, ComponentSource] = {
            name: LoadedSource(module, owned=False) for name, module in modules.items()
        }
        self._demand_convertible(family, dict(self._on_openvino(sources)))
        loras = self._read_loras(family, sources)
        opener.look_ahead(self._specs(_adapted(sources, loras))[1:])
        return pipe, family, sources, loras

    def _settle(self, family: Family, kinds: Mapping[str, Kind | None]) -> None:
        """Settle the backend of each component; a component's own name counts before its group's.

        Raises
        ------
        InputError
            If something was asked of a component that the family does not have.
        """
        known = {*family.components, *family.components.values()}
        if unknown := set(self._asked) - known:
            raise InputError(
                f"backends names {', '.join(map(repr, sorted(unknown)))}; {family.name} has "
                f"{', '.join(map(repr, sorted(known)))}"
            )
        for name, kind in kinds.items():
            asked = self._asked.get(name) or self._asked[family.components[name]]
            prefer_f32 = kind is not None and kind.f32_by_default
            self._backends[name] = resolve(asked, prefer_f32=prefer_f32)

    def _demand_convertible(self, family: Family, sources: Mapping[str, ComponentSource]) -> None:
        """Refuse what cannot be converted before anything is."""
        for name, source in sources.items():
            components.convertible(name, family.components[name], source.meta_module)

    def _on_openvino(self, sources: Mapping[str, S]) -> list[tuple[str, S]]:
        """Those that OpenVINO runs, the largest one first."""
        return [
            (name, source)
            for name, source in sources.items()
            if self._backends[name].kind == "openvino"
        ]

    def _specs(self, sources: Mapping[str, ComponentSource]) -> list[tuple[GraphSpec, Backend]]:
        """The graph of each component on OpenVINO that is opened first."""
        found = []
        for name, source in self._on_openvino(sources):
            given = getattr(source, "class_name", None)
            kind = kind_called(given) if given is not None else kind_of(source.meta_module)
            if kind is not None and kind.graphs:
                spec = components.graph_spec(name, kind.graphs[0], source)
                found.append((spec, self._backends[name]))
        return found

    def _read_loras(
        self, family: Family, sources: Mapping[str, ComponentSource]
    ) -> dict[str, list[Lora]]:
        """The LoRAs of each component."""
        from ovtensor.pipelines import lora

        modules = {name: sources[name].meta_module for name in family.adapted if name in sources}
        loras = lora.read(self._loras, modules, family.loader)
        return {
            name: found
            for name in modules
            if (found := [one for one in loras if name in one.tensors])
        }

    def _close_clones(self, names: tuple[str, ...]) -> None:
        for clone in self._clones:
            _release(clone, names)


def _adapted(
    sources: Mapping[str, ComponentSource], loras: Mapping[str, Sequence[Lora]]
) -> dict[str, ComponentSource]:
    """The sources, with LoRAs added where there are any."""
    if not loras:
        return dict(sources)
    from ovtensor.pipelines.lora import AdaptedSource

    return {
        name: AdaptedSource(source, name, loras[name]) if name in loras else source
        for name, source in sources.items()
    }


def _modules(pipe: Any, family: Family) -> dict[str, Any]:
    modules = {name: getattr(pipe, name, None) for name in family.components}
    return {name: module for name, module in modules.items() if module is not None}


def _demand_values(name: str, module: torch.nn.Module) -> None:
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not (info := describe(tensor)).has_data:
            offloaded = "; the pipeline's remove_all_hooks() brings back what is offloaded"
            raise DatalessTensorError(
                f"the {name}'s {key}, {info}, has no values to convert: {info.reason}"
                + offloaded * tensor.is_meta,
                component=name,
                tensor=info,
            )


def _disabled(progress: bool | None) -> bool | None:
    """The value of tqdm's ``disable``, for which None asks whether stderr is a terminal."""
    return None if progress is None else not progress


def _release(pipe: Any, names: tuple[str, ...]) -> None:
    """Take the components, and with them all weights, from a pipeline of the session's."""
    for name in names:
        if getattr(pipe, name, None) is not None:
            put(pipe, name, ClosedComponent(name))
            pipe.__dict__["save_pretrained"] = ClosedComponent(name)
