"""What goes with large files: where temporary ones belong, how they go away, when a disk failed."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "checked_path",
    "disk_failure",
    "open_to_others",
    "remove",
    "temporary_folder",
    "tolerated",
]

_log = logging.getLogger("ovtensor")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def temporary_folder() -> Path:
    """Return the folder for large temporary files: on disk where the system has one that is.

    ``/tmp`` often is in memory (tmpfs), where a file of weights frees nothing.
    """
    on_disk = Path("/var/tmp")
    writable = on_disk.is_dir() and os.access(on_disk, os.W_OK)
    return on_disk if writable else Path(tempfile.gettempdir())


def remove(path: Path) -> None:
    """Remove whatever is at `path`, as far as the system allows; a link goes, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # as with folders: on Windows not while it is open
            path.unlink(missing_ok=True)
    if os.path.lexists(path):
        _log.debug("%s cannot be removed now", path)


@contextlib.contextmanager
def tolerated(consequence: str) -> Iterator[None]:
    """Go on where the system refuses what can be done without; a line of level DEBUG says so."""
    try:
        yield
    except OSError as error:
        _log.debug("%s: %s", consequence, error)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` expanded; raises `ValueError` if no file can have it."""
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:  # as for ~nobody/x
        raise ValueError(str(error)) from None
    if b"\0" in os.fsencode(found):
        raise ValueError("it has a character of value 0")
    try:
        found.lstat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            raise ValueError(error.strerror) from None
    return found


def open_to_others(status: os.stat_result, *, but_for_sticky: bool = False) -> str:
    """Why other users could have written to a folder; empty if not, or where modes do not tell."""
    if not hasattr(os, "geteuid"):  # Windows
        return ""
    if status.st_uid != os.geteuid():
        return f"it belongs to the user {status.st_uid}, not to {os.geteuid()}"
    sticky = but_for_sticky and status.st_mode & stat.S_ISVTX
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        return f"other users may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def disk_failure(error: BaseException) -> BaseException | None:
    """Find in an error, or what caused it, that nothing more could be written where it was tried.

    Returns
    -------
    BaseException or None
        The one that says so; None if it is another kind of error, which would come up anywhere.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return cause
        # What OpenVINO raises when a stream of C++ cannot write; every standard library says so.
        if isinstance(cause, RuntimeError) and "iostream" in str(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
