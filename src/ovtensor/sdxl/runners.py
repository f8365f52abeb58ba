"""Two ways to run a graph: eagerly in torch, or compiled by OpenVINO.

A runner takes the graph's tensors, of any floating dtype and on any device, and gives float32
tensors that belong to the caller: no later call writes to them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from ovtensor._convert import to_numpy
from ovtensor._memory import give_back, memory_is_scarce
from ovtensor.errors import ComponentError, SessionClosedError
from ovtensor.sdxl import ir, mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import openvino as ov

    from ovtensor.cache import Entry, Store
    from ovtensor.sdxl.events import Events
    from ovtensor.sdxl.graphs import Graph
    from ovtensor.sdxl.spec import Backend

# How many shapes a graph of static shapes stays compiled for: two sizes with and without guidance.
STATIC_SHAPES = 4


@dataclasses.dataclass(slots=True)
class RunnerStats:
    """What a runner has cost so far; seconds are wall-clock."""

    convert_seconds: float = 0.0
    compile_seconds: float = 0.0
    compiles: int = 0
    inferences: int = 0
    weight_bytes: int = 0
    execution_devices: tuple[str, ...] = ()
    cache: Literal["off", "hit", "miss"] = "off"


class Runner(Protocol):
    """Runs one graph."""

    name: str

    @property
    def stats(self) -> RunnerStats:
        """What it has cost so far."""
        ...

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of the graph as float32 tensors that the caller owns."""
        ...

    def close(self) -> None:
        """Release what was compiled; a later call raises ``SessionClosedError``."""
        ...


