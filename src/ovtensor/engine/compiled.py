"""A model on disk, compiled for a device: arrays in, arrays out.

It takes nothing of the torch module that the model was made from, and no diffusers: what is cached
is opened while that is still being imported.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file

from ovtensor.engine.blobs import MODEL, REFERENCE, WEIGHTS, compile_for, execution_devices
from ovtensor.engine.parity import demand_parity
from ovtensor.engine.passes import mapped_weights, passes_of
from ovtensor.errors import ComponentError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import openvino as ov

    from ovtensor.cache import Entry, Store
    from ovtensor.engine.backend import Backend
    from ovtensor.engine.events import Events
    from ovtensor.engine.plan import ConversionPlan

__all__ = ["MODEL", "REFERENCE", "Compiled", "RunnerStats", "closed_error"]

# How many shapes a model of static shapes stays compiled for: two sizes with and without guidance.
STATIC_SHAPES = 4


@dataclasses.dataclass(slots=True)
class RunnerStats:
    """What a graph has cost so far; seconds are wall-clock."""

    convert_seconds: float = 0.0
    compile_seconds: float = 0.0
    compiles: int = 0
    inferences: int = 0
    weight_bytes: int = 0
    execution_devices: tuple[str, ...] = ()
    cache: Literal["off", "hit", "miss"] = "off"


class Compiled:
    """What :func:`.convert.write` left in an entry, compiled; several threads may run it at once.

    The entry is closed with it.

    With ``backend.static_shapes`` it compiles for the shapes of each call, and keeps the
    ``STATIC_SHAPES`` most recently used ones. Else it compiles at once, unless it is given what was
    compiled (``ready``).
    """

    def __init__(
        self,
        plan: ConversionPlan,
        backend: Backend,
        entry: Entry,
        store: Store,
        events: Events,
        ready: ov.CompiledModel | None = None,
    ) -> None:
        self.name = plan.graph
        self.plan = plan
        self.backend = backend
        files = [entry.folder / WEIGHTS, *mapped_weights.files(entry.folder)]
        self.stats = RunnerStats(
            weight_bytes=sum(path.stat().st_size for path in files if path.exists())
        )
        if entry.key:
            self.stats.cache = "hit" if entry.hit else "miss"
        self._weights = mapped_weights.tensors(entry.folder)
        self._entry = entry
        self._store = store
        self._events = events
        self._changing = threading.Lock()  # of what is below, and of the counts
        self._requests: collections.OrderedDict[object, _Requests] = collections.OrderedDict()
        self.closed = False
        if ready is not None:
            self._keep(None, ready)
        elif not backend.static_shapes:
            self._requests_for(None)

    def infer(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run it on contiguous arrays of its inputs' dtypes; the caller owns the results.

        Raises
        ------
        SessionClosedError
            If it was closed.
        ComponentError
            If OpenVINO fails to compile or to run it.
        """
        shapes = tuple(array.shape for array in arrays) if self.backend.static_shapes else None
        requests = self._requests_for(shapes)
        try:
            results = requests.infer(arrays)
        except RuntimeError as error:
            raise ComponentError(
                f"OpenVINO failed to run {self.name} on inputs of shapes "
                f"{[array.shape for array in arrays]}: {error}",
                component=self.name,
                device=self.plan.device,
            ) from error
        with self._changing:
            self.stats.inferences += 1
        return results

    def check(self) -> None:
        """Run it once on the inputs that the entry has a reference for, and compare.

        Raises
        ------
        ParityError
            If it does not compute what torch did when the model was written.
        """
        inputs, expected = _reference(self._entry.folder)
        results = self.infer([tensor.numpy() for tensor in inputs])
        demand_parity(self.plan, expected, [torch.from_numpy(one) for one in results])

    def check_call(self, shapes: list[tuple[int, ...]], keys: int) -> None:
        """Refuse inputs that OpenVINO would compute wrongly; `keys` as ``Graph.shortest_keys``.

        Raises
        ------
        ComponentError
            That says which inputs, and what to do.
        """
        for one in passes_of(self.plan.passes):
            one.check_call(self.name, shapes, keys)

    def free_activations(self) -> None:
        """Give back its activation memory; the next call takes it anew.

        With static shapes it keeps it: OpenVINO does not allocate it a second time then, and the
        next inference would fail.
        """
        requests = None if self.backend.static_shapes else self._requests.get(None)
        if requests is not None:
            requests.free_activations()

    def close(self) -> None:
        """Release it; a later call raises ``SessionClosedError``."""
        with self._changing:
            self.closed = True
            self._requests.clear()
            self._weights = {}
        self._entry.close()

    def _requests_for(self, shapes: tuple[tuple[int, ...], ...] | None) -> _Requests:
        with self._changing:
            if self.closed:
                raise closed_error(self.name)
            if shapes in self._requests:
                self._requests.move_to_end(shapes)
                return self._requests[shapes]
            start = time.perf_counter()
            with self._events.stage("compile", self.name):
                compiled = compile_for(self.plan, self.backend, self._entry, self._store, shapes)
            self.stats.compile_seconds += time.perf_counter() - start
            return self._keep(shapes, compiled)

    def _keep(self, shapes: object, compiled: ov.CompiledModel) -> _Requests:
        self.stats.compiles += 1
        self.stats.execution_devices = tuple(execution_devices(compiled))
        self._requests[shapes] = _Requests(compiled, self._weights)
        if len(self._requests) > STATIC_SHAPES:
            self._requests.popitem(last=False)
        return self._requests[shapes]


def closed_error(name: str) -> SessionClosedError:
    """What a call raises that comes too late."""
    return SessionClosedError(
        f"{name} was called after its session was closed; use the pipeline inside the `with` block",
        component=name,
    )


class _Requests:
    """A compiled model and its idle requests; each call takes one for itself."""

    def __init__(self, compiled: ov.CompiledModel, weights: Mapping[str, ov.Tensor]) -> None:
        self._compiled = compiled
        inputs = {name for port in compiled.inputs for name in port.names}
        self._weights = {name: tensor for name, tensor in weights.items() if name in inputs}
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

    def free_activations(self) -> None:
        with contextlib.suppress(RuntimeError):  # it runs, and needs that memory
            self._compiled.release_memory()


def _reference(folder: Path) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Inputs of a small forward, and what torch made of them when the model was written."""
    tensors: Mapping[str, torch.Tensor] = load_file(folder / REFERENCE)

    def numbered(kind: str) -> tuple[torch.Tensor, ...]:
        count = sum(name.startswith(kind) for name in tensors)
        return tuple(tensors[f"{kind}.{index}"] for index in range(count))

    return numbered("input"), numbered("output")
