"""Adapters that peft has put into a module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def has_adapters(module: torch.nn.Module) -> bool:
    """Whether peft has put adapters into a module."""
    return any(_is_adapter(layer) for layer in module.modules())


def merge_adapters(module: Any) -> None:
    """Merge adapters into the weights as far as they are active, and take peft's layers out."""
    from diffusers.utils import recurse_remove_peft_layers

    for layer in module.modules():
        if _is_adapter(layer) and not layer.disable_adapters:
            layer.merge(safe_merge=True)
    recurse_remove_peft_layers(module)
    if hasattr(module, "peft_config"):
        del module.peft_config
        module._hf_peft_config_loaded = False  # noqa: SLF001 - as diffusers' unload_lora does


def _is_adapter(layer: Any) -> bool:
    # Without peft in memory no layer can be one of its own.
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(layer, tuners.BaseTunerLayer)
