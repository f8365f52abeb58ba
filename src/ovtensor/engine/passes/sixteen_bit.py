"""16-bit weights for other arithmetic, without holding them in its dtype.

A checkpoint in float16 on a device that computes in float32 would otherwise be loaded, written and
mapped at twice its size. Here linear layers keep their weights, which the model widens when it is
compiled; they are most of a diffusion model. Values are the same: widening is exact. For bfloat16
they are loaded in the same way, and cast when they are written: see :mod:`.mapped_weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from openvino.frontend.pytorch import ModuleExtension

from ovtensor.engine.devices import SIXTEEN_BIT
from ovtensor.engine.passes.base import Pass

if TYPE_CHECKING:
    from pathlib import Path

    from ovtensor.engine.passes.base import Conditions


class SixteenBitWeights(Pass):
    """Let a module whose linear layers have 16 bits, and all else float32, be traced.

    Its linear layers are not computed from then on: a trace shows nothing but shapes.
    """

    name = "sixteen_bit"
    releases = "all"
    upstream = "none: the operator is that of OpenVINO's own extension for 16-bit models"

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """For float32 arithmetic; for other arithmetic of 16 bits they are cast.

        Not where they are compressed, or a reference is computed: that takes them in float32.
        """
        asked, device = given.backend, given.device
        computed_with = asked.weights is not None or given.verify
        return (
            asked.precision == "f32"
            and device.widens_weights
            and not computed_with
            and (given.stored is not None)
        )

    def on_module(self, module: torch.nn.Module, folder: Path) -> None:  # noqa: ARG002
        """See :class:`.Pass`."""
        for part in module.modules():
            if type(part) is torch.nn.Linear:
                part.__class__ = _SixteenBitLinear


def cast_the_rest(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast, in place, all tensors of 16 bits but the weights of linear layers."""
    for part in module.modules():
        kept = part.weight if type(part) is torch.nn.Linear else None
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.dtype in SIXTEEN_BIT and tensor is not kept:
                tensor.data = tensor.data.to(dtype)


class _SixteenBitLinear(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apply: Any = _LinearOfSixteenBits.apply
        result: torch.Tensor = apply(x, self.weight, self.bias)
        return result


class _LinearOfSixteenBits(torch.autograd.Function):
    """One operator of a trace, for which OpenVINO's decoder takes the extension's.

    Its own ``patch_model`` makes such a class for each layer, and classes wait for a garbage
    collection, with the weights that they hold.
    """

    # The operator is the one of OpenVINO's own extension for 16-bit models.
    target_extension = ModuleExtension(torch.nn.Linear, "ov_ext::linear")

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor, weight: torch.Tensor, _bias: Any) -> torch.Tensor:
        return torch.full((*x.shape[:-1], weight.shape[0]), 0.5)
