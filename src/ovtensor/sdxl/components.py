"""From a component's source to what takes its place in the pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from ovtensor._memory import give_back, takes_much
from ovtensor.cache import ScratchStore, Store
from ovtensor.errors import ComponentError, ModelError
from ovtensor.sdxl import graphs, ir, mapped
from ovtensor.sdxl.events import Events
from ovtensor.sdxl.halves import widen_the_rest
from ovtensor.sdxl.identity import versions
from ovtensor.sdxl.parity import demand_parity
from ovtensor.sdxl.report import ComponentReport, Report
from ovtensor.sdxl.runners import DeferredRunner, OpenVINORunner, Runner, RunnerStats, TorchRunner
from ovtensor.sdxl.spec import Backend, torch_dtype
from ovtensor.sdxl.stand_ins import TextEncoderStandIn, UNetStandIn, guarded_vae, vae_stand_in
from ovtensor.weights import release_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Protocol

    from ovtensor.sdxl.lora import Lora
    from ovtensor.sdxl.runners import Turns
    from ovtensor.sdxl.sources import Source

    class Run(Protocol):
        """Makes the runner of a graph of the component, on request in float32."""

        def __call__(self, make: Callable[[Any], graphs.Graph], *, in_f32: bool = False) -> Runner:
            """Make it."""
            ...


# The order of conversion is the order of weight, so that the largest one finds the most memory.
COMPONENTS = ("unet", "text_encoder_2", "text_encoder", "vae")
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class _NotCachedError(Exception):
    """A component is not in the cache, and this is not the time to convert it."""


class Builder:
    """Builds components one at a time, and knows afterwards what each of them costs.

    ``undo`` gets what releases them.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        sources: Mapping[str, Source],
        loras: Sequence[Lora],
        store: Store,
        events: Events,
        turns: Turns,
        verify: bool | None,
        undo: contextlib.ExitStack,
    ) -> None:
        self._backends = backends
        self._sources = dict(sources)
        self._loras = loras
        self._store = store
        self._events = events
        self._verify = verify
        self._undo = undo
        self._turns = turns
        self._precisions: dict[str, str] = {}
        self._stats: dict[str, list[Callable[[], RunnerStats]]] = {}
        undo.callback(self._sources.clear)  # they may hold modules, and this outlives them
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
                graph_name = "vae_decoder" if name == "vae" else name
                self._ahead[graph_name] = pool.submit(self._cached, name)
        self._undo.callback(self._drop_ahead)
        pool.shutdown(wait=False)

    def _drop_ahead(self) -> None:
        """Close what was opened ahead and not asked for, because something else failed."""
        for future in self._ahead.values():
            if not future.cancel() and (runner := future.result()) is not None:
                runner.close()
        self._ahead.clear()

    def build(self, name: str, original: Any, interface: torch.dtype, *, encodes: bool) -> Any:
        """What takes the place of ``original``, or ``original`` itself if nothing has to.

        Pipelines see ``interface`` as its dtype. The VAE's encoder is made ready at once if the
        pipeline ``encodes`` pictures, else when it is first called.

        Raises
        ------
        ComponentError
            If it cannot be converted, compiled or run.
        """
        backend, source = self._backends[name], self._sources[name]
        loras = self._loras_of(name)
        self._stats[name] = []
        if backend.kind == "openvino":
            self._precisions[name] = backend.precision
            narrow = backend.precision != "f32" or backend.weights is not None

            def compiled(make: Callable[[Any], graphs.Graph], *, in_f32: bool = False) -> Runner:
                wide = dataclasses.replace(backend, precision="f32", weights=None)
                return self._compiled(name, make, wide if in_f32 else backend, loras)

            return self._stand_in(name, source.skeleton, interface, compiled, narrow, encodes)

        dtype = _dtype_on_torch(name, original, backend)
        same = dtype == original.dtype and not loras
        module = original if same else source.load(dtype, loras)
        if source.in_memory(dtype, loras):
            _release_if_large(name, module)
        self._precisions[name] = _NAMES.get(dtype, str(dtype))
        convertible = name != "vae" or hasattr(module, "post_quant_conv")
        if dtype == (torch.float32 if name == "vae" else interface) or not convertible:
            stats = _stats_of(module)
            self._stats[name].append(lambda: stats)
            return guarded_vae(module, self._events) if name == "vae" else module

        def eager(make: Callable[[Any], graphs.Graph], *, in_f32: bool = False) -> Runner:
            return TorchRunner(make(source.load(torch.float32, loras) if in_f32 else module))

        return self._stand_in(name, original, interface, eager, True, encodes)

    def _loras_of(self, name: str) -> list[Lora]:
        return [lora for lora in self._loras if name in lora.tensors]

    def report(self) -> Report:
        """What each component runs on and what it has cost, in the pipeline's order."""
        return Report(self._row(name) for name in reversed(COMPONENTS) if name in self._stats)

    def _stand_in(
        self, name: str, shown: Any, interface: torch.dtype, run: Run, narrow: bool, encodes: bool
    ) -> Any:
        def keep(runner: Runner) -> Runner:
            self._undo.callback(runner.close)
            self._stats[name].append(lambda: runner.stats)
            return runner

        if name == "unet":
            return UNetStandIn(keep(run(graphs.unet_graph)), shown, interface)
        if name != "vae":
            runner = keep(run(lambda module: graphs.text_encoder_graph(name, module)))
            return TextEncoderStandIn(runner, shown, interface)
        if not hasattr(shown, "post_quant_conv"):
            raise ComponentError(
                f"a VAE of the class {type(shown).__qualname__} cannot be converted, only an "
                f'AutoencoderKL; run it on torch (vae="torch")'
            )
        encoder = DeferredRunner("vae_encoder", lambda: run(graphs.vae_encoder_graph))
        keep(encoder)
        if encodes:
            encoder.open()
        decoder = keep(run(graphs.vae_decoder_graph))
        in_f32 = DeferredRunner("vae_decoder", lambda: run(graphs.vae_decoder_graph, in_f32=True))
        keep(in_f32)
        return vae_stand_in(shown, encoder, decoder, in_f32 if narrow else None, self._events)

    def _compiled(
        self,
        name: str,
        make: Callable[[Any], graphs.Graph],
        backend: Backend,
        loras: Sequence[Lora],
    ) -> Runner:
        graph = make(self._sources[name].skeleton)
        ahead = self._ahead.get(graph.name)
        runner = None if ahead is None else ahead.result()
        self._ahead.pop(graph.name, None)
        if runner is None:
            runner = self._opened(name, graph, make, backend, loras, self._events)
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

    def _cached(self, name: str) -> OpenVINORunner | None:
        """What takes no conversion, or None; whatever is wrong with it comes up again without."""
        backend, loras = self._backends[name], self._loras_of(name)
        with contextlib.suppress(Exception):
            graph = _later_graph(name, self._sources[name].skeleton)
            return self._opened(name, graph, None, backend, loras, Events(None))
        return None

    def _opened(
        self,
        name: str,
        graph: graphs.Graph,
        make: Callable[[Any], graphs.Graph] | None,
        backend: Backend,
        loras: Sequence[Lora],
        events: Events,
    ) -> OpenVINORunner:
        """A compiled graph, converted by way of ``make`` or only if that has been done already."""
        start = time.perf_counter()
        source = self._sources[name]
        verify = self._verifies(backend)
        dtype = torch_dtype(backend.precision)
        # LoRAs are added in float32, and a reference is what torch computes with these weights.
        halves = None if _rounds(backend) or verify or loras else source.halves
        stay_mapped = mapped.stay_mapped(graph, backend)
        facts = self._facts(name, loras)
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
            if facts is not None and not facts.items() >= (self._facts(name, loras) or {}).items():
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

    def _facts(self, name: str, loras: Sequence[Lora]) -> dict[str, Any] | None:
        """Everything about weights that can change a converted graph; None if that is not known."""
        weights = self._sources[name].facts(self._store)
        if weights is None:
            return None
        involved = ["peft"] * bool(loras)
        involved += ["nncf"] * (self._backends[name].weights == "int8")
        return {
            "kind": "ir",
            "format": ir.FORMAT,
            "weights": weights,
            "loras": [lora.facts(name, self._store) for lora in loras],
            "versions": versions(*involved),
        }

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
        )


