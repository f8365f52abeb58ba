"""Locks of the operating system, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Hold", "held", "is_lock", "try_hold"]


class Hold:
    """A lock file that this process holds; several threads may share it."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path = path
        self._lock = lock
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    @property
    def is_held(self) -> bool:
        """Whether it is this process's; a forked copy of the process holds nothing."""
        return os.getpid() == self._process

    def release(self, *, and_remove: bool = False) -> None:
        """Give the lock up, if this process holds it."""
        if not self.is_held:
            return
        # Removed while it is held, where the system can: whoever waits for it then finds that its
        # file has no name any more and starts over (filelock looks), so no two of them hold it.
        if and_remove:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._lock.release()
        if and_remove and os.name == "nt":
            with contextlib.suppress(OSError):
                self._path.unlink()


def is_lock(path: Path) -> bool:
    """Tell whether a file can be a lock of ours, which are plain and empty, or can become one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _lock(path: Path) -> FileLock:
    if not is_lock(path):
        raise FileExistsError(errno.EEXIST, "something that is no lock has its name", str(path))
    # A soft lock, filelock's way where the file system has none, outlives a killed process.
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


def try_hold(path: Path) -> Hold | None:
    """Take the lock at once, or return None if somebody has it.

    Raises
    ------
    OSError
        If the file cannot be written or the file system has no locks.
    """
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return Hold(path, lock)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it; raises `OSError` as :func:`try_hold` does."""
    with _lock(path):
        yield
