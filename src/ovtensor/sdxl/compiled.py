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

import numpy as np
import openvino as ov
import torch
from safetensors.torch import load_file

from ovtensor.errors import ComponentError, SessionClosedError
from ovtensor.sdxl import hoisted, mapped
from ovtensor.sdxl.compiling import MODEL, TEXT, compile_for, execution_devices, find_compiled
from ovtensor.sdxl.parity import demand_parity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovtensor.cache import Entry, Store
    from ovtensor.sdxl.events import Events
    from ovtensor.sdxl.spec import Backend

REFERENCE = "reference.safetensors"

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
    """What :func:`.ir.write` left in an entry, compiled; several threads may run it at once.

    The entry is closed with it.

    With ``backend.static_shapes`` it compiles for the shapes of each call, and keeps the
    ``STATIC_SHAPES`` most recently used ones. Else it compiles at once, unless it is given what was
    compiled (``ready``, by its parts).
    """

    def __init__(
        self,
        name: str,
        entry: Entry,
        store: Store,
        backend: Backend,
        events: Events,
        ready: Mapping[str, ov.CompiledModel] | None = None,
    ) -> None:
        self.name = name
        self.backend = backend
        self._parts = _parts(entry)
        self._weights = {part: mapped.tensors(entry.folder, part) for part in self._parts}
        self.stats = RunnerStats(weight_bytes=_weight_bytes(entry.folder))
        if entry.key:
            self.stats.cache = "hit" if entry.hit else "miss"
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
                f"{[array.shape for array in arrays]}: {error}"
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
        demand_parity(self.name, self.backend, expected, [torch.from_numpy(one) for one in results])

    def rest(self) -> None:
        """Give back what it computed in; the next call takes it anew.

        With static shapes it keeps it: OpenVINO does not allocate it a second time then, and the
        next inference would fail.
        """
        requests = None if self.backend.static_shapes else self._requests.get(None)
        if requests is not None:
            requests.rest()

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
                parts = self._compile(shapes)
            self.stats.compile_seconds += time.perf_counter() - start
            return self._keep(shapes, parts)

    def _compile(self, shapes: tuple[tuple[int, ...], ...] | None) -> dict[str, ov.CompiledModel]:
        compiled: dict[str, ov.CompiledModel] = {}
        for part in self._parts:
            given = shapes
            if part == TEXT and shapes is not None:
                position, _ = hoisted.results_among(compiled[MODEL].inputs)
                given = (shapes[position],)
            compiled[part] = compile_for(
                self.name, self._entry, part, self._store, self.backend, given
            )
        return compiled

    def _keep(self, shapes: object, parts: Mapping[str, ov.CompiledModel]) -> _Requests:
        self.stats.compiles += 1
        self.stats.execution_devices = tuple(execution_devices(parts[MODEL]))
        once = _Requests(parts[TEXT], self._weights[TEXT]) if TEXT in parts else None
        self._requests[shapes] = _Requests(parts[MODEL], self._weights[MODEL], once)
        if len(self._requests) > STATIC_SHAPES:
            self._requests.popitem(last=False)
        return self._requests[shapes]


def find_ready(
    name: str, entry: Entry, store: Store, backend: Backend
) -> dict[str, ov.CompiledModel] | None:
    """What of an entry is in a cache, compiled for any shapes, or None if it is not all there.

    Whatever OpenVINO has against it is raised.
    """
    ready = {}
    for part in _parts(entry):
        compiled = find_compiled(name, entry, part, store, backend)
        if compiled is None:
            return None
        ready[part] = compiled
    return ready


def closed_error(name: str) -> SessionClosedError:
    """What a call raises that comes too late."""
    return SessionClosedError(
        f"{name} was called after its session was closed; use the pipeline inside the `with` block"
    )


@dataclasses.dataclass(slots=True)
class _Request:
    """A request, and the input of which it was given what is computed once."""

    request: ov.InferRequest
    steady: np.ndarray | None = None


class _Requests:
    """A compiled model and its idle requests; each call takes one for itself.

    What depends on one input alone, ``once`` computes: see :mod:`.hoisted`. A request keeps it,
    for the next call mostly has the same input.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        weights: Mapping[str, ov.Tensor],
        once: _Requests | None = None,
    ) -> None:
        self._compiled = compiled
        self._weights = weights
        self._once = once
        self._steady, self._results = hoisted.results_among(compiled.inputs)
        self._taking = threading.Lock()
        self._idle: list[_Request] = []

    def infer(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        taken = self._take(arrays)
        # Results are copied out of the request's memory: the caller owns them. If this raises, the
        # request is dropped and not pooled: nothing is known of the state it is in.
        given = dict(enumerate(arrays))
        results = taken.request.infer(given, share_inputs=True, share_outputs=False)
        with self._taking:
            self._idle.append(taken)
        return [results[index] for index in range(len(results))]

    def rest(self) -> None:
        """Give back what was computed in, and what was computed once."""
        with self._taking:
            self._idle.clear()
        with contextlib.suppress(RuntimeError):  # it runs, and needs that memory
            self._compiled.release_memory()

    def _take(self, arrays: list[np.ndarray]) -> _Request:
        if self._once is None:
            with self._taking:
                return self._idle.pop() if self._idle else self._made()
        steady = arrays[self._steady]
        with self._taking:
            same = [index for index, one in enumerate(self._idle) if _equal(one.steady, steady)]
            taken = self._idle.pop(same[-1] if same else -1) if self._idle else self._made()
        if not same:
            for port, result in zip(self._results, self._once.tensors([steady]), strict=True):
                taken.request.set_tensor(port, result)
            taken.steady = steady.copy()
        return taken

    def tensors(self, arrays: list[np.ndarray]) -> list[ov.Tensor]:
        """Results in their own element types, in memory of their own."""
        request = self._made().request  # it would hold as much as the results
        request.infer(dict(enumerate(arrays)), share_inputs=True)
        results = []
        for port in self._compiled.outputs:
            tensor = request.get_tensor(port)
            results.append(ov.Tensor(tensor.element_type, tensor.shape))
            tensor.copy_to(results[-1])
        return results

    def _made(self) -> _Request:
        request = self._compiled.create_infer_request()
        for name, tensor in self._weights.items():
            request.set_tensor(name, tensor)
        return _Request(request)


def _equal(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and np.array_equal(one, other)


def _parts(entry: Entry) -> list[str]:
    return [part for part in (MODEL, TEXT) if (entry.folder / f"{part}.xml").exists()]


def _weight_bytes(folder: Path) -> int:
    kinds = ("*.bin", "*.linear.safetensors")
    return sum(path.stat().st_size for kind in kinds for path in folder.glob(kind))


def _reference(folder: Path) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Inputs of a small forward, and what torch made of them when the model was written."""
    tensors: Mapping[str, torch.Tensor] = load_file(folder / REFERENCE)

    def numbered(kind: str) -> tuple[torch.Tensor, ...]:
        count = sum(name.startswith(kind) for name in tensors)
        return tuple(tensors[f"{kind}.{index}"] for index in range(count))

    return numbered("input"), numbered("output")
