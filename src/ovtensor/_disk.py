"""Where large files go that nobody is to keep, and how they go away."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["remove", "temporary_folder"]


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
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:  # as with folders: on Windows not while somebody has it open
        return
