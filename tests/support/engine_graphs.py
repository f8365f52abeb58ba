"""Small graphs, plans without weights, and models that can be looked into."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from ovtensor import Backend
from ovtensor.cache import ScratchStore
from ovtensor.engine import convert
from ovtensor.engine.compiled import Compiled
from ovtensor.engine.copies import detached
from ovtensor.engine.events import Events
from ovtensor.engine.graph import NO_TRAITS, Graph, GraphInput, GraphSpec, GraphTraits
from ovtensor.engine.memory import MemoryPolicy
from ovtensor.engine.plan import ConversionPlan, compile_properties
from ovtensor.engine.runners import ActivationMemory, OpenVINORunner

if TYPE_CHECKING:
    import openvino as ov

    from ovtensor.engine.devices import Precision

CONVOLUTIONAL = GraphTraits(convolutional=True)
EVERY_STEP = GraphTraits(runs_every_step=True)


class Weights:
    """A source that says how many weights there are and in which dtype, and has none."""

    meta_module = None

    def __init__(self, size: int, stored: torch.dtype | None) -> None:
        self.size, self.sixteen_bit = size, stored

    def load(self, dtype: torch.dtype) -> Any:
        raise AssertionError("nothing has to be loaded for a plan")

    def key_fields(self, store: object) -> dict[str, Any]:
        raise AssertionError("the weights are no part of a plan")


def plan_of(
    backend: Backend,
    traits: GraphTraits = NO_TRAITS,
    *,
    name: str = "net",
    size: int = 1000,
    stored: torch.dtype | None = None,
    verify: bool | None = None,
    memory: MemoryPolicy | None = None,
    inputs: tuple[Any, ...] | None = None,
) -> ConversionPlan:
    """The plan of a graph that has these traits and weights."""
    spec = GraphSpec(name, Weights(size, stored), lambda _: None, traits, inputs)
    memory = MemoryPolicy() if memory is None else memory
    return ConversionPlan.of(spec, backend, verify=verify, memory=memory)


def properties(backend: Backend) -> dict[str, Any]:
    """What models are compiled with for a backend."""
    return compile_properties(backend, plan_of(backend).passes)


def graph_of(module: torch.nn.Module, *inputs: GraphInput, name: str = "net") -> Graph:
    """The graph of a module that gives one tensor, or a tuple of them."""

    class Tuple(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.inner(*given)
            return result if isinstance(result, tuple) else (result,)

    return Graph(name, Tuple().eval(), inputs, lambda: tuple(one.example for one in inputs))


def picture(*shape: int) -> GraphInput:
    """An input of pictures, -1 for sizes that are open."""
    return GraphInput("x", shape, torch.zeros([5 if size < 0 else size for size in shape]))


def converted(module: torch.nn.Module, *inputs: GraphInput) -> ov.Model:
    """The model of a module, with no pass run over it."""
    return convert.convert(graph_of(module, *inputs))


def kinds(model: ov.Model) -> set[str]:
    """The types of a model's nodes."""
    return {node.get_type_name() for node in model.get_ops()}


def planned(
    graph: Graph,
    traits: GraphTraits = NO_TRAITS,
    precision: Precision = "f32",
    *,
    without: tuple[str, ...] = ("mapped_weights",),
) -> ConversionPlan:
    """The plan of a graph on the CPU, not compared with torch, without some passes."""
    backend = Backend("openvino", precision=precision)
    plan = plan_of(backend, traits, name=graph.name, verify=False)
    return dataclasses.replace(plan, passes=tuple(set(plan.passes) - set(without)))


def opened(
    graph: Graph,
    traits: GraphTraits = NO_TRAITS,
    precision: Precision = "f32",
    *,
    without: tuple[str, ...] = ("mapped_weights",),
) -> OpenVINORunner:
    """A graph as it runs, planned as by :func:`planned`; its module is not changed."""
    plan = planned(graph, traits, precision, without=without)
    given = dataclasses.replace(graph, module=detached(graph.module))
    store = ScratchStore()
    entry = store.open({}, lambda folder: convert.write(given, plan, folder))
    backend = Backend("openvino", precision=precision)
    compiled = Compiled(plan, backend, entry, store, Events(None))
    return OpenVINORunner(graph, traits, compiled, ActivationMemory())
