"""From a component's source to what takes its place in the pipeline."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.compiled import RunnerStats
from ovtensor.engine.devices import TORCH_DTYPES, torch_dtype
from ovtensor.engine.identity import plain
from ovtensor.engine.runners import DeferredRunner, Runner, TorchRunner
from ovtensor.engine.weights import release_weights
from ovtensor.pipelines.kinds import convertible, graph_spec, kind_of
from ovtensor.pipelines.proxies import Attachment
from ovtensor.pipelines.report import ComponentReport, Report

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator

    from ovtensor.engine.events import Events
    from ovtensor.engine.opening import Opener
    from ovtensor.engine.plan import ConversionPlan
    from ovtensor.nonfinite import Policy
    from ovtensor.pipelines.kinds import GraphKind, Kind
    from ovtensor.pipelines.kinds.base import Run
    from ovtensor.pipelines.prepare import Prepared

_PRECISIONS = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Builder:
    """Builds components one at a time, and knows afterwards what each of them costs.

    ``undo`` gets what releases them.
    """

    def __init__(
        self,
        prepared: Prepared,
        opener: Opener,
        events: Events,
        nonfinite: Policy | None,
        undo: contextlib.ExitStack,
    ) -> None:
        self._backends = prepared.backends
        self._arguments = prepared.family.components
        self._sources = dict(prepared.sources)
        # Pipelines that take a picture need the VAE's encoder at once.
        call = inspect.signature(type(prepared.pipe).__call__)
        self._encodes = "image" in call.parameters
        self._opener = opener
        self._events = events
        self._nonfinite = nonfinite
        self._undo = undo
        self._precisions: dict[str, str] = {}
        self._stats: dict[str, list[Callable[[], RunnerStats]]] = {}
        self._runners: dict[str, list[Runner]] = {}
        undo.callback(self._sources.clear)  # they may hold modules, and this outlives them

    def build(self, name: str, original: Any, interface: torch.dtype) -> Any:
        """What takes the place of ``original``, or ``original`` itself if nothing has to.

        Pipelines see ``interface`` as its dtype. An encoder of pictures is made ready at once if
        the pipeline takes some, else when it is first called.

        Raises
        ------
        ComponentError
            If it cannot be converted, compiled or run.
        """
        backend, kind = self._backends[name], kind_of(original)
        self._stats[name], self._runners[name] = [], []
        to = Attachment(
            name=name,
            argument=self._arguments[name],
            dtype=interface,
            narrow=backend.precision != "f32" or backend.weights is not None,
            encodes=self._encodes,
            events=self._events,
            nonfinite=self._nonfinite,
        )
        if backend.kind == "openvino":
            return self._on_openvino(convertible(name, to.argument, original), to)
        return self._on_torch(kind, original, to)

    def report(self) -> Report:
        """What each component runs on and what it has cost, in the pipeline's order."""
        return Report(self._row(name) for name in reversed(self._stats))

    def _on_openvino(self, kind: Kind, to: Attachment) -> Any:
        name = to.name
        backend, source = self._backends[name], self._sources[name]
        self._precisions[name] = backend.precision
        wide = dataclasses.replace(backend, precision="f32", weights=None)

        def make(part: GraphKind, in_f32: bool) -> Runner:
            spec = graph_spec(name, part, source)
            return self._opener.open(spec, wide if in_f32 else backend)

        return kind.proxy(source.meta_module, self._run(name, make), to)

    def _on_torch(self, kind: Kind | None, original: Any, to: Attachment) -> Any:
        name = to.name
        backend, source = self._backends[name], self._sources[name]
        dtype = torch_dtype(backend.precision)
        if backend.precision == "auto":
            dtype = original.dtype if kind is None else kind.dtype_on_torch(original)
        same = dtype == original.dtype and not source.adapted
        module = original if same else source.load(dtype)
        if source.in_memory(dtype):
            self._file_if_large(name, module)
        self._precisions[name] = _PRECISIONS.get(dtype, str(dtype))
        to = dataclasses.replace(to, narrow=dtype != torch.float32)
        if kind is None or not kind.graphs or (dtype == to.dtype and not kind.reruns(to)):
            stats = _stats_of(module)
            self._stats[name].append(lambda: stats)
            return module if kind is None else kind.watched(module, to)

        def make(part: GraphKind, in_f32: bool) -> Runner:
            computed = source.load(torch.float32) if in_f32 else module
            return TorchRunner(part.make(name + part.suffix, computed))

        return kind.proxy(plain(original), self._run(name, make), to)

    def _run(self, name: str, make: Callable[[GraphKind, bool], Runner]) -> Run:
        def run(part: GraphKind, *, in_f32: bool = False, deferred: bool = False) -> Runner:
            runner = DeferredRunner(name + part.suffix, functools.partial(make, part, in_f32))
            self._undo.callback(runner.close)
            self._stats[name].append(lambda: runner.stats)
            self._runners[name].append(runner)
            if not deferred:
                runner.open()
            return runner

        return run

    def _row(self, name: str) -> ComponentReport:
        backend = self._backends[name]
        stats = [entry() for entry in self._stats[name]]
        devices = [device for entry in stats for device in entry.execution_devices]
        states = {entry.cache for entry in stats}
        return ComponentReport(
            component=name,
            backend=backend.kind,
            device=backend.device,
            execution_devices=tuple(dict.fromkeys(devices)),
            precision=self._precisions[name],
            weight_bytes=sum(entry.weight_bytes for entry in stats),
            convert_seconds=sum(entry.convert_seconds for entry in stats),
            compile_seconds=sum(entry.compile_seconds for entry in stats),
            compiles=sum(entry.compiles for entry in stats),
            inferences=sum(entry.inferences for entry in stats),
            cache=next((state for state in ("miss", "hit") if state in states), "off"),
            plans=tuple(self._plans(name)),
        )

    def _plans(self, name: str) -> Iterator[ConversionPlan]:
        for runner in self._runners[name]:
            if runner.plan is not None:
                yield runner.plan

    def _file_if_large(self, name: str, module: Any) -> None:
        """Move weights that would take much of the memory to a file."""
        size = sum(parameter.nbytes for parameter in module.parameters())
        if not self._opener.memory.files_weights(size):
            return
        try:
            release_weights(module)
        except OSError as error:
            warnings.warn(
                f"the weights of {name}, {size} bytes, stay in memory, since they could not be "
                f"written to a temporary file: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _stats_of(module: torch.nn.Module) -> RunnerStats:
    tensors = list(module.parameters())
    return RunnerStats(
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        execution_devices=tuple(dict.fromkeys(str(tensor.device) for tensor in tensors)),
    )
