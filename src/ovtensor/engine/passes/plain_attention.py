"""Attention that is computed in slices to save memory, converted as plain attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovtensor.engine.passes.base import Pass

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ovtensor.engine.passes.base import Conditions

# diffusers' processors that compute what plain attention does, known without importing them.
_SAVE_MEMORY = ("SlicedAttnProcessor", "SlicedAttnAddedKVProcessor", "XFormersAttnProcessor")


class PlainAttention(Pass):
    """Put plain attention in place of processors that differ from it only in how they save memory.

    Their loop runs over the slices of the traced example, so that a batch or size of another number
    of slices would be computed in part: another picture, without an error.
    """

    name = "plain_attention"
    releases = "all: a trace keeps the number of times that a loop of Python ran"
    upstream = "none: this is how torch traces"

    @classmethod
    def applies(cls, given: Conditions) -> bool:  # noqa: ARG003
        """Everywhere."""
        return True

    def on_module(self, module: torch.nn.Module, folder: Path) -> None:  # noqa: ARG002
        """See :class:`.Pass`."""
        parts: list[Any] = list(module.modules())
        for part in parts:
            kind = type(vars(part).get("processor"))
            if kind.__module__.startswith("diffusers.") and kind.__name__ in _SAVE_MEMORY:
                part.set_attention_slice(None)
