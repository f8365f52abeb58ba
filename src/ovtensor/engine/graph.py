"""What is traced: a module of flat tensors, its inputs, and what is known of it beforehand."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ovtensor.engine.sources import Source


@dataclasses.dataclass(frozen=True, slots=True)
class GraphInput:
    """One input of a graph.

    Attributes
    ----------
    name : str
        What the OpenVINO model calls it.
    shape : tuple of int
        -1 where any size goes. Where the first size of the first input is 1, a batch is computed
        one by one: a picture keeps every core busy, and the activation memory of several would be
        needed at once.
    example : torch.Tensor
        Small, of the rank of `shape`; of its dtype are the inputs of the model, floats as float32.
    """

    name: str
    shape: tuple[int, ...]
    example: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class GraphTraits:
    """What is known of a graph before any of it is loaded, and decides how it is converted.

    Attributes
    ----------
    runs_every_step : bool
        It runs many times for a picture, so that a few percent of its time count more than a
        little memory.
    f32_by_default : bool
        Its values overflow in half precision, so ``precision="auto"`` is f32.
    convolutional : bool
        Most of its work is convolutions over large pictures: it gets the passes made for these.
    needs_most_memory : bool
        Its activation memory is the peak of the pipeline: what others hold is freed before it.
    """

    runs_every_step: bool = False
    f32_by_default: bool = False
    convolutional: bool = False
    needs_most_memory: bool = False


NO_TRAITS = GraphTraits()


def _as_many_as_it_takes(*_: torch.Tensor) -> int:
    return 2


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """What is traced: ``module(*inputs)`` gives a tuple of tensors, none of them of 16-bit floats.

    Attributes
    ----------
    name : str
        For messages, events and the cache.
    module : torch.nn.Module
        May be on torch's meta device: all else is the same for one with values.
    inputs : tuple of GraphInput
        In the order of the module's arguments.
    probe : callable
        Gives small inputs of the usual kind, always the same, to compare two runners with.
    shortest_keys : callable
        For given inputs the length of the shortest sequence that any attention attends to: see
        :mod:`.passes.short_keys`. By default none is too short.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[GraphInput, ...]
    probe: Callable[[], tuple[torch.Tensor, ...]]
    shortest_keys: Callable[..., int] = _as_many_as_it_takes


@dataclasses.dataclass(frozen=True, slots=True)
class GraphSpec:
    """How a graph comes about: from weights that need not be loaded yet.

    Attributes
    ----------
    name : str
        Of the graph.
    source : Source
        The weights.
    make : callable
        Gives the :class:`Graph` of what `source` loads, or of its meta module.
    traits : GraphTraits
        What is known of it.
    inputs : tuple, optional
        What tells the graph's inputs from those of other graphs of the same weights; None where
        they follow from the name and the weights.
    """

    name: str
    source: Source
    make: Callable[[Any], Graph]
    traits: GraphTraits = NO_TRAITS
    inputs: tuple[Any, ...] | None = None


class FlatModule(torch.nn.Module):
    """Any module as one of a graph: a tuple of tensors out, 16-bit floats widened on both sides."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        floats = (one.dtype for one in module.parameters() if one.is_floating_point())
        self.dtype = next(floats, torch.float32)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the module on inputs in its own dtype."""
        given = [x.to(self.dtype) if x.is_floating_point() else x for x in inputs]
        outputs = self.module(*given)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        return tuple(x.float() if x.is_floating_point() else x for x in outputs)


def flat_graph(
    name: str,
    module: torch.nn.Module,
    inputs: Sequence[GraphInput],
    shortest_keys: Callable[..., int] | None = None,
) -> Graph:
    """The graph of a module that takes tensors by position and gives a tensor or a tuple of them.

    Its probe are the examples, floats as normal numbers from a fixed seed.
    """
    inputs = [
        dataclasses.replace(one, example=one.example.float())
        if one.example.is_floating_point()
        else one
        for one in inputs
    ]

    def probe() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randn(one.example.shape, generator=generator)
            if one.example.is_floating_point()
            else one.example.clone()
            for one in inputs
        )

    keys = _as_many_as_it_takes if shortest_keys is None else shortest_keys
    return Graph(name, FlatModule(module), tuple(inputs), probe, keys)