class TorchRunner:
    """Runs a graph eagerly."""

    def __init__(self, graph: Graph) -> None:
        self.name = graph.name
        tensors = list(graph.module.parameters())
        self.stats = RunnerStats(
            weight_bytes=sum(tensor.nbytes for tensor in tensors),
            execution_devices=tuple(dict.fromkeys(str(tensor.device) for tensor in tensors)),
        )
        self._module: torch.nn.Module | None = graph.module
        self._counting = threading.Lock()

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Runner`."""
        module = self._module
        if module is None:
            raise _closed(self.name)
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = module(*inputs)
        with self._counting:
            self.stats.inferences += 1
        return outputs

    def close(self) -> None:
        """See :class:`Runner`."""
        self._module = None


class DeferredRunner:
    """Makes a runner when it is first called; several threads may call it at once."""

    def __init__(self, name: str, make: Callable[[], Runner]) -> None:
        self.name = name
        self._make = make
        self._making = threading.RLock()
        self._runner: Runner | None = None
        self._closed = False

    @property
    def stats(self) -> RunnerStats:
        """Those of the runner, or of none yet."""
        runner = self._runner
        return RunnerStats() if runner is None else runner.stats

    def open(self) -> Runner:
        """Make the runner now."""
        with self._making:
            if self._closed:
                raise _closed(self.name)
            if self._runner is None:
                self._runner = self._make()
            return self._runner

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Runner`."""
        return self.open()(*inputs)

    def close(self) -> None:
        """See :class:`Runner`."""
        with self._making:
            self._closed = True
            if self._runner is not None:
                self._runner.close()
                self._runner = None


class Turns:
    """What the compiled models of a session compute in, where memory is scarce only one at a time.

    A pipeline's components run one after another, and at 1024 pixels both the UNet and the VAE's
    decoder need gigabytes for what lies between their layers. To take that anew for every picture
    costs a few percent of its time, so where there is memory they keep it.

    Threads that race for a turn need no lock: what a model computes in goes earlier or later then,
    and never while it runs.
    """

    def __init__(self) -> None:
        self._last: OpenVINORunner | None = None

    def take(self, runner: OpenVINORunner) -> None:
        """Have what was called before ``runner`` give back what it computed in, to the system.

        That may have been a component on torch: the allocator keeps what it has freed.
        """
        last, self._last = self._last, runner
        if last is not runner and memory_is_scarce():
            if last is not None:
                last.rest()
            give_back(collect=False)

    def end(self) -> None:
        """Have it give that back without another to follow, to the system."""
        last = self._last
        if last is not None and memory_is_scarce():
            self._last = None
            last.rest()
            give_back(collect=False)


class _Requests:
    """A compiled model and its idle requests; each call takes one for itself."""

    def __init__(self, compiled: ov.CompiledModel, weights: Mapping[str, ov.Tensor]) -> None:
        self._compiled = compiled
        self._weights = weights
        self._idle: collections.deque[ov.InferRequest] = collections.deque()

    def infer(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:  # popping and appending are atomic
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
            for name, tensor in self._weights.items():
                request.set_tensor(name, tensor)
        # Results are copied out of the request's memory: the caller owns them. If this raises, the
        # request is dropped and not pooled: nothing is known of the state it is in.
        results = request.infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=False)
        self._idle.append(request)
        return [results[index] for index in range(len(results))]

    def rest(self) -> None:
        with contextlib.suppress(RuntimeError):  # it runs, and needs that memory
            self._compiled.release_memory()


class OpenVINORunner:
    """Compiles what :func:`ir.write` left in an entry; several threads may call it at once.

    The entry is closed with it.

    With ``backend.static_shapes`` it compiles for the shapes of each call, and keeps the
    ``STATIC_SHAPES`` most recently used ones.

    OpenVINO's fused attention on the CPU goes wrong for good when the first sequence that it
    attends to has a single element: every later, longer one gives garbage, without an error. So a
    call with such a sequence (a picture of 8 pixels, a prompt of one embedding) is refused.
    """

    def __init__(
        self,
        graph: Graph,
        entry: Entry,
        store: Store,
        backend: Backend,
        events: Events,
        turns: Turns,
    ) -> None:
        self.name = graph.name
        self.backend = backend
        files = [entry.folder / name for name in (ir.WEIGHTS, mapped.WEIGHTS)]
        self.stats = RunnerStats(
            weight_bytes=sum(path.stat().st_size for path in files if path.exists())
        )
        self._weights = mapped.tensors(entry.folder)
        self._shortest_keys = graph.shortest_keys
        self._dtypes = [ir.numpy_dtype(entry.example) for entry in graph.inputs]
        self._entry = entry
        self._store = store
        self._events = events
        self._turns = turns
        self._changing = threading.Lock()  # of what is below, and of the counts
        self._compiled: collections.OrderedDict[object, _Requests] = collections.OrderedDict()
        self._closed = False
        if not backend.static_shapes:
            self._requests_for(None)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Runner`."""
        if self._closed:
            raise _closed(self.name)
        if self._shortest_keys(*inputs) < 2:
            raise ComponentError(
                f"{self.name} was called on inputs of shapes {[tuple(x.shape) for x in inputs]}, "
                f"which are too small for OpenVINO's attention; use a larger picture or prompt, "
                f"or run it on torch"
            )
        arrays = [
            np.ascontiguousarray(to_numpy(value, dtype=dtype))
            for value, dtype in zip(inputs, self._dtypes, strict=True)
        ]
        shapes = tuple(array.shape for array in arrays) if self.backend.static_shapes else None
        requests = self._requests_for(shapes)
        self._turns.take(self)
        try:
            results = requests.infer(arrays)
        except RuntimeError as error:
            raise ComponentError(
                f"OpenVINO failed to run {self.name} on inputs of shapes "
                f"{[array.shape for array in arrays]}: {error}"
            ) from error
        with self._changing:
            self.stats.inferences += 1
        return tuple(torch.from_numpy(result) for result in results)

    def reference(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Inputs of a small forward and what torch made of them, if the entry has that."""
        return ir.reference(self._entry.folder)

    def rest(self) -> None:
        """Give back what it computed in; the next call takes it anew.

        With static shapes it keeps it: OpenVINO does not allocate it a second time then, and the
        next inference would fail.
        """
        requests = None if self.backend.static_shapes else self._compiled.get(None)
        if requests is not None:
            requests.rest()

    def close(self) -> None:
        """See :class:`Runner`."""
        with self._changing:
            self._closed = True
            self._compiled.clear()
            self._weights = {}
        self._entry.close()

    def _requests_for(self, shapes: tuple[tuple[int, ...], ...] | None) -> _Requests:
        with self._changing:
            if self._closed:
                raise _closed(self.name)
            if shapes in self._compiled:
                self._compiled.move_to_end(shapes)
                return self._compiled[shapes]
            start = time.perf_counter()
            with self._events.stage("compile", self.name):
                compiled = ir.compile_for(self.name, self._entry, self._store, self.backend, shapes)
            self.stats.compile_seconds += time.perf_counter() - start
            self.stats.compiles += 1
            self.stats.execution_devices = tuple(ir.execution_devices(compiled))
            self._compiled[shapes] = _Requests(compiled, self._weights)
            if len(self._compiled) > STATIC_SHAPES:
                self._compiled.popitem(last=False)
            return self._compiled[shapes]


def _closed(name: str) -> SessionClosedError:
    return SessionClosedError(
        f"{name} was called after its session was closed; use the pipeline inside the `with` block"
    )
