"""How much memory a process can have: the machine's, or what its control group leaves of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ovtensor.engine import memory as _memory

GIGABYTE = 2**30
V1 = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
V2 = Path("/sys/fs/cgroup"), "memory.max"


def limit_with(files: dict[str, str], monkeypatch) -> int:
    monkeypatch.setattr(_memory, "_text", lambda path: files.get(path.as_posix(), ""))
    return _memory.memory_limit.__wrapped__()


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),  # Windows, macOS
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/memory.max": "2000\n"}, 2000),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/memory.max": "3000\n"}, 3000),
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4000\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "/sys/fs/cgroup/cpu,cpuacct/a/memory.limit_in_bytes": "1\n",
            },
            4000,
        ),
    ],
    ids=["none", "unlimited", "above", "container", "version 1"],
)
def test_the_smallest_limit_counts(files, limit, monkeypatch):
    machine = psutil.virtual_memory().total
    assert limit_with(files, monkeypatch) == (machine if limit is None else limit)


def test_a_real_group():
    for root, file in (V1, V2):
        group = root / f"ovtensor-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / file).exists():
                continue
            (group / file).write_text(str(GIGABYTE))
            code = (
                "import os, pathlib\n"
                f"pathlib.Path({str(group / 'cgroup.procs')!r}).write_text(str(os.getpid()))\n"
                "from ovtensor.engine import memory as _memory\n"
                "print(_memory.memory_limit())"
            )
            result = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            assert int(result.stdout) == GIGABYTE
            return
        finally:
            group.rmdir()
    pytest.skip("this process may not make control groups")


def test_memory_is_scarce_from_a_third_of_it_on(monkeypatch):
    resident = psutil.Process().memory_info().rss
    monkeypatch.setattr(_memory, "memory_limit", lambda: 2 * resident)
    assert _memory.memory_is_scarce()
    monkeypatch.setattr(_memory, "memory_limit", lambda: 4 * resident)
    assert not _memory.memory_is_scarce()
