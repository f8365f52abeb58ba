"""Hashes of weights: of files, remembered while a file is unchanged, and of memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ovtensor._disk import tolerated

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FileFingerprints", "hash_file", "hash_tensors"]

_BUFFER = 4 * 2**20  # bytes; larger ones leave the processor's cache
# A file written within the clock's resolution after it was hashed looks unchanged: so what is
# this young is not remembered. The coarsest clock is FAT's, two seconds.
_SETTLED = 2.0
_MOST_REMEMBERED = 1000
_MOST_BYTES = 2**16  # of a record
_RECORD = re.compile(r"[0-9a-f]+-[0-9a-f]+\.json(\.[0-9a-f]{8})?")  # the last is one half-written
_FIELDS = {"device", "inode", "size", "mtime_ns", "ctime_ns", "path", "xxh3_128"}


def hash_file(path: Path) -> str:
    """Return the XXH3 hash, 128 bits in hexadecimal digits, of a file's bytes."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_BUFFER))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def hash_tensors(tensors: Iterable[tuple[str, Any]]) -> str:
    """Return the hash of names, element types, shapes and bytes of tensors, in their order.

    The memory is read where it is; only a tensor whose elements do not follow each other is
    copied, one at a time.

    Raises
    ------
    DatalessTensorError
        If a tensor has no values.
    """
    import numpy as np  # here, so that `ovtensor cache list` is quick

    from ovtensor.tensors.registry import host, read

    digest = xxhash.xxh3_128()
    for name, tensor in tensors:
        found = host(read(tensor))
        _separate(digest, name, found.element.name, list(found.bits.shape), found.mask is None)
        for array in (found.bits, found.mask):
            if array is not None:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _separate(digest: Any, *header: Any) -> None:
    """Hash what stands before bytes, in a form that says where it ends."""
    text = json.dumps(header).encode()
    digest.update(len(text).to_bytes(8, "little") + text)


class FileFingerprints:
    """Hashes of files, remembered in a folder by what the system says about each file.

    A file counts as unchanged while device, inode, size and both times, of its content and of its
    inode, are the same to the nanosecond. No program can set the second one back; on Windows it
    is the time of creation, and there a file rewritten with its old size and time of change goes
    unseen. So does, everywhere, what is written through a memory map to a page that is not on disk
    since it was written to before: that moves no time.

    Parameters
    ----------
    folder : Path or None
        Where; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def of_files(self, files: Iterable[str | os.PathLike[str]]) -> str:
        """Return the hash of names and contents of files, in their order; links are followed.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        digest = xxhash.xxh3_128()
        for file in files:
            _separate(digest, Path(file).name, self._of_file(Path(file).resolve()))
        return digest.hexdigest()

    def _of_file(self, path: Path) -> str:
        if self._folder is None:
            return hash_file(path)
        before = _identity(path)
        record = self._folder / _record_name(before)
        known = _recall(record) or {}
        if before.items() <= known.items():
            return str(known["xxh3_128"])
        checksum = hash_file(path)
        settled = time.time() - max(before["mtime_ns"], before["ctime_ns"]) / 1e9 > _SETTLED
        if settled and _identity(path) == before:
            # What cannot be remembered is hashed again the next time, and that is all.
            with tolerated("a file's hash is not remembered"):
                if not os.path.lexists(record) or _is_ours(record):
                    _write(record, {**before, "path": str(path), "xxh3_128": checksum})
                self.forget(keep=_MOST_REMEMBERED)
        return checksum

    def forget(self, keep: int) -> None:
        """Remove all but the `keep` records that were written last; what else is there stays.

        Raises
        ------
        OSError
            If one cannot be removed.
        """
        if self._folder is None or self._folder.is_symlink() or not self._folder.is_dir():
            return
        written = {}
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                if _RECORD.fullmatch(path.name):
                    written[path] = path.lstat().st_mtime_ns
        for path in sorted(written, key=lambda path: -written[path])[keep:]:
            with contextlib.suppress(FileNotFoundError):
                if _is_ours(path):
                    path.unlink()


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _record_name(identity: dict[str, int]) -> str:
    return f"{identity['device']:x}-{identity['inode']:x}.json"


def _write(record: Path, fields: dict[str, Any]) -> None:
    part = record.with_name(f"{record.name}.{os.urandom(4).hex()}")
    try:
        part.write_text(json.dumps(fields, indent=1), encoding="utf-8")
        part.replace(record)
    finally:
        part.unlink(missing_ok=True)


def _recall(record: Path) -> dict[str, Any] | None:
    """What a record says; None if it is not certainly one of ours."""
    try:
        status = record.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            return None
        known = json.loads(record.read_text(encoding="utf-8"))
        named = _record_name(known)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    ours = known.keys() == _FIELDS and record.name.startswith(named)
    return known if ours and re.fullmatch("[0-9a-f]{32}", str(known["xxh3_128"])) else None


def _is_ours(record: Path) -> bool:
    """Tell whether a file is a record, or the empty beginning of one."""
    status = record.lstat()
    begun = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return begun or _recall(record) is not None
