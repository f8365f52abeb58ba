"""Converting 16-bit weights for other arithmetic, without holding them in its dtype.

A checkpoint in float16 on a device that computes in float32 would otherwise be loaded, written and
mapped at twice its size. Here linear layers keep their weights, which the model widens when it is
compiled; they are most of an SDXL model. Values are the same: widening is exact. For bfloat16 they
are loaded in the same way, and cast when they are written: see :mod:`.mapped`.
"""

from __future__ import annotations

from typing import Any

import torch
from openvino.frontend.pytorch import ModuleExtension

from ovtensor.engine.backend import HALVES


def cast_the_rest(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast, in place, all tensors of 16 bits but the weights of linear layers."""
    for part in module.modules():
        kept = part.weight if type(part) is torch.nn.Linear else None
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.dtype in HALVES and tensor is not kept:
                tensor.data = tensor.data.to(dtype)


def linear_in_halves(module: torch.nn.Module) -> None:
    """Let a module whose linear layers have 16 bits, and all else float32, be traced.

    Its linear layers are not computed from then on: a trace shows nothing but shapes.
    """
    for part in module.modules():
        if type(part) is torch.nn.Linear:
            part.__class__ = _InHalves


class _InHalves(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apply: Any = _LinearInHalves.apply
        result: torch.Tensor = apply(x, self.weight, self.bias)
        return result


class _LinearInHalves(torch.autograd.Function):
    """One operator of a trace, for which OpenVINO's decoder takes the extension's.

    Its own ``patch_model`` makes such a class for each layer, and classes wait for a garbage
    collection, with the weights that they hold.
    """

    # The operator is the one of OpenVINO's own extension for 16-bit models.
    target_extension = ModuleExtension(torch.nn.Linear, "ov_ext::linear")

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor, weight: torch.Tensor, _bias: Any) -> torch.Tensor:
        return torch.full((*x.shape[:-1], weight.shape[0]), 0.5)
