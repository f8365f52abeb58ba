"""A model on disk, compiled for a device: arrays in, arrays out.

It takes nothing of the torch module that the model was made from, and no diffusers: what is cached
is opened while that is still being imported.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import openvino as ov
import torch
from safetensors.torch import load_file

from ovtensor._core import core
from ovtensor.engine import mapped_weights as mapped
from ovtensor.engine.backend import PRECISION_HINT, Backend, device_properties
from ovtensor.engine.parity import demand_parity
from ovtensor.errors import ComponentError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from ovtensor.cache import Entry, Store
    from ovtensor.engine.events import Events

# What :mod:`.ir` leaves in a folder, and in another one what is compiled from it.
MODEL, WEIGHTS, REFERENCE = "model.xml", "model.bin", "reference.safetensors"
BLOB = "compiled.blob"
# Goes up when the same weights are written as another model, so that caches start anew.
FORMAT = 6

_RUNTIME = "COMPILED_MODEL_RUNTIME_PROPERTIES"

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
    compiled (``ready``).
    """

    def __init__(
        self,
        name: str,
        entry: Entry,
        store: Store,
        backend: Backend,
        events: Events,
        ready: ov.CompiledModel | None = None,
    ) -> None:
        self.name = name
        self.backend = backend
        files = [entry.folder / WEIGHTS, *mapped.files(entry.folder)]
        self.stats = RunnerStats(
            weight_bytes=sum(path.stat().st_size for path in files if path.exists())
        )
        if entry.key:
            self.stats.cache = "hit" if entry.hit else "miss"
        self._weights = mapped.tensors(entry.folder)
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
                compiled = compile_for(self.name, self._entry, self._store, self.backend, shapes)
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
        f"{name} was called after its session was closed; use the pipeline inside the `with` block"
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

    def rest(self) -> None:
        with contextlib.suppress(RuntimeError):  # it runs, and needs that memory
            self._compiled.release_memory()


def properties(backend: Backend) -> dict[str, Any]:
    """What a model is compiled with."""
    given: dict[str, Any] = {PRECISION_HINT: backend.precision}
    if backend.device.partition(":")[0] == "AUTO":
        # Or it runs on the CPU until the model is compiled for the GPU, and goes on there.
        given["ENABLE_STARTUP_FALLBACK"] = False
    return given | dict(backend.properties)


def compile_for(
    name: str,
    entry: Entry,
    store: Store,
    backend: Backend,
    shapes: Sequence[tuple[int, ...]] | None,
) -> ov.CompiledModel:
    """Compile what :func:`.ir.write` left in ``entry``, for any shapes or for given ones.

    If the entry is in a cache, so is the compiled model: as a blob that takes the weights from
    the entry, where the device can write one.

    Raises
    ------
    ComponentError
        If OpenVINO cannot, or would run it on another device than the one that was asked for.
    """
    if not entry.key or not _writes_blobs(backend.device):
        return _compiled(name, entry.folder, backend, shapes, properties(backend))
    given = _properties_with_blob(backend)
    fresh: list[ov.CompiledModel] = []

    def build(folder: Path) -> None:
        fresh.append(_compiled(name, entry.folder, backend, shapes, given))
        stream = io.BytesIO()
        fresh[0].export_model(stream)
        (folder / BLOB).write_bytes(stream.getbuffer())

    label = f"{name} compiled for {backend.device}"
    with store.open(_blob_facts(name, backend, shapes), build, base=entry, label=label) as blob:
        if fresh:
            return fresh[0]
        try:
            return _imported(name, entry, blob, backend)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is another way
            blob.reject(f"OpenVINO does not take the compiled {name}: {error}")
            return _compiled(name, entry.folder, backend, shapes, given)


def find_compiled(
    name: str, entry: Entry, store: Store, backend: Backend
) -> ov.CompiledModel | None:
    """What :func:`compile_for` would find in a cache for any shapes; None if it would compile.

    Whatever OpenVINO has against it is raised.
    """
    if not _writes_blobs(backend.device):
        return None
    blob = store.find(_blob_facts(name, backend, None), base=entry)
    if blob is None:
        return None
    with blob:
        return _imported(name, entry, blob, backend)


