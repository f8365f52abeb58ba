"""From the weights of a graph to one that runs on OpenVINO: out of the cache, or converted."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ovtensor.cache import ScratchStore, Store
from ovtensor.engine.blobs import find_compiled
from ovtensor.engine.compiled import Compiled
from ovtensor.engine.identity import UndescribedError, versions
from ovtensor.engine.memory import MemoryPolicy, give_back
from ovtensor.engine.plan import ConversionPlan
from ovtensor.engine.runners import ActivationMemory, OpenVINORunner
from ovtensor.errors import CacheWarning, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from ovtensor.engine.backend import Backend
    from ovtensor.engine.events import Events
    from ovtensor.engine.graph import GraphSpec

_log = logging.getLogger("ovtensor")


class Opener:
    """Opens graphs on OpenVINO; they are the caller's to close.

    Parameters
    ----------
    store : Store
        Where converted and compiled models are kept.
    events : Events
        Who is told.
    verify : bool, optional
        See :meth:`.ConversionPlan.of`.
    memory : MemoryPolicy, optional
        What counts as much memory.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        *,
        verify: bool | None = None,
        memory: MemoryPolicy | None = None,
    ) -> None:
        self.memory = MemoryPolicy() if memory is None else memory
        self.activations = ActivationMemory(self.memory)
        self._store = store
        self._events = events
        self._verify = verify
        self._ahead: dict[str, Future[_Found]] = {}

    def look_ahead(self, specs: Iterable[tuple[GraphSpec, Backend]]) -> None:
        """Begin to open what is cached of some graphs, one after another.

        In one thread: the graph that :meth:`open` is called for, or what is imported meanwhile, is
        the work of another core.
        """
        if isinstance(self._store, ScratchStore):
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="ovtensor-cache")
        for spec, backend in specs:
            if not backend.static_shapes:
                self._ahead[spec.name] = pool.submit(self._look, spec, backend)
        pool.shutdown(wait=False)

    def close(self) -> None:
        """Close what was opened ahead and not asked for."""
        for future in self._ahead.values():
            if future.cancel() or future.exception() is not None:
                continue
            if (compiled := future.result().compiled) is not None:
                compiled.close()
        self._ahead.clear()

    def open(self, spec: GraphSpec, backend: Backend) -> OpenVINORunner:
        """Compile a graph, converted if it is not in the cache.

        Raises
        ------
        ComponentError
            If it cannot be converted or compiled.
        ModelError
            If its weights cannot be loaded.
        ParityError
            If it does not compute what torch does.
        """
        graph = spec.make(spec.source.meta_module)
        ahead = self._ahead.get(spec.name)
        if ahead is None:
            found = self._find(spec, backend)
        else:
            found = ahead.result()
            del self._ahead[spec.name]  # not before: what interrupts the wait leaves it to close
        _log.info("%s", found.plan)
        compiled = found.compiled
        if compiled is None:
            compiled = self._converted(spec, backend, found)
        try:
            self._check(compiled, found)
        except BaseException:
            compiled.close()
            raise
        return OpenVINORunner(graph, spec.traits, compiled, self.activations)

    def _check(self, compiled: Compiled, found: _Found) -> None:
        name, verify = compiled.name, compiled.plan.verify
        if found.compiled is not None:  # in another thread, which has checked it too
            self._events.passed("compile", name, compiled.stats.compile_seconds)
            if verify:
                self._events.passed("warm-up", name, found.check_seconds)
        elif verify:
            with self._events.stage("warm-up", name):
                compiled.check()

    def _look(self, spec: GraphSpec, backend: Backend) -> _Found:
        """Find what takes no conversion and no compilation.

        If something is wrong with it, that comes up again in the thread that opens the session.
        """
        start = time.perf_counter()
        found = self._find(spec, backend)
        entry = None if found.fields is None else self._store.find(found.fields)
        if entry is None:
            return found
        compiled = None
        try:
            looked_up = time.perf_counter()
            model = find_compiled(found.plan, backend, entry, self._store)
            if model is not None:
                compiled = Compiled(found.plan, backend, entry, self._store, self._events, model)
                ready = time.perf_counter()
                compiled.stats.convert_seconds = looked_up - start
                compiled.stats.compile_seconds = ready - looked_up
                if found.plan.verify:
                    compiled.check()
                found.compiled, found.check_seconds = compiled, time.perf_counter() - ready
        except Exception as error:  # noqa: BLE001
            _log.debug("%s could not be opened ahead: %s", spec.name, error)
        if found.compiled is None:
            (compiled or entry).close()
        return found

    def _converted(self, spec: GraphSpec, backend: Backend, found: _Found) -> Compiled:
        """A compiled graph, converted unless what was found of it is in the cache."""
        plan, fields = found.plan, found.fields
        start = time.perf_counter()
        lasting: list[weakref.ref[Any]] = []

        def write(folder: Path) -> None:
            # What a conversion takes, which a warm start does without.
            from ovtensor.engine import convert
            from ovtensor.engine.copies import detached
            from ovtensor.engine.passes.sixteen_bit import cast_the_rest
            from ovtensor.engine.process import EXCLUSIVE

            with self._events.stage("load", plan.graph):
                module = detached(spec.source.load(plan.load_dtype))
                lasting.append(weakref.ref(module))
                if plan.stored_as is not None:
                    cast_the_rest(module, plan.dtype)
            with self._events.stage("convert", plan.graph), EXCLUSIVE:
                convert.write(spec.make(module), plan, folder)
            # What is kept under these fields has to be made of them.
            if fields is not None and fields != self._find(spec, backend).fields:
                raise ModelError(
                    f"the weights of {plan.graph} changed while they were converted; wait until "
                    f"nobody writes to them, and try again",
                    component=plan.graph,
                )
            del module
            # It can have weights mapped from this folder, which Windows would not move then.
            if plan.stored_as is not None and lasting[-1]() is not None:
                gc.collect()

        if found.unknown is not None and not isinstance(self._store, ScratchStore):
            warnings.warn(
                f"{plan.graph} is converted and not cached, for nobody can tell when it is the "
                f"same again: {found.unknown}",
                CacheWarning,
                stacklevel=2,
            )
        store = ScratchStore() if fields is None else self._store
        entry = store.open(fields or {}, write, label=f"{plan.graph} in {plan.precision}")
        if not entry.hit:  # so that torch's weights make room for the compilation
            give_back(collect=any(module() is not None for module in lasting))
        seconds = time.perf_counter() - start
        try:
            compiled = Compiled(plan, backend, entry, store, self._events)
        except BaseException:
            entry.close()
            raise
        compiled.stats.convert_seconds = seconds
        return compiled

    def _find(self, spec: GraphSpec, backend: Backend) -> _Found:
        """The plan, and all else that can change a converted graph, or why that is not known."""
        plan = ConversionPlan.of(spec, backend, verify=self._verify, memory=self.memory)
        involved = ["nncf"] * (plan.compression == "int8")
        try:
            weights = spec.source.key_fields(self._store)
        except UndescribedError as error:
            return _Found(plan, None, str(error))
        fields = plan.conversion_fields()
        return _Found(plan, {**fields, "weights": weights, "versions": versions(*involved)})


@dataclasses.dataclass(slots=True)
class _Found:
    plan: ConversionPlan
    fields: dict[str, Any] | None
    unknown: str | None = None
    compiled: Compiled | None = None
    check_seconds: float = 0.0
