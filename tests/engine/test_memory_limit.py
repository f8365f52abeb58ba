"""How much memory a process can have: the machine's, or what its control group leaves of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ovtensor.engine import memory as _memory
from ovtensor.engine.memory import MemoryPolicy
from ovtensor.errors import InputError

GIGABYTE = 2**30
V1 = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
V2 = Path("/sys/fs/cgroup"), "memory.max"


def limit_with(files: dict[str, str], monkeypatch) -> int:
    monkeypatch.setattr(_memory, "_text", lambda path: files.get(path.as_posix(), ""))
    return _memory._system_limit.__wrapped__()


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


def test_memory_is_scarce_from_a_third_of_it_on():
    resident = psutil.Process().memory_info().rss
    assert MemoryPolicy(2 * resident).is_scarce()
    assert not MemoryPolicy(4 * resident).is_scarce()


def test_the_environment_says_it_for_all_that_say_nothing(monkeypatch):
    monkeypatch.setenv(_memory.LIMIT, " 5000 ")
    assert MemoryPolicy().total() == _memory.memory_limit() == 5000
    assert MemoryPolicy(7000).total() == 7000
    monkeypatch.setenv(_memory.LIMIT, " ")
    assert MemoryPolicy().total() > GIGABYTE


@pytest.mark.parametrize("word", ["8GB", "-1", "0", "1.5", "\N{SUPERSCRIPT TWO}"])
def test_a_word_that_is_no_number_of_bytes(word, monkeypatch):
    monkeypatch.setenv(_memory.LIMIT, word)
    with pytest.raises(InputError, match=r"OVTENSOR_MEMORY_LIMIT is .*positive number of bytes"):
        MemoryPolicy().total()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": 0}, "positive number of bytes, not 0"),
        ({"limit": -5}, "positive number of bytes, not -5"),
        ({"limit": 1e9}, "positive number of bytes, not 1000000000.0"),
        ({"limit": True}, "positive number of bytes, not True"),
        ({"map_weights": -0.1}, "map_weights is a part of the memory, such as 0.2, not -0.1"),
        ({"file_weights": "0.5"}, "file_weights is a part of the memory"),
        ({"free_activations": None}, "free_activations is a part of the memory"),
        ({"free_activations": float("nan")}, "free_activations is a part of the memory"),
    ],
)
def test_a_policy_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        MemoryPolicy(**given)
