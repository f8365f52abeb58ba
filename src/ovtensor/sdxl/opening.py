"""From a component's source to a compiled graph: out of the cache, or converted."""

from __future__ import annotations

import functools
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ovtensor._memory import give_back
from ovtensor.cache import ScratchStore, Store
from ovtensor.errors import ModelError
from ovtensor.sdxl import graphs, ir, mapped
from ovtensor.sdxl.events import Events
from ovtensor.sdxl.halves import widen_the_rest
from ovtensor.sdxl.identity import versions
from ovtensor.sdxl.parity import demand_parity
from ovtensor.sdxl.runners import OpenVINORunner
from ovtensor.sdxl.spec import Backend, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from ovtensor.sdxl.lora import Lora
    from ovtensor.sdxl.runners import Turns
    from ovtensor.sdxl.sources import Source


class _NotCachedError(Exception):
    """A component is not in the cache, and this is not the time to convert it."""


class Opener:
    """Opens the graphs of a session's components on OpenVINO; they are the caller's to close."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        sources: Mapping[str, Source],
        loras: Mapping[str, Sequence[Lora]],
        store: Store,
        events: Events,
        turns: Turns,
        verify: bool | None,
    ) -> None:
        self._backends = backends
        self._sources = dict(sources)
        self._loras = loras
        self._store = store
        self._events = events
        self._turns = turns
        self._verify = verify
        self._ahead: dict[str, Future[OpenVINORunner | None]] = {}

    def look_ahead(self) -> None:
        """Open what is cached of the later components in a thread, while the first is built.

        That one is the largest, and a graph is compiled by one core.
        """
        if isinstance(self._store, ScratchStore):
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="ovtensor-cache")
        for name in list(self._sources)[1:]:
            backend = self._backends[name]
            if backend.kind == "openvino" and not backend.static_shapes:
                graph_name, make = _later_graph(name)
                self._ahead[graph_name] = pool.submit(self._cached, name, make)
        pool.shutdown(wait=False)

    def close(self) -> None:
        """Close what was opened ahead and not asked for, and forget the sources."""
        for future in self._ahead.values():
            if future.cancel() or future.exception() is not None:
                continue
            if (runner := future.result()) is not None:
                runner.close()
        self._ahead.clear()
        self._sources.clear()  # they may hold modules

    def open(
        self, name: str, make: Callable[[Any], graphs.Graph], backend: Backend
    ) -> OpenVINORunner:
        """Compile a graph of the component ``name``, converted if it is not in the cache.

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
        graph = make(self._sources[name].skeleton)
        ahead = self._ahead.get(graph.name)
        runner = None if ahead is None else ahead.result()
        self._ahead.pop(graph.name, None)  # not before: what interrupts the wait leaves it to close
        if runner is None:
            runner = self._opened(name, graph, make, backend, self._events)
            ahead = None
        try:
            if ahead is not None:
                self._events.passed("compile", graph.name, runner.stats.compile_seconds)
            if self._verifies(backend):
                given, expected = runner.reference()
                with self._events.stage("warm-up", graph.name):
                    demand_parity(graph.name, backend, expected, runner(*given))
        except BaseException:
            runner.close()
            raise
        return runner

    def _verifies(self, backend: Backend) -> bool:
        return _rounds(backend) if self._verify is None else self._verify

    def _cached(self, name: str, make: Callable[[Any], graphs.Graph]) -> OpenVINORunner | None:
        """What takes no conversion, or None; whatever is wrong with it comes up again without."""
        backend = self._backends[name]
        try:
            graph = make(self._sources[name].skeleton)
            return self._opened(name, graph, None, backend, Events(None))
        except Warning:  # an error where somebody wants that, and not given twice
            raise
        except Exception:  # noqa: BLE001
            return None

    def _opened(
        self,
        name: str,
        graph: graphs.Graph,
        make: Callable[[Any], graphs.Graph] | None,
        backend: Backend,
        events: Events,
    ) -> OpenVINORunner:
        """A compiled graph, converted by way of ``make`` or only if that has been done already."""
        start = time.perf_counter()
        source, loras = self._sources[name], self._loras[name]
        verify = self._verifies(backend)
        dtype = torch_dtype(backend.precision)
        # LoRAs are added in float32, and a reference is what torch computes with these weights.
        halves = None if _rounds(backend) or verify or loras else source.halves
        stay_mapped = mapped.stay_mapped(graph, backend)
        facts = self._facts(name)
        if facts is not None:
            facts |= {
                "graph": graph.name,
                "precision": backend.precision,
                "compression": backend.weights,
                "halves": str(halves),
                "mapped": stay_mapped,
                "reference": verify,
            }

        lasting: list[weakref.ref[Any]] = []

        def write(folder: Path) -> None:
            if make is None:
                raise _NotCachedError
            with events.stage("load", graph.name):
                module = source.load(halves or dtype, loras)
                lasting.append(weakref.ref(module))
                if halves is not None:
                    widen_the_rest(module)
            # What is kept under these facts has to be made of them.
            if facts is not None and not facts.items() >= (self._facts(name) or {}).items():
                raise ModelError(
                    f"the weights of {graph.name} changed while they were loaded; wait until "
                    f"nobody writes to them, and try again"
                )
            with events.stage("convert", graph.name):
                ir.write(
                    make(module),
                    backend,
                    folder,
                    refer=verify,
                    halves=halves is not None,
                    stay_mapped=stay_mapped,
                )

        store = ScratchStore() if facts is None else self._store
        entry = store.open(facts or {}, write, label=f"{graph.name} in {backend.precision}")
        if not entry.hit:  # so that torch's weights make room for the compilation
            give_back(collect=any(module() is not None for module in lasting))
        seconds = time.perf_counter() - start
        try:
            runner = OpenVINORunner(graph, entry, store, backend, events, self._turns)
        except BaseException:
            entry.close()
            raise
        runner.stats.convert_seconds = seconds
        if entry.key:
            runner.stats.cache = "hit" if entry.hit else "miss"
        return runner

    def _facts(self, name: str) -> dict[str, Any] | None:
        """Everything about weights that can change a converted graph; None if that is not known."""
        weights = self._sources[name].facts(self._store)
        if weights is None:
            return None
        loras = self._loras[name]
        involved = ["peft"] * bool(loras)
        involved += ["nncf"] * (self._backends[name].weights == "int8")
        return {
            "kind": "ir",
            "format": ir.FORMAT,
            "weights": weights,
            "loras": [lora.facts(name, self._store) for lora in loras],
            "versions": versions(*involved),
        }


def _later_graph(name: str) -> tuple[str, Callable[[Any], graphs.Graph]]:
    """The graph that a component which follows the first one needs at once: its name, its maker."""
    if name == "vae":
        return "vae_decoder", graphs.vae_decoder_graph
    return name, functools.partial(graphs.text_encoder_graph, name)


def _rounds(backend: Backend) -> bool:
    return backend.precision != "f32" or backend.weights is not None