def _properties_with_blob(backend: Backend) -> dict[str, Any]:
    return {"CACHE_MODE": "OPTIMIZE_SIZE", **properties(backend)}


def _blob_facts(
    name: str, backend: Backend, shapes: Sequence[tuple[int, ...]] | None
) -> dict[str, Any]:
    given = _properties_with_blob(backend)
    return {
        "kind": "blob",
        "graph": name,
        "device": _device_facts(backend.device),
        "properties": {key: str(value) for key, value in given.items()},
        "shapes": None if shapes is None else [list(shape) for shape in shapes],
        "openvino": ov.__version__,
    }


def _imported(name: str, entry: Entry, blob: Entry, backend: Backend) -> ov.CompiledModel:
    # The blob holds no properties: they have to be those of the compilation.
    given = {**_properties_with_blob(backend), "WEIGHTS_PATH": str(entry.folder / WEIGHTS)}
    compiled = core().import_model((blob.folder / BLOB).read_bytes(), backend.device, given)
    demand_device(name, compiled, backend)
    return compiled


def _compiled(
    name: str,
    folder: Path,
    backend: Backend,
    shapes: Sequence[tuple[int, ...]] | None,
    given: Mapping[str, Any],
) -> ov.CompiledModel:
    try:
        model = core().read_model(folder / MODEL)
        if shapes is not None:
            given_first = model.inputs[: len(shapes)]  # weights that stay mapped follow
            model.reshape(
                {
                    port: ov.PartialShape(list(shape))
                    for port, shape in zip(given_first, shapes, strict=True)
                }
            )
        compiled = core().compile_model(model, backend.device, dict(given))
    except Exception as error:
        raise ComponentError(
            f"OpenVINO could not compile {name} for {backend.device} with {dict(given)}: {error}"
        ) from error
    demand_device(name, compiled, backend)
    return compiled


def _writes_blobs(device: str) -> bool:
    capabilities = device_properties(device).get("OPTIMIZATION_CAPABILITIES", ())
    return "EXPORT_IMPORT" in capabilities


def _device_facts(device: str) -> dict[str, str]:
    """What tells a device and its driver from others, as far as it says so."""
    told = ("NAME", "ARCHITECTURE", "CAPABILITIES", "VERSION", "UUID")
    facts = {
        key: str(value) for key, value in device_properties(device).items() if key.endswith(told)
    }
    if facts:
        # No public property has a GPU's driver. This is what OpenVINO compares when it imports.
        with contextlib.suppress(RuntimeError):
            facts[_RUNTIME] = str(core().get_property(device, _RUNTIME))
    return facts


def demand_device(name: str, compiled: ov.CompiledModel, backend: Backend) -> None:
    """Raise ``ComponentError`` unless a compiled model runs on the device that it is for."""
    devices = execution_devices(compiled)
    kind = backend.device.partition(":")[0].partition(".")[0]
    if kind in ("AUTO", "MULTI", "HETERO"):  # theirs to choose
        return
    others = [device for device in devices if device.partition(".")[0] != kind]
    if others:
        raise ComponentError(
            f"OpenVINO would run {name} on {', '.join(others)} and not on {backend.device}; "
            f"ask for {others[0]!r} if that is right"
        )


def execution_devices(compiled: ov.CompiledModel) -> list[str]:
    """The devices that a compiled model runs on."""
    return [str(device) for device in compiled.get_property("EXECUTION_DEVICES")]


def _reference(folder: Path) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Inputs of a small forward, and what torch made of them when the model was written."""
    tensors: Mapping[str, torch.Tensor] = load_file(folder / REFERENCE)

    def numbered(kind: str) -> tuple[torch.Tensor, ...]:
        count = sum(name.startswith(kind) for name in tensors)
        return tuple(tensors[f"{kind}.{index}"] for index in range(count))

    return numbered("input"), numbered("output")
