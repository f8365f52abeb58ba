"""Train the embedded model: a Stable Diffusion XL of four million parameters.

    python tools/train_tiny_sdxl.py --out src/ovtensor/models/tiny_sdxl

It has every part that SDXL has (two CLIP text encoders, the second one with a projection, a UNet
with ``text_time`` conditioning, a VAE with a factor of 8) and is trained from nothing on pictures
that :mod:`shapes` draws. Two stages: the VAE, then the UNet together with both text encoders.
Every random choice follows from ``--seed`` and the step, and the state is saved every 200 steps
in ``--work``: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

import shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_TOKENS = 77  # the length to which SDXL pads its prompts
PROMPT_DROPOUT = 0.1  # share of prompts replaced by zeros, for classifier-free guidance
SAVE_EVERY = 200
TRAINED_SCENES = tuple(scene for scene in shapes.SCENES if not scene.held_out)


def build_tokenizer(pad_token: str) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer; its merges are learnt from the prompts, any text encodes."""
    prompts = sorted(scene.prompt for scene in shapes.SCENES)
    learnt = CLIPTokenizer().train_new_from_iterator(prompts, 1000, show_progress=False)
    merges = json.loads(learnt.backend_tokenizer.to_str())["model"]["merges"]
    # GPT-2's and CLIP's byte alphabet: printable bytes stand for themselves, the rest from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in printable] + [
        chr(256 + index) for index in range(256 - len(printable))
    ]
    tokens = [*alphabet, *(character + "</w>" for character in alphabet)]
    tokens += ["".join(merge) for merge in merges]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge) for merge in merges],
        pad_token=pad_token,
        model_max_length=MAX_TOKENS,
    )


