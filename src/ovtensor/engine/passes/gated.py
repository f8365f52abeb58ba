"""Gated activations converted as two linear layers, a value's and its gate's.

diffusers computes both in one layer and splits the result. Apart, nothing has to be split, and
OpenVINO merges the gate's activation into the gate's layer. Every number is the same sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.activations import GEGLU

from ovtensor.engine.identity import altered

if TYPE_CHECKING:
    from collections.abc import Iterator


def split_gates(module: torch.nn.Module) -> None:
    """Have every ``GEGLU`` of a module compute its two halves in layers of their own from then on.

    They share the memory of its weights. One that somebody has altered is left as it is.
    """
    parts: list[Any] = list(module.modules())
    for part in parts:
        if _is(part, GEGLU) and _is(part.proj, torch.nn.Linear):
            part.value, part.gate = _halves(part.proj)
            del part.proj
            part.__class__ = _Apart


class _Apart(GEGLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.value(x) * self.gelu(self.gate(x))
        return gated


def _is(part: Any, kind: type) -> bool:
    return not altered(part) and type(part) is kind


def _halves(layer: torch.nn.Linear) -> Iterator[torch.nn.Linear]:
    biases = (None, None) if layer.bias is None else layer.bias.chunk(2)
    for weight, bias in zip(layer.weight.chunk(2), biases, strict=True):
        outputs, inputs = weight.shape
        half = torch.nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        half.weight = torch.nn.Parameter(weight, requires_grad=False)
        half.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        yield half
