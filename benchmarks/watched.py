"""Run a command in a process of its own, watch its memory and stop it above a limit.

Anonymous memory is what a program holds; file-mapped pages can be dropped and read again, so they
are counted apart. Linux only: the figures come from /proc and the limit from a control group,
where this machine lets us make one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SAMPLE_SECONDS = 0.05


@dataclasses.dataclass(slots=True)
class Watched:
    """How a command ended, and the largest samples of its process tree, in bytes.

    ``resident`` is the largest ``VmHWM`` of any one process: its peak of anonymous and
    file-mapped memory together, kept by the kernel.
    """

    status: int = 0
    anonymous: int = 0
    file: int = 0
    resident: int = 0
    over_limit: bool = False
    limited_by: str = ""


def run(
    command: list[str],
    log: Path,
    *,
    limit: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Watched:
    """Run ``command``, its output going to the end of ``log``; ``limit`` is in bytes.

    The limit is one of the control group, if this process may make one: anonymous and file-mapped
    pages together, of which the kernel drops the latter first. Else the command is stopped as soon
    as a sample of its anonymous memory is above it.
    """
    seen = Watched()
    with log.open("ab") as output, _control_group(limit) as group:
        if group is not None:
            command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
        seen.limited_by = "" if limit is None else "watching" if group is None else "control group"
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
        try:
            while process.poll() is None:
                _sample(seen, _tree(process.pid))
                if limit is not None and seen.anonymous > limit:
                    seen.over_limit = True
                    break
                time.sleep(SAMPLE_SECONDS)
        finally:
            if process.poll() is None:
                for pid in reversed(_tree(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            seen.status = process.wait()
        if group is not None and _killed(group):
            seen.over_limit = True
    return seen


def _sample(seen: Watched, pids: list[int]) -> None:
    anonymous = file = 0
    for pid in pids:
        with contextlib.suppress(OSError, KeyError):  # it ended between listing and reading
            lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            anonymous += _bytes(fields["RssAnon"])
            file += _bytes(fields["RssFile"])
            seen.resident = max(seen.resident, _bytes(fields["VmHWM"]))
    seen.anonymous = max(seen.anonymous, anonymous)
    seen.file = max(seen.file, file)


def _bytes(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024


def _tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


@contextlib.contextmanager
def _control_group(limit: int | None) -> Iterator[Path | None]:
    """A control group with a memory limit, version 2 or 1, or None where there can be none."""
    if limit is None:
        yield None
        return
    for root, file in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = root / f"ovtensor-benchmark-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if _written(group / file, str(limit)):
                yield group
                return
        finally:
            group.rmdir()
    yield None


def _written(path: Path, text: str) -> bool:
    """Whether the kernel took the text; the file is there already if it can be written at all."""
    try:
        with path.open("r+") as file:
            file.write(text)
    except OSError:
        return False
    return True


def _killed(group: Path) -> bool:
    """Whether the kernel ended a process of the group for its memory."""
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError):
            for line in (group / name).read_text().splitlines():
                key, _, count = line.partition(" ")
                if key == "oom_kill" and int(count) > 0:
                    return True
    return False
