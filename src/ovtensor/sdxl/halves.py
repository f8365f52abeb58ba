"""Converting 16-bit weights for float32 arithmetic, without ever widening them.

A checkpoint in float16 on a device that computes in float32 would otherwise be loaded, written and
mapped at twice its size. Here linear layers keep their weights, which the model widens when it is
compiled; they are most of an SDXL model. Values are the same: widening is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from openvino.frontend.pytorch import ModuleExtension, patch_model

if TYPE_CHECKING:
    from collections.abc import Mapping

HALVES = (torch.float16, torch.bfloat16)
_ORIGINAL = "_ovtensor_original_forward"  # where patch_model keeps a layer's own forward


def widen_the_rest(module: torch.nn.Module) -> None:
    """Cast to float32, in place, all tensors of 16 bits but those of linear layers."""
    for part in module.modules():
        if type(part) is not torch.nn.Linear:
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.dtype in HALVES:
                    tensor.data = tensor.data.float()


def trace(module: torch.nn.Module, examples: tuple[torch.Tensor, ...]) -> Any:
    """Trace a module whose linear layers have 16 bits and everything else float32.

    Linear layers are not computed meanwhile: a trace shows nothing but shapes.
    """
    # The documented way to do this is convert_model(extension=...), which traces by itself, four
    # times. The operator's name is the one of OpenVINO's own extension for 16-bit models.
    extensions: Mapping[Any, Any] = {
        torch.nn.Linear: ModuleExtension(
            torch.nn.Linear, "ov_ext::linear", convert=_convert, evaluate=_evaluate
        )
    }
    patch_model.patch_model(module, extensions, _ORIGINAL)
    try:
        jit: Any = torch.jit.trace
        return jit(module, examples, check_trace=False, strict=False)
    finally:
        patch_model.unpatch_model(module, _ORIGINAL)


def _convert(layer: Any, target_op: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    result: torch.Tensor = target_op(x, layer.weight, layer.bias)
    return result


def _evaluate(layer: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.full((*x.shape[:-1], layer.out_features), 0.5)
