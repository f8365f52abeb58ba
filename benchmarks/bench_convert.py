"""Time the conversions against the calls that they stand in for, paired in one run.

Each line times both sides in turns and gives the ratio of their best batches: what the machine
does besides only ever adds time. Run it with

    python benchmarks/bench_convert.py [--json results.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np
import openvino as ov
import torch

import ovtensor

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 60
BATCH_SECONDS = 0.004


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Return the best seconds a call of both, measured in turns."""
    timers = timeit.Timer(ours), timeit.Timer(theirs)
    once = max(timer.timeit(3) / 3 for timer in timers)
    number = max(1, int(BATCH_SECONDS / once))
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for side, timer in enumerate(timers):
            best[side] = min(best[side], timer.timeit(number) / number)
    return best[0], best[1]


def cases() -> list[tuple[str, Callable[[], Any], Callable[[], Any], float | None, int]]:
    """List what is compared: name, our call, theirs, the ratio that is aimed at, rounds."""
    x = torch.rand(1, 3, 64, 64)
    parameter = torch.nn.Parameter(x.clone())
    t = ov.Tensor(x.numpy().copy())
    a = x.numpy()
    small, large = torch.rand(256), torch.rand(256 << 20)  # 1 KB, 1 GB
    wide = torch.rand(128 << 20).bfloat16()  # 256 MB
    to_numpy = ovtensor.to_numpy
    few = 7
    return [
        ("tensor / x.numpy(force=True)", lambda: to_numpy(x), lambda: x.numpy(force=True), 1.5, ROUNDS),
        ("Parameter / p.numpy(force=True)", lambda: to_numpy(parameter),
         lambda: parameter.numpy(force=True), 1.7, ROUNDS),
        ("ov.Tensor f32 / np.array(t.data)", lambda: to_numpy(t), lambda: np.array(t.data), 1.5, ROUNDS),
        ("1 GB / 1 KB, zero-copy", lambda: to_numpy(large), lambda: to_numpy(small), 1.1, ROUNDS),
        ("bfloat16 256 MB / x.float()", lambda: to_numpy(wide), wide.float, 1.2, few),
        ("tensor / x.detach().cpu().numpy()", lambda: to_numpy(x),
         lambda: x.detach().cpu().numpy(), None, ROUNDS),
        ("tensor / np.asarray(x)", lambda: to_numpy(x), lambda: np.asarray(x), None, ROUNDS),
        ("tensor / np.from_dlpack(x)", lambda: to_numpy(x), lambda: np.from_dlpack(x), None, ROUNDS),
        ("tensor / array_api_compat.to_device(x, 'cpu').numpy()", lambda: to_numpy(x),
         lambda: array_api_compat.to_device(x, "cpu").numpy(), None, ROUNDS),
        ("to_torch(array) / torch.from_numpy(array)", lambda: ovtensor.to_torch(a),
         lambda: torch.from_numpy(a), None, ROUNDS),
        ("to_openvino(tensor) / ov.Tensor(x.numpy(), shared_memory=True)",
         lambda: ovtensor.to_openvino(x),
         lambda: ov.Tensor(x.numpy(), shared_memory=True), None, ROUNDS),
    ]  # fmt: skip


def main() -> None:
    """Run all cases; print a table and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    results = []
    for name, ours, theirs, goal, rounds in cases():
        seconds, reference = paired(ours, theirs, rounds)
        ratio = seconds / reference
        verdict = "" if goal is None else f"goal {goal}" + (" missed" if ratio > goal else "")
        print(
            f"{name:64s} {seconds * 1e6:12.2f} us {reference * 1e6:12.2f} us {ratio:6.2f} {verdict}"
        )
        results.append(
            {"name": name, "seconds": seconds, "reference": reference, "ratio": ratio, "goal": goal}
        )
    if options.json is not None:
        machine = {"processor": platform.machine(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