def build_pipeline() -> StableDiffusionXLPipeline:
    """The untrained model, in float32."""
    tokenizer, tokenizer_2 = build_tokenizer("<|endoftext|>"), build_tokenizer("!")

    def text_config(width: int, layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=64,
            num_hidden_layers=layers,
            num_attention_heads=width // 16,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    unet = UNet2DConditionModel(
        sample_size=shapes.SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 80),
        layers_per_block=1,
        attention_head_dim=[2, 4, 5],  # the number of heads: diffusers' name for it is historical
        cross_attention_dim=32 + 64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64 + 6 * 8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=shapes.SIDE,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(32, 2)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(64, 3)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def train(
    name: str,
    modules: dict[str, torch.nn.Module],
    batch_loss: Callable[[int, torch.Generator], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    args: argparse.Namespace,
) -> None:
    """Minimise ``batch_loss(step, generator)``; leaves the moving average of the weights behind."""
    state_file = args.work / f"{name}.pt"
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    average = [p.detach().clone() for p in parameters]
    start, warm_up = 0, 100
    if state_file.exists():
        state = torch.load(state_file, map_location=args.device, weights_only=True)
        for module_name, module in modules.items():
            module.load_state_dict(state["modules"][module_name])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]

    def save(step: int) -> None:
        state = {
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
        }
        part = state_file.with_suffix(".part")
        torch.save(state, part)
        part.replace(state_file)

    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=2)
    recent: float | None = None
    for step in bar:
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * decay)
        loss = batch_loss(step, torch.Generator().manual_seed(args.seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        # A short run would keep its random start in a long average: let the average grow with it.
        weight = 1 - min(ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
        recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
        bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save(step + 1)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)


def vae_batch(count: int, side: int, rng: np.random.Generator) -> torch.Tensor:
    """Pictures in [-1, 1], ``(count, 3, side, side)``: one to three shapes of any place and hue.

    The VAE has to be good at flat colours and edges anywhere, not only at the prompts' scenes.
    """
    pictures = []
    for _ in range(count):

        def colour() -> np.ndarray:
            if rng.random() < 0.5:
                return np.asarray(list(shapes.COLOURS.values()))[rng.integers(len(shapes.COLOURS))]
            return rng.uniform(0, 255, 3)

        canvas = np.broadcast_to(colour(), (side, side, 3)).astype(np.float32)
        for _ in range(rng.integers(1, 4)):
            place = tuple(rng.uniform(-0.45 * side, 0.45 * side, 2))
            mask = shapes.coverage(shapes.SHAPES[rng.integers(3)], rng.uniform(8, 48), place, side)
            canvas = shapes.paint(mask, colour(), 0) + (1 - mask[..., None]) * canvas
        pictures.append(canvas)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


def train_vae(vae: AutoencoderKL, args: argparse.Namespace) -> None:
    """L1 and squared error plus a faint KL term; crops at first, whole pictures at the end."""
    small_steps = int(0.8 * args.vae_steps)

    def batch_loss(step: int, generator: torch.Generator) -> torch.Tensor:
        rng = np.random.default_rng(generator.initial_seed())
        count, side = (16, shapes.SIDE // 2) if step < small_steps else (8, shapes.SIDE)
        pictures = vae_batch(count, side, rng).to(args.device)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(args.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        # L1 keeps flat areas flat, the square chases the few pixels that are far off: the edges.
        return (
            F.l1_loss(decoded, pictures)
            + F.mse_loss(decoded, pictures)
            + 1e-6 * (posterior.kl().mean())
        )

    train("vae", {"vae": vae}, batch_loss, steps=args.vae_steps, learning_rate=1e-3,
          ema_decay=0.995, args=args)  # fmt: skip


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKL, scenes: Iterable[shapes.Scene], args: argparse.Namespace
) -> torch.Tensor:
    """Latents of ``--variants`` drawings of each scene: ``(scenes, variants, 4, 16, 16)``."""
    bank = []
    for index, scene in enumerate(tqdm(list(scenes), desc="latents", mininterval=2)):
        rng = np.random.default_rng((args.seed, index))
        pictures = np.stack([shapes.draw(scene, rng) for _ in range(args.variants)])
        tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        bank.append(vae.encode(tensor.to(args.device)).latent_dist.mode())
    return torch.stack(bank)


def train_unet(pipe: StableDiffusionXLPipeline, args: argparse.Namespace) -> None:
    """The velocity objective on scaled latents, uniform timesteps; text encoders learn along."""
    bank = encode_scenes(pipe.vae, TRAINED_SCENES, args)
    pipe.vae.register_to_config(scaling_factor=round(1.0 / bank.std().item(), 5))
    bank = bank * pipe.vae.config.scaling_factor
    prompts = [scene.prompt for scene in TRAINED_SCENES]
    ids, ids_2 = (
        tokenizer(
            prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
        ).input_ids.to(args.device)
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
    )
    alphas = pipe.scheduler.alphas_cumprod.to(args.device)
    count = args.batch_size
    time_ids = torch.tensor([shapes.SIDE, shapes.SIDE, 0, 0, shapes.SIDE, shapes.SIDE])
    time_ids = time_ids.repeat(count, 1).to(args.device, torch.float32)

    def batch_loss(_: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(prompts), (count,), generator=generator)
        variants = torch.randint(args.variants, (count,), generator=generator)
        timesteps = torch.randint(len(alphas), (count,), generator=generator)
        keep = (torch.rand(count, generator=generator) >= PROMPT_DROPOUT).to(args.device)
        latents = bank[rows, variants]
        noise = torch.randn(latents.shape, generator=generator).to(args.device)
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents

        first = pipe.text_encoder(ids[rows], output_hidden_states=True)
        second = pipe.text_encoder_2(ids_2[rows], output_hidden_states=True)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        predicted = pipe.unet(
            noisy,
            timesteps.to(args.device),
            encoder_hidden_states=text * keep[:, None, None],
            added_cond_kwargs={
                "text_embeds": second.text_embeds * keep[:, None],
                "time_ids": time_ids,
            },
        ).sample
        return F.mse_loss(predicted, velocity)

    train(
        "unet",
        {
            "unet": pipe.unet,
            "text_encoder": pipe.text_encoder,
            "text_encoder_2": pipe.text_encoder_2,
        },
        batch_loss,
        steps=args.unet_steps,
        learning_rate=1e-3,
        ema_decay=0.998,
        args=args,
    )


def export(pipe: StableDiffusionXLPipeline, folder: Path) -> None:
    """Save the pipeline in float16, in such a way that it is loaded in float32 by default."""
    copy.deepcopy(pipe).to("cpu", torch.float16).save_pretrained(folder, safe_serialization=True)
    # transformers loads what its config says and diffusers float32: a plain from_pretrained would
    # otherwise give text encoders that do not fit the UNet.
    for name in ("text_encoder", "text_encoder_2"):
        config = folder / name / "config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        content["dtype"] = "float32"
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # As in published checkpoints, which every transformers reads; newer ones save shorter names.
    weights = folder / "text_encoder" / "model.safetensors"
    named = {
        f"text_model.{n.removeprefix('text_model.')}": t for n, t in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})


def main() -> int:
    """Train both stages and save the pipeline in float16."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--work", type=Path, default=Path("build/tiny_sdxl"), help="state, logs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--unet-steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--variants", type=int, default=16, help="drawings of each scene")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    pipe = build_pipeline().to(args.device)
    print({k: sum(p.numel() for p in m.parameters()) for k, m in pipe.components.items()
           if isinstance(m, torch.nn.Module)}, file=sys.stderr)  # fmt: skip
    train_vae(pipe.vae, args)
    pipe.vae.requires_grad_(False)
    train_unet(pipe, args)

    export(pipe, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
