"""How much memory there is, and when freed memory is looked for and given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile, where very many objects are made that stay.

    Looking through those of torch and diffusers again and again took 0.4 of 4.6 seconds while they
    were imported, and 0.2 of 1.6 while a pipeline was opened. Afterwards they count as old: the
    next collection, of what is young, would have gone through all of them, which took 0.1 seconds
    each time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # else there are some that their owner keeps frozen
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        gc.enable()


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None


@functools.cache
def memory_limit() -> int:
    """Bytes that this process can have: the machine's, or fewer if its control group says so."""
    import psutil

    machine: int = psutil.virtual_memory().total
    return min([machine, *_group_limits()])


def takes_much(size: int) -> bool:
    """Whether ``size`` bytes are over a fifth of the memory that this process can have."""
    return size > memory_limit() / 5


def memory_is_scarce() -> bool:
    """Whether this process has over a third of the memory that it can have, mapped files included.

    The rest is for other programs, the system's copies of files, and what is computed next.
    """
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident > memory_limit() / 3


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
