"""Make an SDXL pipeline with random weights, offline: real structure and sizes, no knowledge.

    python tools/make_sdxl.py full build/sdxl-full      # SDXL base 1.0's own configurations, 7 GB
    python tools/make_sdxl.py middle build/sdxl-middle  # a tenth of it, for 512 pixels

Weights are half-precision safetensors, drawn as torch initialises such layers (so that activations
stay of sensible size) from one seeded generator, so no two tensors are alike. They are written one
tensor at a time: the largest tensor is all that is ever in memory. The tokenizers are the embedded
model's. A folder that is complete is left alone; an interrupted one is made anew.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from ovtensor import tiny_sdxl_path

if TYPE_CHECKING:
    from collections.abc import Callable

Size = Literal["full", "middle"]

# What differs between the sizes; for "full" every value is SDXL base 1.0's.
_UNET: dict[Size, dict[str, Any]] = {
    "full": {
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    "middle": {
        "block_out_channels": (128, 256, 512),
        "transformer_layers_per_block": (1, 2, 4),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": 768,
        "addition_time_embed_dim": 128,
        "projection_class_embeddings_input_dim": 1280,
        "sample_size": 64,
    },
}
_VAE: dict[Size, dict[str, Any]] = {
    "full": {"block_out_channels": (128, 256, 512, 512), "sample_size": 1024},
    "middle": {"block_out_channels": (64, 128, 256, 256), "sample_size": 512},
}
_TEXT: dict[Size, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": (
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
        },
    ),
    "middle": (
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "projection_dim": 256,
        },
        {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "projection_dim": 512,
        },
    ),
}
_VOCABULARY = 49408


def make_sdxl(size: Size, folder: Path, *, seed: int = 0) -> Path:
    """Make the pipeline in ``folder`` unless it is there already, and return ``folder``."""
    if (folder / "model_index.json").is_file():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    for name, make in _components(size).items():
        with torch.device("meta"):
            module = make()
        if isinstance(module, PreTrainedModel):
            module.config.save_pretrained(partial / name)
            file = "model.safetensors"
        else:
            module.save_config(partial / name)
            file = "diffusion_pytorch_model.safetensors"
        _write_weights(module, partial / name / file, generator)
    EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    ).save_config(partial / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny_sdxl_path() / name, partial / name)
    shutil.copy(tiny_sdxl_path() / "model_index.json", partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _components(size: Size) -> dict[str, Callable[[], Any]]:
    def text_config(index: int, **values: Any) -> CLIPTextConfig:
        # The embedded tokenizers use the first few hundred of the vocabulary.
        own = json.loads((tiny_sdxl_path() / "text_encoder" / "config.json").read_text("utf-8"))
        ids = {key: own[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = CLIPTextConfig(vocab_size=_VOCABULARY, **_TEXT[size][index], **ids, **values)
        config.dtype = torch.float16
        return config

    return {
        "unet": lambda: UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            **_UNET[size],
        ),
        "vae": lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.13025,
            **_VAE[size],
        ),
        "text_encoder": lambda: CLIPTextModel(text_config(0, hidden_act="quick_gelu")),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(text_config(1, hidden_act="gelu")),
    }


def _write_weights(module: torch.nn.Module, path: Path, generator: torch.Generator) -> None:
    """Write random float16 weights for a module on the meta device, one tensor at a time.

    safetensors' own writer wants all tensors at once; the format is a length, a JSON header with
    every tensor's place, and the bytes.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    # Checkpoints name the first text encoder's tensors as transformers did before version 5.
    prefix = "text_model." if isinstance(module, CLIPTextModel) else ""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[f"{prefix}{name}"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, shape in tqdm(shapes.items(), desc=path.parent.name, unit="tensor"):
            owner_name, _, own_name = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            tensor = _random(owner, own_name, shape, generator)
            file.write(tensor.to(torch.float16).numpy().data)


def _random(
    owner: torch.nn.Module, name: str, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    """A layer's weight or bias as torch initialises it; norms and embeddings as trained ones are.

    A norm's weight is about one and its bias about zero, an embedding has CLIP's deviation.
    """
    values = torch.empty(shape)
    if isinstance(owner, torch.nn.LayerNorm | torch.nn.GroupNorm | torch.nn.Embedding):
        values.normal_(std=0.02, generator=generator)
        is_gain = name == "weight" and not isinstance(owner, torch.nn.Embedding)
        return values.add_(1) if is_gain else values
    bound = owner.weight[0].numel() ** -0.5
    return values.uniform_(-bound, bound, generator=generator)


def main() -> None:
    """Make the pipeline that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=("full", "middle"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(make_sdxl(args.size, args.folder, seed=args.seed))


if __name__ == "__main__":
    main()
