"""Two ways to run a graph: eagerly in torch, or compiled by OpenVINO.

A runner takes the graph's tensors, of any floating dtype and on any device, and gives float32
tensors on the CPU that belong to the caller: no later call writes to them.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np
import openvino as ov
import torch

from ovtensor._convert import to_numpy
from ovtensor.errors import ComponentError, SessionClosedError
from ovtensor.sdxl.spec import Backend, core

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.sdxl.graphs import Graph

# torch.jit.trace and the warnings filter are state of the process: one conversion at a time.
_tracing = threading.Lock()


@dataclasses.dataclass(slots=True)
class RunnerStats:
    """What a runner has cost so far; seconds are wall-clock."""

    convert_seconds: float = 0.0
    compile_seconds: float = 0.0
    compiles: int = 0
    inferences: int = 0


class Runner(Protocol):
    """Runs one graph."""

    name: str
    stats: RunnerStats

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of the graph as float32 CPU tensors that the caller owns."""
        ...

    def close(self) -> None:
        """Release what was compiled; a later call raises ``SessionClosedError``."""
        ...


class TorchRunner:
    """Runs a graph eagerly."""

    def __init__(self, graph: Graph) -> None:
        self.name = graph.name
        self.stats = RunnerStats()
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


class OpenVINORunner:
    """Converts and compiles a graph for one device; several threads may call it at once.

    OpenVINO's fused attention on the CPU goes wrong for good when the first sequence that it
    attends to has a single element: every later, longer one gives garbage, without an error. So a
    call with such a sequence (a picture of 8 pixels, a prompt of one embedding) is refused.
    """

    def __init__(
        self, graph: Graph, backend: Backend, announce: Callable[[str], None] = lambda _: None
    ) -> None:
        self.name = graph.name
        self.stats = RunnerStats()
        self._shortest_keys = graph.shortest_keys
        self._dtypes = [_numpy_dtype(entry.example) for entry in graph.inputs]
        self._counting = threading.Lock()
        # Each call takes a request for itself; popping and appending are atomic.
        self._idle: collections.deque[ov.InferRequest] = collections.deque()

        announce(f"convert {graph.name}")
        start = time.perf_counter()
        model = convert(graph)
        self.stats.convert_seconds = time.perf_counter() - start
        announce(f"compile {graph.name}")
        start = time.perf_counter()
        properties = {"INFERENCE_PRECISION_HINT": backend.precision, **backend.properties}
        try:
            self._compiled: ov.CompiledModel | None = core().compile_model(
                model, backend.device, properties
            )
        except Exception as error:
            raise ComponentError(
                f"OpenVINO could not compile {graph.name} for {backend.device} with "
                f"{properties}: {error}"
            ) from error
        self.stats.compile_seconds = time.perf_counter() - start
        self.stats.compiles += 1

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Runner`."""
        compiled = self._compiled
        if compiled is None:
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
        try:
            request = self._idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            # Results are copied out of the request's memory: the caller owns them.
            results = request.infer(arrays, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            # The request is dropped, not pooled: nothing is known of the state it is in.
            raise ComponentError(
                f"OpenVINO failed to run {self.name} on inputs of shapes "
                f"{[array.shape for array in arrays]}: {error}"
            ) from error
        outputs = tuple(torch.from_numpy(results[index]) for index in range(len(results)))
        self._idle.append(request)
        with self._counting:
            self.stats.inferences += 1
        return outputs

    def close(self) -> None:
        """See :class:`Runner`."""
        self._compiled = None
        self._idle.clear()


def convert(graph: Graph) -> ov.Model:
    """The OpenVINO model of a graph, with constants of its own.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it.
    """
    modes = {module: module.training for module in graph.module.modules()}
    with _tracing, warnings.catch_warnings(), torch.no_grad():
        # Tracing warns of every Python branch on a shape; unet_graph says why they are right.
        warnings.simplefilter("ignore")
        try:
            model = ov.convert_model(
                graph.module,
                example_input=tuple(entry.example for entry in graph.inputs),
                input=[ov.PartialShape(list(entry.shape)) for entry in graph.inputs],
                # A shared bf16 constant does not keep its memory alive: once the module was gone,
                # text encoders computed NaN from what came to lie there.
                share_weights=False,
            )
        except Exception as error:
            raise ComponentError(f"OpenVINO could not convert {graph.name}: {error}") from error
        finally:
            for module, training in modes.items():  # conversion switches to evaluation
                module.training = training
    for port, entry in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({entry.name})
    return model


def _numpy_dtype(example: torch.Tensor) -> np.dtype[np.generic]:
    return np.dtype(np.float32 if example.is_floating_point() else np.int64)


def _closed(name: str) -> SessionClosedError:
    return SessionClosedError(
        f"{name} was called after its session was closed; use the pipeline inside the `with` block"
    )
