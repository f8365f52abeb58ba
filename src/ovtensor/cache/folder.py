"""The folder of a cache: where everything lies, and the steps that are whole or not taken.

::

    entries/KEY/       a whole entry: its files and manifest.json, whose time is that of last use
    writing/KEY.RANDOM what is being written, or taken away, by the holder of the lock
    locks/KEY          held while an entry is looked up, written or taken away
    leases/KEY.RANDOM  each held by a process that uses the entry
    files/             hashes of model files, to be had without reading these again

An entry comes and goes by one rename. Leases are made and judged by who holds the entry's lock;
both kinds end with their process, so that a killed one leaves files but no claims.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from ovtensor._disk import remove
from ovtensor.cache.locks import Hold, held, try_hold
from ovtensor.cache.manifest import is_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["CacheFolder"]

_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This is a cache that ovtensor can make anew; backups may leave it out (https://bford.info/cachedir).
"""


class CacheFolder:
    """Steps on a cache's folder; each raises `OSError` if the system does not let it be taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = path / "entries"
        self._writing = path / "writing"
        self._locks = path / "locks"
        self._leases = path / "leases"
        self.files = path / "files"

    def make(self) -> None:
        """Make the folder, for its owner alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, *self._subfolders()):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not (tag := self.path / "CACHEDIR.TAG").exists():
            tag.write_text(_TAG, encoding="ascii")

    def _subfolders(self) -> tuple[Path, ...]:
        return self._entries, self._writing, self._locks, self._leases, self.files

    def entry(self, key: str) -> Path:
        """Where an entry lies, if it is there."""
        return self._entries / key

    def keys(self) -> list[str]:
        """The keys of the entries that are there."""
        try:
            return sorted(path.name for path in self._entries.iterdir() if is_key(path.name))
        except FileNotFoundError:
            return []

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
        alive = [not self._forget_lease(path) for path in self._leases.glob(f"{key}.*")]
        return any(alive)

    @staticmethod
    def _forget_lease(path: Path) -> bool:
        """Remove a lease if its process is gone."""
        if (hold := try_hold(path)) is None:
            return False
        hold.release(and_remove=True)
        return True

    def new_part(self, key: str) -> Path:
        """Make an empty folder to write an entry into. The caller holds its lock.

        What builders left who were killed meanwhile goes.
        """
        self.in_use(key)
        for left in self._writing.glob(f"{key}.*"):
            remove(left)
        part = self._writing / f"{key}.{os.urandom(8).hex()}"
        part.mkdir(mode=0o700)
        return part

    def publish(self, part: Path, key: str) -> None:
        """Make what was written the entry. The caller holds its lock."""
        part.rename(self.entry(key))

    def take_away(self, key: str) -> None:
        """Remove an entry. The caller holds its lock."""
        trash = self._writing / f"{key}.{os.urandom(8).hex()}"
        with contextlib.suppress(FileNotFoundError):
            self.entry(key).rename(trash)
        remove(trash)

    def take_away_unused(self, key: str) -> bool:
        """Remove an entry unless somebody uses it or holds its lock; tell whether it is gone."""
        if (hold := try_hold(self._locks / key)) is None:
            return False
        gone = False
        try:
            if not self.in_use(key):
                self.take_away(key)
                gone = True
        finally:
            hold.release(and_remove=gone)
        return gone

    def sweep(self) -> None:
        """Remove what dead processes left half-written, and their leases."""
        left = [*self._writing.iterdir(), *self._leases.iterdir()]
        for key in {path.name.partition(".")[0] for path in left}:
            if is_key(key) and (hold := try_hold(self._locks / key)):
                try:
                    self.in_use(key)
                    for part in self._writing.glob(f"{key}.*"):
                        remove(part)
                finally:
                    hold.release()
