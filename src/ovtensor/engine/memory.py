"""How much memory there is, what counts as much of it, and freed memory back to the system."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovtensor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = "OVTENSOR_MEMORY_LIMIT"


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """When memory is given up for time, and time for memory.

    Parameters
    ----------
    limit : int, optional
        Bytes that this process can have. By default what the environment variable
        ``OVTENSOR_MEMORY_LIMIT`` says, or else the machine's memory, or that of the control group
        around the process.
    map_weights : float
        Weights of linear layers that run at every step are read from their file, and not copied,
        if the copies would take more than this part of the limit.
    file_weights : float
        A torch component's weights that were computed, and so are memory of the process, move to a
        file if they take more than this part.
    free_activations : float
        With more than this part in use, mapped files included, a compiled model gives its
        activation memory back when another one is called. The rest is for other programs, the
        system's copies of files, and what is computed next.

    Raises
    ------
    InputError
        If a part is negative or the limit no positive number of bytes.
    """

    limit: int | None = None
    map_weights: float = 1 / 100
    file_weights: float = 1 / 5
    free_activations: float = 1 / 3

    def __post_init__(self) -> None:
        if self.limit is not None and not (type(self.limit) is int and self.limit > 0):
            raise InputError(f"a memory limit is a positive number of bytes, not {self.limit!r}")
        for name in ("map_weights", "file_weights", "free_activations"):
            part = getattr(self, name)
            if not (isinstance(part, int | float) and part >= 0):
                raise InputError(f"{name} is a part of the memory, such as 0.2, not {part!r}")

    def maps_weights(self, size: int) -> bool:
        """Whether weights that run at every step are too many to be copied."""
        return size > self.total() * self.map_weights

    def files_weights(self, size: int) -> bool:
        """Whether ``size`` bytes of computed weights are better kept in a file."""
        return size > self.total() * self.file_weights

    def is_scarce(self) -> bool:
        """Whether this process has so much memory that activation memory is to go."""
        import psutil

        resident: int = psutil.Process().memory_info().rss
        return resident > self.total() * self.free_activations

    def total(self) -> int:
        """The limit in force."""
        return memory_limit() if self.limit is None else self.limit


def give_back(*, collect: bool = True) -> None:
    """Collect garbage and return the pages that the allocator keeps for later, where it can.

    Looking for garbage takes a third of a second where torch and diffusers are imported.

    glibc keeps freed tensors of up to 32 MB in its heap: of a module of 420 MB it held 450 MB
    until it was asked. Other systems' allocators are not asked.
    """
    if collect:
        gc.collect()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None


def memory_limit() -> int:
    """Bytes that this process can have: the environment's word, else what the system says."""
    if not (word := os.environ.get(LIMIT, "").strip()):
        return _system_limit()
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise InputError(f"{LIMIT} is {word!r}; it must be a positive number of bytes")
    return int(word)


@functools.cache
def _system_limit() -> int:
    """The machine's memory, or less if the process's control group says so."""
    import psutil

    machine: int = psutil.virtual_memory().total
    return min([machine, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """The limits of the Linux control groups around this process, of version 1 or 2."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mounted = Path("/sys/fs/cgroup", controllers)
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        # In a container the path can be that of a group whose files are seen at the root.
        groups = [mounted / path.lstrip("/"), mounted]
        for group in {*groups, *groups[0].parents}:
            if (text := _text(group / file).strip()).isdigit():  # "max" is none
                yield int(text)


def _text(path: Path) -> str:
    """The text of a file, or nothing where there is no such file or it is not for us."""
    try:
        return path.read_text()
    except OSError:
        return ""
