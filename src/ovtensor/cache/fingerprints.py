"""Hashes of weights: of files, remembered while a file is unchanged, and of memory."""

from __future__ import annotations

import json
import os
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
    unseen.
    """

    def __init__(self, folder: Path) -> None:
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
        before = _identity(path)
        note = self._folder / f"{before['device']:x}-{before['inode']:x}.json"
        if (known := _recall(note, before)) is not None:
            return known
        checksum = hash_file(path)
        settled = time.time() - max(before["mtime_ns"], before["ctime_ns"]) / 1e9 > _SETTLED
        if settled and _identity(path) == before:
            # What cannot be remembered is hashed again the next time, and that is all.
            with tolerated("a file's hash is not remembered"):
                self._remember(note, {**before, "path": str(path), "xxh3_128": checksum})
                self.forget(keep=_MOST_REMEMBERED)
        return checksum

    def _remember(self, note: Path, fields: dict[str, Any]) -> None:
        part = note.with_name(f"{note.name}.{os.urandom(4).hex()}")
        try:
            part.write_text(json.dumps(fields, indent=1), encoding="utf-8")
            part.replace(note)
        finally:
            part.unlink(missing_ok=True)

    def forget(self, keep: int) -> None:
        """Remove all but the `keep` notes that were written last."""
        with tolerated("old hashes of files stay"):
            notes = sorted(self._folder.iterdir(), key=lambda note: -note.lstat().st_mtime_ns)
            for note in notes[keep:]:
                note.unlink(missing_ok=True)


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _recall(note: Path, identity: dict[str, int]) -> str | None:
    try:
        fields = json.loads(note.read_text(encoding="utf-8"))
        checksum = fields.pop("xxh3_128")
        fields.pop("path")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return checksum if fields == identity and isinstance(checksum, str) else None
