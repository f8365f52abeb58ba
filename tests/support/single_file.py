"""A UNet's weights under the names that they have in a single-file checkpoint."""

from __future__ import annotations

import re

import torch

_WHOLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_IN_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_checkpoint(unet) -> dict[str, torch.Tensor]:
    """What Stability's own code would save of a UNet with SDXL's structure."""
    blocks = _WHOLE | _blocks(unet)
    tensors = {}
    for name, tensor in unet.state_dict().items():
        part = next(part for part in blocks if name.startswith(f"{part}."))
        rest = name.removeprefix(part)
        if ".resnets." in part:
            rest = re.sub(r"^\.(\w+)", lambda found: f".{_IN_RESNETS[found[1]]}", rest)
        tensors[f"model.diffusion_model.{blocks[part]}{rest}"] = tensor.contiguous()
    return tensors


def _blocks(unet) -> dict[str, str]:
    """Where the parts of each level lie: a list of blocks down, and another one up."""
    names = {}
    for side, place, first in (("down", "input", 1), ("up", "output", 0)):
        index = first
        for level, block in enumerate(getattr(unet, f"{side}_blocks")):
            here = f"{side}_blocks.{level}"
            for layer in range(len(block.resnets)):
                names[f"{here}.resnets.{layer}"] = f"{place}_blocks.{index}.0"
                names[f"{here}.attentions.{layer}"] = f"{place}_blocks.{index}.1"
                index += 1
            if getattr(block, "downsamplers", None):
                names[f"{here}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
                index += 1
            if getattr(block, "upsamplers", None):
                after = 2 if hasattr(block, "attentions") else 1
                names[f"{here}.upsamplers.0.conv"] = f"output_blocks.{index - 1}.{after}.conv"
    return names
