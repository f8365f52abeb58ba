"""Two ways to run a graph: eagerly in torch, or compiled by OpenVINO.

A runner takes tensors of any floating dtype and on any device. It gives tensors, floats
as float32, that belong to the caller: no later call writes to them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ovtensor.engine.compiled import RunnerStats, closed_error
from ovtensor.engine.memory import MemoryPolicy, give_back
from ovtensor.errors import ComponentError
from ovtensor.tensors.convert import to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.engine.compiled import Compiled
    from ovtensor.engine.graph import Graph, GraphTraits
    from ovtensor.engine.plan import ConversionPlan


class Runner(Protocol):
    """Runs one graph."""

    name: str

    @property
    def plan(self) -> ConversionPlan | None:
        """How it was converted, if it was."""
        ...

    @property
    def stats(self) -> RunnerStats:
        """What it has cost so far."""
        ...

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of the graph, floats as float32, as tensors that the caller owns."""
        ...

    def close(self) -> None:
        """Release what was compiled; a later call raises ``SessionClosedError``."""
        ...


class TorchRunner:
    """Runs a graph eagerly."""

    plan = None

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
            raise closed_error(self.name)
        device = next((one.device for one in module.parameters()), torch.device("cpu"))
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = module(*(one.to(device) for one in inputs))
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
        self._make: Callable[[], Runner] | None = make
        self._making = threading.RLock()
        self._runner: Runner | None = None
        self._closed = False
        self._stats = RunnerStats()
        self._plan: ConversionPlan | None = None

    @property
    def stats(self) -> RunnerStats:
        """Those of the runner, also of one that was closed, or of none yet."""
        return self._stats

    @property
    def plan(self) -> ConversionPlan | None:
        """See :class:`Runner`."""
        return self._plan

    def open(self) -> Runner:
        """Make the runner now."""
        with self._making:
            if self._closed or self._make is None:
                raise closed_error(self.name)
            if self._runner is None:
                with torch.autocast("cpu", enabled=False):  # as where a session is opened
                    self._runner = self._make()
                self._stats, self._plan = self._runner.stats, self._runner.plan
            return self._runner

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Runner`."""
        return self.open()(*inputs)

    def close(self) -> None:
        """See :class:`Runner`."""
        with self._making:
            self._closed, self._make = True, None  # which holds a module, or where it comes from
            if self._runner is not None:
                self._runner.close()
                self._runner = None


class ActivationMemory:
    """The activation memory of compiled models, where it is scarce of only one of them at a time.

    A pipeline's components run one after another, and at 1024 pixels both the UNet and the VAE's
    decoder need gigabytes for what lies between their layers. To take that anew for every picture
    costs a few percent of its time, so where there is memory they keep it.

    Threads that race for it need no lock: activation memory goes earlier or later then, and never
    while a model runs.
    """

    def __init__(self, policy: MemoryPolicy | None = None) -> None:
        self._policy = MemoryPolicy() if policy is None else policy
        self._last: Compiled | None = None

    def take(self, model: Compiled, traits: GraphTraits) -> None:
        """Have what was called before ``model`` give its activation memory back to the system.

        That may have been a component on torch: the allocator keeps what it has freed. Before
        the model that takes the most, this goes in any case, in 5 ms.
        """
        last, self._last = self._last, model
        if last is model:
            return
        scarce = self._policy.is_scarce()
        if scarce and last is not None:
            last.free_activations()
        if scarce or traits.needs_most_memory:
            give_back(collect=False)

    def end(self) -> None:
        """Have the last one give its own back without another to follow."""
        last = self._last
        if last is not None and self._policy.is_scarce():
            self._last = None
            last.free_activations()
            give_back(collect=False)


class OpenVINORunner:
    """Runs a graph that is compiled, which is closed with it."""

    def __init__(
        self, graph: Graph, traits: GraphTraits, compiled: Compiled, activations: ActivationMemory
    ) -> None:
        self.name = graph.name
        self.stats = compiled.stats
        self.plan: ConversionPlan | None = compiled.plan
        self._compiled = compiled
        self._traits = traits
        self._activations = activations
        self._shortest_keys = graph.shortest_keys
        self._one_by_one = graph.inputs[0].shape[0] == 1
        self._dtypes = [input_dtype(entry.example) for entry in graph.inputs]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Runner`."""
        if self._compiled.closed:
            raise closed_error(self.name)
        shapes = [tuple(x.shape) for x in inputs]
        if not all(x.numel() for x in inputs):
            raise ComponentError(
                f"{self.name} was called on inputs of shapes {shapes}, of which one is empty; if "
                f"a picture was given, strength * num_inference_steps has to be at least 1",
                component=self.name,
            )
        self._compiled.check_call(shapes, self._shortest_keys(*inputs))
        arrays = [
            np.ascontiguousarray(to_numpy(value, dtype=dtype))
            for value, dtype in zip(inputs, self._dtypes, strict=True)
        ]
        self._activations.take(self._compiled, self._traits)
        size = len(arrays[0]) if self._one_by_one else 1
        parts = zip(*(np.split(array, size) for array in arrays), strict=True)
        results = [self._compiled.infer(list(part)) for part in parts]
        whole = results[0] if size == 1 else map(np.concatenate, zip(*results, strict=True))
        return tuple(map(torch.from_numpy, whole))

    def close(self) -> None:
        """See :class:`Runner`."""
        self._compiled.close()


def input_dtype(example: torch.Tensor) -> np.dtype[Any]:
    """The element type of a model's input: floats are float32, all else is what it is."""
    if example.is_floating_point():
        return np.dtype(np.float32)
    return np.dtype(str(example.dtype).removeprefix("torch."))
