"""Full-size SDXL at 1024 pixels in 16 GB: memory, times, and whether run 2 is run 1 again.

    python benchmarks/sdxl_full.py --json full.json

Builds a pipeline of SDXL base 1.0's size with random weights once (7 GB), then for every split of
the components between torch and OpenVINO starts two processes one after the other, a cold and a
warm one, under a memory limit. Each generates twice with the same seed, two steps, and compares
the pictures byte for byte. The warm one finds what the cold one cached. Torch components run in
bfloat16, OpenVINO's in what the device prefers. Linux only; each split takes minutes:

    nohup python benchmarks/sdxl_full.py --json full.json > full.log 2>&1 &

Goals, for a CPU with native bfloat16: at most 9 GB of anonymous memory cold and 8 GB warm; the
UNet converted in at most 30 s and compiled in at most 12 s.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import watched

COMPONENTS = ("unet", "vae", "text_encoders")
# Every set of components on OpenVINO, the whole pipeline first.
SPLITS = tuple(
    "+".join(chosen) or "none"
    for count in (3, 1, 2, 0)
    for chosen in itertools.combinations(COMPONENTS, count)
)
GOALS = {"cold": 9e9, "warm": 8e9, "convert": 30.0, "compile": 12.0}


def generate(args: argparse.Namespace) -> None:
    """Open the pipeline, generate twice and write what is seen from inside the process."""
    import numpy as np
    import torch

    import ovtensor

    chosen = args.generate.split("+")
    on_torch = ovtensor.Backend("torch", precision=args.torch_precision)
    backends = {
        name: ovtensor.Backend("openvino", precision=args.precision) if name in chosen else on_torch
        for name in COMPONENTS
    }
    cached = "cache" in inspect.signature(ovtensor.sdxl_pipeline).parameters
    options: dict[str, Any] = {"cache": args.cache} if cached else {}
    start = time.perf_counter()
    with ovtensor.sdxl_pipeline(args.model, **backends, progress=False, **options) as pipe:
        opened = time.perf_counter() - start
        pictures, runs = [], []
        for _ in range(2):
            ticks = [time.perf_counter()]

            def tick(
                _pipe: Any, _step: int, _time: Any, tensors: dict[str, Any], ticks: list = ticks
            ) -> dict[str, Any]:
                ticks.append(time.perf_counter())
                return tensors

            result = pipe(
                "a large red circle on a blue background",
                height=args.side,
                width=args.side,
                num_inference_steps=args.steps,
                generator=torch.Generator().manual_seed(7),
                callback_on_step_end=tick,
            )
            runs.append({"seconds": time.perf_counter() - ticks[0], "steps": np.diff(ticks)[1:]})
            pictures.append(np.asarray(result.images[0]))
        report = [dataclasses.asdict(row) for row in pipe.ovtensor.report()]
    found = {
        "open": opened,
        "runs": [run["seconds"] for run in runs],
        # A run's first tick also waits for the text encoders, so it is no step's time.
        "step": statistics.median(float(s) for run in runs for s in run["steps"]),
        "identical": pictures[0].tobytes() == pictures[1].tobytes(),
        "deviation": float(pictures[0].std()),
        "report": report,
    }
    args.result.write_text(json.dumps(found))


def measure(args: argparse.Namespace, split: str, kind: str) -> dict[str, Any]:
    """One process under the limit; what it wrote, with its memory as seen from outside."""
    result = args.work / "full-result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--generate", split]
    for name in ("model", "cache", "side", "steps", "precision", "torch_precision"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    seen = watched.run(
        [*args.prefix.split(), *command, "--result", str(result)],
        args.work / "full.log",
        limit=int(args.limit * 1e9),
        environment={"HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(result.read_text()) if result.is_file() else {}
    return {"split": split, "kind": kind, **dataclasses.asdict(seen), **found}


def line(run: dict[str, Any]) -> str:
    """One row of the table, in Markdown; a goal that is missed is marked."""
    cells = [run["split"], run["kind"]]
    if "report" not in run:
        why = "over the limit" if run["over_limit"] else f"failed with status {run['status']}"
        return f"| {' | '.join(cells)} | {run['anonymous'] / 1e9:.1f}, {why} | | | | |"
    unet = next(row for row in run["report"] if row["component"] == "unet")

    def judged(value: float, goal: float, text: str) -> str:
        return f"**{text}**" if value > goal else text

    cells += [
        judged(run["anonymous"], GOALS[run["kind"]], f"{run['anonymous'] / 1e9:.1f}"),
        judged(unet["convert_seconds"], GOALS["convert"], f"{unet['convert_seconds']:.1f}"),
        judged(unet["compile_seconds"], GOALS["compile"], f"{unet['compile_seconds']:.1f}"),
        f"{run['step']:.1f}",
        "yes" if run["identical"] else "**no**",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure every split, write the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base = Path(tempfile.gettempdir()) / "ovtensor-benchmarks"
    parser.add_argument("--work", type=Path, default=base, help="folder for caches and logs")
    parser.add_argument("--model", type=Path, default=base / "sdxl-full", help="made if missing")
    parser.add_argument("--split", nargs="*", default=SPLITS, help=f"of {', '.join(SPLITS)}")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit", type=float, default=16.0, help="GB a process may take")
    parser.add_argument("--precision", default="auto", help="of OpenVINO's components")
    parser.add_argument("--torch-precision", default="bf16", help="of torch's components")
    parser.add_argument("--prefix", default="", help="put before each measured command")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--generate", help=argparse.SUPPRESS)  # this is a measured process
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate:
        generate(args)
        return 0
    if unknown := [split for split in args.split if split not in SPLITS]:
        parser.error(f"no such split: {', '.join(unknown)}")

    args.work.mkdir(parents=True, exist_ok=True)
    tool = Path(__file__).resolve().parent.parent / "tools" / "make_sdxl.py"
    subprocess.run([sys.executable, str(tool), "full", str(args.model)], check=True)
    args.cache = args.work / "full-cache"
    runs = []
    print("| on OpenVINO | | anonymous, GB | convert, s | compile, s | step, s | run 2 = run 1 |")
    print("|---|---|---|---|---|---|---|")
    for split in args.split:
        shutil.rmtree(args.cache, ignore_errors=True)
        for kind in ("cold", "warm"):
            runs.append(measure(args, split, kind))
            print(line(runs[-1]), flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps(runs, indent=1))
    return 0 if all(run.get("identical") for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
