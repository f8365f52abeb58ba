"""Gated activations converted as two linear layers, a value's and its gate's.

diffusers computes both in one layer and splits the result. Apart, nothing has to be split, and
OpenVINO merges the gate's activation into the gate's layer. Every number is the same sum.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.identity import altered
from ovtensor.engine.passes.base import Pass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovtensor.engine.passes.base import Conditions

# Whose GEGLU this knows, without importing it.
_ACTIVATIONS = "diffusers.models.activations"


class SplitGates(Pass):
    """Have every ``GEGLU`` compute its two halves in layers of their own, which share its memory.

    One that somebody has altered is left as it is.
    """

    name = "gated"
    releases = "all: the CPU plugin copies the halves, and runs the gate's activation by itself"
    upstream = "not reported"

    @classmethod
    def applies(cls, given: Conditions) -> bool:  # noqa: ARG003
        """Everywhere."""
        return True

    def on_module(self, module: torch.nn.Module, folder: Path) -> None:  # noqa: ARG002
        """See :class:`.Pass`."""
        known = getattr(sys.modules.get(_ACTIVATIONS), "GEGLU", None)
        parts: list[Any] = list(module.modules())
        for part in parts:
            if _is(part, known) and _is(part.proj, torch.nn.Linear):
                part.value, part.gate = _halves(part.proj)
                del part.proj
                part.__class__ = _apart(known)


@functools.cache
def _apart(gated: type) -> type:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.value(x) * self.gelu(self.gate(x))
        return result

    return type("_Apart", (gated,), {"forward": forward})


def _is(part: Any, kind: type | None) -> bool:
    return not altered(part) and type(part) is kind


def _halves(layer: torch.nn.Linear) -> Iterator[torch.nn.Linear]:
    biases = (None, None) if layer.bias is None else layer.bias.chunk(2)
    for weight, bias in zip(layer.weight.chunk(2), biases, strict=True):
        outputs, inputs = weight.shape
        half = torch.nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        half.weight = torch.nn.Parameter(weight, requires_grad=False)
        half.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        yield half
