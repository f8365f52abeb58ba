"""From a component's source to what takes its place in the pipeline."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.backend import Backend, torch_dtype
from ovtensor.engine.compiled import RunnerStats
from ovtensor.engine.identity import plain
from ovtensor.engine.memory import takes_much
from ovtensor.engine.runners import DeferredRunner, Runner, TorchRunner
from ovtensor.engine.weights import release_weights
from ovtensor.errors import ComponentError
from ovtensor.pipelines import graphs
from ovtensor.pipelines.proxies import TextEncoderStandIn, UNetStandIn, guarded_vae, vae_stand_in
from ovtensor.pipelines.report import ComponentReport, Report
from ovtensor.pipelines.sources import COMPONENTS

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    from ovtensor.engine.events import Events
    from ovtensor.engine.opening import Opener
    from ovtensor.pipelines.lora import Lora
    from ovtensor.pipelines.sources import Source

    class Run(Protocol):
        """Makes the runner of a graph of the component, on request in float32."""

        def __call__(self, make: Callable[[Any], graphs.Graph], *, in_f32: bool = False) -> Runner:
            """Make it."""
            ...


_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class Builder:
    """Builds components one at a time, and knows afterwards what each of them costs.

    ``undo`` gets what releases them.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        sources: Mapping[str, Source],
        loras: Mapping[str, Sequence[Lora]],
        opener: Opener,
        events: Events,
        undo: contextlib.ExitStack,
    ) -> None:
        self._backends = backends
        self._sources = dict(sources)
        self._loras = loras
        self._opener = opener
        self._events = events
        self._undo = undo
        self._precisions: dict[str, str] = {}
        self._stats: dict[str, list[Callable[[], RunnerStats]]] = {}
        undo.callback(self._sources.clear)  # they may hold modules, and this outlives them

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
        loras = self._loras.get(name, ())
        self._stats[name] = []
        if backend.kind == "openvino":
            self._precisions[name] = backend.precision
            narrow = backend.precision != "f32" or backend.weights is not None

            def compiled(make: Callable[[Any], graphs.Graph], *, in_f32: bool = False) -> Runner:
                wide = dataclasses.replace(backend, precision="f32", weights=None)
                return self._opener.open(source, loras, make, wide if in_f32 else backend)

            return self._stand_in(name, source.skeleton, interface, compiled, narrow, encodes)

        dtype = _dtype_on_torch(name, original, backend)
        same = dtype == original.dtype and not loras
        module = original if same else source.load(dtype, loras)
        if source.in_memory(dtype, loras):
            _release_if_large(name, module)
        self._precisions[name] = _NAMES.get(dtype, str(dtype))
        narrow = dtype != torch.float32
        convertible = name != "vae" or hasattr(module, "post_quant_conv")
        # A VAE that is not in float32 needs another one to fall back to.
        fits = dtype == interface and not (name == "vae" and narrow)
        if fits or not convertible:
            stats = _stats_of(module)
            self._stats[name].append(lambda: stats)
            return guarded_vae(module, self._events) if name == "vae" else module

        def eager(make: Callable[[Any], graphs.Graph], *, in_f32: bool = False) -> Runner:
            return TorchRunner(make(source.load(torch.float32, loras) if in_f32 else module))

        return self._stand_in(name, plain(original), interface, eager, narrow, encodes)

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
