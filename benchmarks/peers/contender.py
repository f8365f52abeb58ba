"""What every contender of ``sdxl_peers.py`` shares: the job, the clock, the pictures' record.

Needs nothing but Python and NumPy, since contenders live in different environments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "a large red circle on a blue background"
GUIDANCE = 5.0


def since_start() -> float:
    """Seconds since this process began, before Python itself was started."""
    # The 22nd field, after a name in parentheses that may hold spaces.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main(open_pipeline: Callable[[SimpleNamespace], Callable[[], np.ndarray]]) -> None:
    """Open a pipeline, draw ``job.pictures`` pictures and write how long all of it took.

    ``open_pipeline`` gets the job and returns a function that draws one picture, as uint8 of shape
    ``(job.side, job.side, 3)``.
    """
    job = SimpleNamespace(**json.loads(sys.argv[1]))
    draw = open_pipeline(job)
    times = {"opened": since_start()}
    pictures, pictures_cpu = [], []
    for _ in range(job.pictures):
        start, start_cpu = time.perf_counter(), time.process_time()
        picture = draw()
        pictures.append(time.perf_counter() - start)
        pictures_cpu.append(time.process_time() - start_cpu)
        times.setdefault("first_picture", since_start())
        times.setdefault("first_picture_cpu", time.process_time())
    np.save(job.picture, picture)
    found = {**times, "pictures": pictures, "pictures_cpu": pictures_cpu}
    Path(job.result).write_text(json.dumps(found))


def latents(job: SimpleNamespace) -> np.ndarray:
    """The noise that every contender starts from, float32 of shape ``(1, 4, side/8, side/8)``."""
    shape = (1, 4, job.side // 8, job.side // 8)
    return np.random.default_rng(0).standard_normal(shape, np.float32)
