"""How long a process takes to its first picture, without and with a filled cache.

Pairs of new processes, each with every component on OpenVINO: the first one converts and fills an
empty cache, the second one finds everything there. Times are from the start of the interpreter to
the picture, imports included, and to the end of the imports alone. What comes after it, closing the
pipeline and the end of the interpreter, which takes a second more, is in neither.

    python benchmarks/bench_start.py --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import ovtensor

TOLD = "print(time.time(), flush=True)"
CHILD = f"""
import sys, time, ovtensor
folder, cache, steps = sys.argv[1:]
with ovtensor.sdxl_pipeline(
    folder, unet="openvino", vae="openvino", text_encoders="openvino", cache=cache, progress=False
) as pipe:
    pipe("a small red circle on a white background", num_inference_steps=int(steps)).images[0]
    {TOLD}
"""
IMPORTS = f"""
import time, torch, openvino
from diffusers import StableDiffusionXLPipeline
{TOLD}
"""


def seconds(code: str, *arguments: str) -> float:
    """Wall-clock seconds from the start of a new interpreter until ``code`` tells the time."""
    start = time.time()
    command = [sys.executable, "-c", code, *arguments]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(told) - start


def main() -> None:
    """Print the medians of all pairs, and of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(ovtensor.tiny_sdxl_path()), help="a folder of SDXL")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    rows = []
    for _ in range(options.pairs):
        with tempfile.TemporaryDirectory() as cache:
            job = (options.model, cache, str(options.steps))
            cold, warm = seconds(CHILD, *job), seconds(CHILD, *job)
        rows.append({"cold": cold, "warm": warm, "imports": seconds(IMPORTS), "ratio": warm / cold})
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print(json.dumps({name: round(value, 3) for name, value in medians.items()}))


if __name__ == "__main__":
    main()
