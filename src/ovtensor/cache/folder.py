"""The folder of a cache: where everything lies, and the steps that are whole or not taken.

::

    entries/KEY/         a whole entry: its files and manifest.json, whose time is that of last use
    entries/KEY.RANDOM   what stood in the place of an entry and is not the cache's: kept aside
    writing/KEY.RANDOM/  what is being written, or taken away, under the lease of this name
    locks/KEY            held while an entry is looked up, written or taken away
    leases/KEY.RANDOM    each held by a process that uses the entry
    files/               hashes of model files, to be had without reading these again

An entry comes and goes by one rename. Leases are made and judged by who holds the entry's lock;
both kinds end with their process, so that a killed one leaves files but no claims.

Only what is provably the cache's own is removed: of an entry the files that its manifest names, in
``writing`` the folder that has the name of a lease, and of locks and leases empty files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING

from ovtensor._disk import open_to_others, remove
from ovtensor.cache.locks import Hold, held, is_lock, try_hold
from ovtensor.cache.manifest import NAME, is_key, names_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["CacheFolder", "content_of"]

_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This is a cache that ovtensor can make anew; backups may leave it out (https://bford.info/cachedir).
"""
_LEASE = re.compile(r"([0-9a-f]{32})\.[0-9a-f]{16}")


def content_of(folder: Path) -> list[Path]:
    """What lies in a folder of the cache: nothing if it is missing, or a link to somewhere else."""
    try:
        return [] if folder.is_symlink() else sorted(folder.iterdir())
    except FileNotFoundError:
        return []


class CacheFolder:
    """Steps on a cache's folder; each raises `OSError` if the system does not let it be taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = path / "entries"
        self._writing = path / "writing"
        self._locks = path / "locks"
        self._leases = path / "leases"
        self.files = path / "files"
        self._subfolders = (self._entries, self._writing, self._locks, self._leases, self.files)

    def make(self) -> None:
        """Make the folder, for its owner alone, and :meth:`check` it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, *self._subfolders):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder != self.path and folder.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "a link is none of its own", str(folder))
            self._demand_own(folder)
        with contextlib.suppress(FileExistsError), (self.path / "CACHEDIR.TAG").open("x") as tag:
            tag.write(_TAG)

    def check(self) -> None:
        """Raise `OSError` if somebody else could have written what is there."""
        for folder in (self.path, *self._subfolders):
            if folder == self.path or not folder.is_symlink():
                self._demand_own(folder)

    def _demand_own(self, folder: Path) -> None:
        try:
            status = folder.stat()
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        # In a folder with the sticky bit, as /tmp has it, nobody else can exchange those of ours.
        if reason := open_to_others(status, but_for_sticky=folder == self.path):
            raise PermissionError(errno.EPERM, f"{reason}; make it your own alone", str(folder))

    def entry(self, key: str) -> Path:
        """Where an entry lies, if it is there."""
        return self._entries / key

    def keys(self) -> list[str]:
        """The names in ``entries`` that can be keys."""
        return [path.name for path in content_of(self._entries) if is_key(path.name)]

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Wait for the lock of an entry and hold it."""
        with held(self._locks / key):
            yield

    def lease(self, key: str) -> Hold:
        """Claim an entry, so that it is not taken away. The caller holds its lock."""
        hold = None
        while hold is None:  # a name that nobody has
            hold = try_hold(self._leases / f"{key}.{os.urandom(8).hex()}")
        return hold

    def end(self, lease: Hold) -> None:
        """Give a claim up; what was written under it and not published goes."""
        if lease.is_held:
            remove(part := self.part(lease))
            # What cannot be removed yet needs its lease, by which it is known to be ours.
            lease.release(and_remove=not os.path.lexists(part))

    def lease_at_once(self, key: str) -> Hold | None:
        """Claim an entry that is there, unless somebody holds its lock."""
        if not os.path.lexists(self.entry(key)) or (hold := try_hold(self._locks / key)) is None:
            return None
        try:
            return self.lease(key) if os.path.lexists(self.entry(key)) else None
        finally:
            hold.release()

    def in_use(self, key: str) -> bool:
        """Tell whether a living process claims an entry; what dead ones left goes."""
        alive = [not self._end_dead(path) for path in self._lease_files(key)]
        return any(alive)

    def _lease_files(self, key: str = "") -> list[Path]:
        names = (path for path in content_of(self._leases) if path.name.startswith(key))
        return [path for path in names if _LEASE.fullmatch(path.name) and is_lock(path)]

    def _end_dead(self, path: Path) -> bool:
        """Give the claim of a dead process up for it; what cannot be judged counts as alive."""
        try:
            lease = try_hold(path)
        except OSError:
            return False
        if lease is not None:
            self.end(lease)
        return lease is not None

    def part(self, lease: Hold) -> Path:
        """Where the holder of a lease may write."""
        return self._writing / lease.name

    def publish(self, part: Path, key: str) -> None:
        """Make what was written the entry. The caller holds its lock."""
        entry = self.entry(key)
        with contextlib.suppress(FileNotFoundError):
            status = entry.lstat()
            if not stat.S_ISDIR(status.st_mode) or open_to_others(status):
                entry.rename(entry.with_name(f"{key}.{os.urandom(8).hex()}"))
        try:
            part.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
            # Files in it that nothing proves to be ours stay. Without its manifest it is no entry.
            for path in sorted(part.iterdir(), key=lambda path: path.name == NAME):
                path.replace(entry / path.name)
            part.rmdir()

    def take_away(self, key: str) -> bool:
        """Remove what is ours of an entry, and tell if there was any. The caller holds its lock."""
        entry = self.entry(key)
        ours = names_of(entry)
        if not ours:
            return False
        if all(path.name in ours and not _is_folder(path) for path in entry.iterdir()):
            lease = self.lease(key)
            try:
                entry.rename(self.part(lease))
            finally:
                self.end(lease)
        else:
            for name in sorted(ours, key=lambda name: name == NAME):  # the proof goes last
                if not _is_folder(entry / name):
                    (entry / name).unlink(missing_ok=True)
        return True

    def take_away_unused(self, key: str) -> bool:
        """Remove an entry unless somebody uses it or holds its lock; tell whether it is gone."""
        if (hold := try_hold(self._locks / key)) is None:
            return False
        gone = False
        try:
            gone = not self.in_use(key) and self.take_away(key)
        finally:
            hold.release(and_remove=gone)
        return gone

    def sweep(self) -> None:
        """Remove the leases of dead processes, and what they left half-written."""
        for path in self._lease_files():
            if hold := try_hold(self._locks / path.name.partition(".")[0]):
                try:
                    self._end_dead(path)
                finally:
                    hold.release()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
