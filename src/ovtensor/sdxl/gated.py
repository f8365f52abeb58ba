"""Gated activations converted as two linear layers, a value's and its gate's.

diffusers computes both in one layer and splits the result. Apart, nothing has to be split, and
OpenVINO merges the gate's activation into the gate's layer. Every number is the same sum.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.activations import GEGLU

from ovtensor.sdxl.identity import altered

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def gates_apart(module: torch.nn.Module) -> Iterator[list[torch.nn.Linear]]:
    """Have every ``GEGLU`` of a module compute its two halves in layers of their own meanwhile.

    Yields these layers, which are no children of it and share its weights. One that somebody has
    altered is left as it is.
    """
    parts: list[Any] = [
        part for part in module.modules() if _is(part, GEGLU) and _is(part.proj, torch.nn.Linear)
    ]
    made = []
    for part in parts:
        value, gate = _halves(part.proj)
        part.forward = functools.partial(_forward, part.gelu, value, gate)
        made += [value, gate]
    try:
        yield made
    finally:
        for part in parts:
            del part.forward


def _is(part: Any, kind: type) -> bool:
    return not altered(part) and type(part) is kind


def _forward(gelu: Any, value: Any, gate: Any, x: torch.Tensor) -> torch.Tensor:
    gated: torch.Tensor = value(x) * gelu(gate(x))
    return gated


def _halves(layer: torch.nn.Linear) -> Iterator[torch.nn.Linear]:
    biases = (None, None) if layer.bias is None else layer.bias.chunk(2)
    for weight, bias in zip(layer.weight.chunk(2), biases, strict=True):
        outputs, inputs = weight.shape
        half = torch.nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        half.weight = torch.nn.Parameter(weight, requires_grad=False)
        half.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        yield half
