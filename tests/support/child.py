"""Measurements in processes of their own, which nothing that other tests did can disturb."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")

_ANONYMOUS = """
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))
"""


def numbers(script: str, count: int, *arguments: object) -> list[int]:
    """The last integers that a script prints; it may call ``anonymous()`` for its own memory."""
    result = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", _ANONYMOUS + textwrap.dedent(script)),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()[-count:]]
