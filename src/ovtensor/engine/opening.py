"""From a component's source to a compiled graph: out of the cache, or converted."""

from __future__ import annotations

import dataclasses
import gc
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ovtensor.cache import ScratchStore, Store
from ovtensor.engine import mapped_weights as mapped
from ovtensor.engine.backend import Backend, may_run_on, torch_dtype
from ovtensor.engine.compiled import FORMAT, Compiled, find_compiled
from ovtensor.engine.identity import UndescribedError, versions
from ovtensor.engine.memory import give_back
from ovtensor.engine.passes import group_norms
from ovtensor.engine.runners import OpenVINORunner
from ovtensor.errors import CacheWarning, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from typing import TypeAlias

    import torch

    from ovtensor.engine.events import Events
    from ovtensor.engine.runners import Turns
    from ovtensor.pipelines.graphs import Graph
    from ovtensor.pipelines.lora import Lora
    from ovtensor.pipelines.sources import Source

    Facts: TypeAlias = dict[str, Any] | None


class Opener:
    """Opens the graphs of a session's components on OpenVINO; they are the caller's to close."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        store: Store,
        events: Events,
        turns: Turns,
        verify: bool | None,
    ) -> None:
        self._backends = backends
        self._store = store
        self._events = events
        self._turns = turns
        self._verify = verify
        self._ahead: dict[str, Future[_Found]] = {}

    def look_ahead(
        self, sources: Iterable[tuple[str, Source]], loras: Mapping[str, Sequence[Lora]]
    ) -> None:
        """Begin to open what is cached of some components, one after another.

        In one thread: the graph that :meth:`open` is called for, or what is imported meanwhile, is
        the work of another core.
        """
        if isinstance(self._store, ScratchStore):
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="ovtensor-cache")
        for name, source in sources:
            backend = self._backends[name]
            if not backend.static_shapes:
                graph = "vae_decoder" if name == "vae" else name
                given = loras.get(name, ())
                self._ahead[graph] = pool.submit(self._look, graph, source, given, backend)
        pool.shutdown(wait=False)

    def close(self) -> None:
        """Close what was opened ahead and not asked for."""
        for future in self._ahead.values():
            if future.cancel() or future.exception() is not None:
                continue
            if (compiled := future.result().compiled) is not None:
                compiled.close()
        self._ahead.clear()

    def open(
        self,
        source: Source,
        loras: Sequence[Lora],
        make: Callable[[Any], Graph],
        backend: Backend,
    ) -> OpenVINORunner:
        """Compile a graph of a component, converted if it is not in the cache.

        ``make`` gives it for a module, or its skeleton.

        Raises
        ------
        ComponentError
            If it cannot be converted or compiled.
        ModelError
            If its weights cannot be loaded.
        ParityError
            If it does not compute what torch does.
        """
        graph = make(source.skeleton)
        ahead = self._ahead.get(graph.name)
        if ahead is None:
            found = self._known(graph.name, source, loras, backend)
        else:
            found = ahead.result()
            del self._ahead[graph.name]  # not before: what interrupts the wait leaves it to close
        compiled = found.compiled
        if found.unknown is not None and not isinstance(self._store, ScratchStore):
            warnings.warn(
                f"{graph.name} is converted and not cached, for nobody can tell when it is the "
                f"same again: {found.unknown}",
                CacheWarning,
                stacklevel=2,
            )
        if compiled is None:
            compiled = self._converted(graph.name, source, loras, make, backend, found.facts)
        try:
            if found.compiled is not None:
                self._events.passed("compile", graph.name, compiled.stats.compile_seconds)
                if self._verifies(backend):
                    self._events.passed("warm-up", graph.name, found.check_seconds)
            elif self._verifies(backend):
                with self._events.stage("warm-up", graph.name):
                    compiled.check()
        except BaseException:
            compiled.close()
            raise
        return OpenVINORunner(graph, compiled, self._turns)

    def _verifies(self, backend: Backend) -> bool:
        return _rounds(backend) if self._verify is None else self._verify

    def _look(self, graph: str, source: Source, loras: Sequence[Lora], backend: Backend) -> _Found:
        """Find what takes no conversion and no compilation.

        If something is wrong with it, that comes up again in the thread that opens the session.
        """
        start = time.perf_counter()
        found = self._known(graph, source, loras, backend)
        entry = None if found.facts is None else self._store.find(found.facts)
        if entry is None:
            return found
        compiled = None
        try:
            looked_up = time.perf_counter()
            model = find_compiled(graph, entry, self._store, backend)
            if model is not None:
                compiled = Compiled(graph, entry, self._store, backend, self._events, model)
                ready = time.perf_counter()
                compiled.stats.convert_seconds = looked_up - start
                compiled.stats.compile_seconds = ready - looked_up
                if self._verifies(backend):
                    compiled.check()
                found.compiled, found.check_seconds = compiled, time.perf_counter() - ready
        except Exception:  # noqa: BLE001
            pass
        if found.compiled is None:
            (compiled or entry).close()
        return found

    def _converted(
        self,
        graph: str,
        source: Source,
        loras: Sequence[Lora],
        make: Callable[[Any], Graph],
        backend: Backend,
        facts: Facts,
    ) -> Compiled:
        """A compiled graph, converted by way of ``make`` unless ``facts`` are in the cache."""
        start = time.perf_counter()
        halves = self._halves(graph, source, loras, backend)
        lasting: list[weakref.ref[Any]] = []

        def write(folder: Path) -> None:
            # What a conversion takes, which a warm start does without.
            from ovtensor.engine import convert as ir
            from ovtensor.engine.copies import detached
            from ovtensor.engine.passes.sixteen_bit import cast_the_rest

            with self._events.stage("load", graph):
                dtype = torch_dtype(backend.precision)
                module = detached(source.load(halves or dtype, loras))
                lasting.append(weakref.ref(module))
                if halves is not None:
                    cast_the_rest(module, dtype)
            with self._events.stage("convert", graph):
                ir.write(
                    make(module),
                    backend,
                    folder,
                    refer=self._verifies(backend),
                    halves=halves is not None and backend.precision == "f32",
                    stay_mapped=mapped.stay_mapped(graph, source.size, backend),
                    tuned=_is_tuned(graph, backend),
                )
            # What is kept under these facts has to be made of them.
            if facts is not None and facts != self._known(graph, source, loras, backend).facts:
                raise ModelError(
                    f"the weights of {graph} changed while they were converted; wait until "
                    f"nobody writes to them, and try again"
                )
            del module
            # It can have weights mapped from this folder, which Windows would not move then.
            if halves is not None and lasting[-1]() is not None:
                gc.collect()

        store = ScratchStore() if facts is None else self._store
        entry = store.open(facts or {}, write, label=f"{graph} in {backend.precision}")
        if not entry.hit:  # so that torch's weights make room for the compilation
            give_back(collect=any(module() is not None for module in lasting))
        seconds = time.perf_counter() - start
        try:
            compiled = Compiled(graph, entry, store, backend, self._events)
        except BaseException:
            entry.close()
            raise
        compiled.stats.convert_seconds = seconds
        return compiled

    def _halves(
        self, graph: str, source: Source, loras: Sequence[Lora], backend: Backend
    ) -> torch.dtype | None:
        """The dtype of 16 bits in which linear layers are loaded for another one, if they are."""
        if loras or backend.weights is not None:  # both are computed with in the other
            return None
        if backend.precision == "f32":
            if self._verifies(backend):  # the reference would be computed in it
                return None
            # OpenVINO's GPU plugin writes past the end of memory when it imports a blob that
            # widens weights which it also brings into another layout.
            on_cpu = all(device == "CPU" for device in may_run_on(backend.device))
            return source.halves if on_cpu else None
        return source.halves if mapped.stay_mapped(graph, source.size, backend) else None

    def _known(self, graph: str, source: Source, loras: Sequence[Lora], backend: Backend) -> _Found:
        """All that can change a converted graph, or why that is not known."""
        involved = ["peft"] * bool(loras) + ["nncf"] * (backend.weights == "int8")
        try:
            weights = source.facts(self._store)
        except UndescribedError as error:
            return _Found(None, str(error))
        facts = {
            "kind": "ir",
            "format": FORMAT,
            "graph": graph,
            "weights": weights,
            "loras": [lora.facts(graph, self._store) for lora in loras],
            "precision": backend.precision,
            "compression": backend.weights,
            "halves": str(self._halves(graph, source, loras, backend)),
            "mapped": mapped.stay_mapped(graph, source.size, backend),
            "tuned": _is_tuned(graph, backend),
            "reference": self._verifies(backend),
            "versions": versions(*involved),
        }
        return _Found(facts)


@dataclasses.dataclass(slots=True)
class _Found:
    facts: Facts
    unknown: str | None = None
    compiled: Compiled | None = None
    check_seconds: float = 0.0


def _is_tuned(graph: str, backend: Backend) -> bool:
    # In float16 the norms' sums lose more than torch's do: ten times as much where a mean is 300
    # times the deviation.
    sums_hold = {"f32": True, "bf16": group_norms.HOLD_IN_BFLOAT16, "f16": False}
    return (
        graph in ("vae_encoder", "vae_decoder")
        and backend.device == "CPU"
        and sums_hold[backend.precision]
    )


def _rounds(backend: Backend) -> bool:
    return backend.precision != "f32" or backend.weights is not None
