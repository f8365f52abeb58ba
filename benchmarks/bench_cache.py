"""What trusting the model cache costs: hashing weights, remembering that, comparing an entry.

The sizes are those of SDXL's UNet in bf16 unless others are given. Each rate is measured in turns
with plainly reading the same file into the same buffer, from the page cache.

    python benchmarks/bench_cache.py --folder /var/tmp --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ovtensor.cache import ModelCache
from ovtensor.cache.fingerprints import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable

UNET_BYTES = 5_135_000_000


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(path: Path) -> None:
    """Read a file and do nothing with it."""
    buffer = bytearray(4 * 2**20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def forget(path: Path) -> None:
    """Drop a file from the page cache, where the system has a call for that."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(work: Callable[[Path], object], path: Path) -> float:
    """Time one call on a file that has to come from the disk."""
    forget(path)
    return seconds(lambda: work(path))


def write(path: Path, size: int) -> None:
    """Write random bytes."""
    block = torch.randint(0, 256, (2**26,), dtype=torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def measure(folder: Path, size: int, rounds: int) -> dict[str, float]:
    """Measure everything once in a folder that goes afterwards."""
    weights = folder / "diffusion_pytorch_model.safetensors"
    write(weights, size)
    time.sleep(2.5)  # a file younger than two seconds is not remembered
    read(weights)
    turns = [
        (seconds(lambda: read(weights)), seconds(lambda: hash_file(weights))) for _ in range(rounds)
    ]

    from_disk = [(cold(read, weights), cold(hash_file, weights)) for _ in range(2)]

    cache = ModelCache(folder / "cache")
    cache.fingerprint_files([weights])
    remembered = [
        seconds(lambda: ModelCache(cache.path).fingerprint_files([weights])) for _ in range(20)
    ]

    def move(part: Path) -> None:
        weights.rename(part / "model.bin")

    cache.open({"kind": "ir"}, move).close()

    def first() -> None:
        ModelCache(cache.path).open({"kind": "ir"}, lambda _: None).close()

    compared = [seconds(first) for _ in range(rounds)]
    again = [seconds(lambda: cache.open({"kind": "ir"}, lambda _: None).close()) for _ in range(20)]
    cache.clear()

    module = torch.zeros(size // 4, dtype=torch.bfloat16)  # half of the size, in memory
    module[:] = 1
    memory = [seconds(lambda: cache.fingerprint_tensors([("w", module)])) for _ in range(rounds)]
    return {
        "bytes": size,
        "read_gb_s": size / statistics.median(turn[0] for turn in turns) / 1e9,
        "hash_gb_s": size / statistics.median(turn[1] for turn in turns) / 1e9,
        "hash_per_read": statistics.median(hashed / plain for plain, hashed in turns),
        "disk_read_gb_s": size / statistics.median(turn[0] for turn in from_disk) / 1e9,
        "disk_hash_gb_s": size / statistics.median(turn[1] for turn in from_disk) / 1e9,
        "remembered_ms": statistics.median(remembered) * 1e3,
        "open_first_s": statistics.median(compared),
        "open_again_ms": statistics.median(again) * 1e3,
        "memory_gb_s": module.nbytes / statistics.median(memory) / 1e9,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--bytes", type=int, default=UNET_BYTES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="ovtensor-bench-") as folder:
        found = measure(Path(folder), args.bytes, args.rounds)
    for name, value in found.items():
        print(f"{name:14} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
