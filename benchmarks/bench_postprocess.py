"""Time and memory of post-processing against diffusers, paired in one run.

The two sides of a row take turns within the same loop, a few calls each, so that whatever else the
machine does hits both. A row shows the medians and the median of the paired ratios. With
``--calls 1`` each call finds the caches as the other side left them.

    python benchmarks/bench_postprocess.py --threads 2 --json result.json

On a machine with other work, set ``OMP_PROC_BIND=true``: otherwise the system may put torch's
threads on one core, and each operator then waits for a scheduler tick.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino  # noqa: F401  # where a process has it, it computes large pictures
import torch
from diffusers.image_processor import VaeImageProcessor as Stock

from ovtensor.diffusers import VaeImageProcessor, _fused, _pixels

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = ((1, 3, 1024, 1024), (4, 3, 1024, 1024), (1, 3, 512, 512))
STATUS = Path("/proc/self/status")


def paired(
    theirs: Callable[[], object], ours: Callable[[], object], rounds: int, calls: int
) -> dict[str, float]:
    """Time two callables in turns; milliseconds, and how many times as long the first one takes."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 3):  # the first three warm up
        marks = [time.perf_counter()]
        for call in (theirs, ours):
            for _ in range(calls):
                call()
            marks.append(time.perf_counter())
        times.append(((marks[1] - marks[0]) / calls, (marks[2] - marks[1]) / calls))
    times = times[3:]
    first, second = zip(*times, strict=True)
    return {
        "theirs_ms": statistics.median(first) * 1e3,
        "ours_ms": statistics.median(second) * 1e3,
        "ratio": statistics.median(a / b for a, b in times),
        "ratio_of_fastest": min(first) / min(second),
    }


def without_check(processor: VaeImageProcessor, image: torch.Tensor, output: str) -> object:
    """Post-process as if everything were known to be finite."""
    modules = _pixels, _fused
    checks = [module._is_finite for module in modules]  # noqa: SLF001
    for module in modules:
        module._is_finite = lambda _: True  # noqa: SLF001
    try:
        return processor.postprocess(image, output)
    finally:
        for module, check in zip(modules, checks, strict=True):
            module._is_finite = check  # noqa: SLF001


def rows(rounds: int, calls: int) -> list[dict[str, object]]:
    """Measure every row of the table."""
    stock, ours = Stock(), VaeImageProcessor()
    found: list[dict[str, object]] = []

    def add(name: str, theirs: Callable[[], object], mine: Callable[[], object]) -> None:
        found.append({"name": name, **paired(theirs, mine, rounds, calls)})

    for shape in SHAPES:
        size = "x".join(map(str, shape))
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.6
        for dtype in (torch.float32, torch.bfloat16):
            typed = image.to(dtype)
            for output in ("pil", "np", "pt"):
                add(
                    f"{output} {size} {str(dtype)[6:]}: diffusers / ovtensor",
                    lambda x=typed, o=output: stock.postprocess(x, o),
                    lambda x=typed, o=output: ours.postprocess(x, o),
                )
        pixels = torch.empty(shape[0], *shape[2:], shape[1], dtype=torch.uint8)
        add(
            f"uint8 {size}: ovtensor / copies of the same input and output",
            lambda x=image: ours.postprocess(x, "uint8"),
            lambda x=image, p=pixels: (x.clone(), p.clone()),
        )
        used, unused = torch.empty_like(image), torch.empty_like(pixels)
        add(
            f"uint8 {size}: ovtensor / the same copies into memory in use",
            lambda x=image: ours.postprocess(x, "uint8"),
            lambda x=image, p=pixels, a=used, b=unused: (a.copy_(x), b.copy_(p)),
        )
        for output in ("pil", "np"):
            add(
                f"{output} {size}: ovtensor / ovtensor without its check for NaN",
                lambda x=image, o=output: ours.postprocess(x, o),
                lambda x=image, o=output: without_check(ours, x, o),
            )
    return found


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """Measure how far the resident memory rises above its level before the call; Linux only."""
    if not STATUS.exists():
        return None

    def resident(key: str) -> int:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = call()
    peak = resident("VmHWM") - before
    del result
    return peak


def memory_rows() -> list[dict[str, object]]:
    """Measure the peak over the input for a batch whose float copies would show."""
    image = torch.randn(4, 3, 2048, 2048)
    one = image[0].numel()
    pillow = 4 * image[:, 0].numel()  # Pillow stores RGB in four bytes
    out: list[dict[str, object]] = []
    for name, processor, output, result in (
        ("diffusers pil", Stock(), "pil", pillow),
        ("ovtensor pil", VaeImageProcessor(), "pil", pillow),
        ("ovtensor uint8", VaeImageProcessor(), "uint8", 4 * one),
    ):
        processor.postprocess(image[:, :, :512, :512].contiguous(), output)  # loads what it needs
        peak = peak_extra_bytes(lambda p=processor, o=output: p.postprocess(image, o))
        if peak is not None:
            extra = (peak - result) / 2**20
            out.append({"name": name, "extra_MiB": extra, "one_uint8_image_MiB": one / 2**20})
    return out


def main() -> None:
    """Print the table, and write it as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--calls", type=int, default=5, help="of one side before the other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    memory = memory_rows()
    times = rows(args.rounds, args.calls)
    print(f"{'first / second':66} {'first':>9} {'second':>9} {'ratio':>7} {'of fastest':>10}")
    for row in times:
        print(
            f"{row['name']:66} {row['theirs_ms']:6.2f} ms {row['ours_ms']:6.2f} ms "
            f"{row['ratio']:7.2f} {row['ratio_of_fastest']:10.2f}"
        )
    for row in memory:
        print(
            f"memory beyond input and result, 4x3x2048x2048 float32, {row['name']}: "
            f"{row['extra_MiB']:.1f} MiB (one uint8 image: {row['one_uint8_image_MiB']:.0f} MiB)"
        )
    if args.json:
        facts = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": args.threads,
            "rounds": args.rounds,
            "calls": args.calls,
        }
        args.json.write_text(json.dumps({**facts, "times": times, "memory": memory}, indent=2))


if __name__ == "__main__":
    main()