def _release_if_large(name: str, module: Any) -> None:
    """Move weights that would take much of the memory to a file."""
    size = sum(parameter.nbytes for parameter in module.parameters())
    if not takes_much(size):
        return
    try:
        release_weights(module)
    except OSError as error:
        warnings.warn(
            f"the weights of {name}, {size} bytes, stay in memory, since they could not be written "
            f"to a temporary file: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def _later_graph(name: str, module: Any) -> graphs.Graph:
    """The graph that a component which follows the first one needs at once."""
    if name == "vae":
        return graphs.vae_decoder_graph(module)
    return graphs.text_encoder_graph(name, module)


def _rounds(backend: Backend) -> bool:
    return backend.precision != "f32" or backend.weights is not None


def _dtype_on_torch(name: str, original: Any, backend: Backend) -> torch.dtype:
    if backend.precision != "auto":
        return torch_dtype(backend.precision)
    dtype: torch.dtype = original.dtype
    if name == "vae" and dtype == torch.float16 and original.config.get("force_upcast"):
        return torch.float32  # as diffusers does
    return dtype


def _stats_of(module: torch.nn.Module) -> RunnerStats:
    tensors = list(module.parameters())
    return RunnerStats(
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        execution_devices=tuple(dict.fromkeys(str(tensor.device) for tensor in tensors)),
    )
