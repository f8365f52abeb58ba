"""Measure the embedded model on 200 prompts, some of colour pairs that training never saw.

    python tools/evaluate_tiny_sdxl.py

Pictures are drawn by diffusers alone, in float32, one seed a prompt. Prints a table, writes the
figures and a sheet of pictures if asked to, and exits with status 1 if a goal is missed: mean IoU
of at least 0.8, and at least 95 % of the shape and of the background colours right.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from tqdm import tqdm

import ovtensor
import shapes

GOALS = {"iou": 0.8, "colour": 0.95, "background": 0.95}


def choose_scenes(count: int, seed: int) -> list[shapes.Scene]:
    """``count`` different scenes in a random order that depends on nothing but the seed."""
    order = np.random.default_rng(seed).permutation(len(shapes.SCENES))
    return [shapes.SCENES[index] for index in order[:count]]


def summarise(scenes: list[shapes.Scene], verdicts: list[shapes.Verdict]) -> dict[str, float]:
    """Mean IoU and the shares of right colours."""
    pairs = list(zip(scenes, verdicts, strict=True))
    return {
        "prompts": len(pairs),
        "iou": round(float(np.mean([v.iou for _, v in pairs])), 4),
        "colour": round(float(np.mean([v.colour == s.colour for s, v in pairs])), 4),
        "background": round(float(np.mean([v.background == s.background for s, v in pairs])), 4),
    }


def main() -> int:
    """Draw, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ovtensor.tiny_sdxl_path())
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0, help="the pipeline's own default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a sheet of the pictures here")
    args = parser.parse_args()

    pipe = StableDiffusionXLPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    scenes = choose_scenes(args.prompts, args.seed)
    pictures: list[np.ndarray] = []
    for start in tqdm(range(0, len(scenes), args.batch_size)):
        batch = scenes[start : start + args.batch_size]
        drawn = pipe(
            [scene.prompt for scene in batch],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=[
                torch.Generator().manual_seed(args.seed * 100_000 + start + index)
                for index in range(len(batch))
            ],
        ).images
        pictures.extend(np.asarray(picture) for picture in drawn)
    verdicts = [
        shapes.judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)
    ]

    groups = {"all": [True] * len(scenes), "held out": [scene.held_out for scene in scenes]}
    result: dict[str, object] = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    print(f"{'':10} {'prompts':>8} {'IoU':>7} {'colour':>7} {'background':>11}")
    for name, members in groups.items():
        chosen = [index for index, member in enumerate(members) if member]
        figures = summarise([scenes[i] for i in chosen], [verdicts[i] for i in chosen])
        result[name] = figures
        print(
            f"{name:10} {figures['prompts']:8} {figures['iou']:7.3f} {figures['colour']:7.1%} "
            f"{figures['background']:11.1%}"
        )
    for scene, verdict in zip(scenes, verdicts, strict=True):
        if not verdict.right(scene):
            print(f"  missed: {scene.prompt}: {verdict}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.sheet:
        rows = [np.concatenate(pictures[row : row + 10], axis=1) for row in range(0, 60, 10)]
        Image.fromarray(np.concatenate(rows)).save(args.sheet)
    overall = result["all"]
    return 0 if all(overall[key] >= goal for key, goal in GOALS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
