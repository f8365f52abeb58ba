"""How an entry is opened: found, compared with its checksums, built, or thrown away."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ovtensor._disk import disk_failure, tolerated
from ovtensor.cache.inventory import prune
from ovtensor.cache.manifest import NAME, BrokenEntryError, Manifest
from ovtensor.cache.misses import reason_of_miss
from ovtensor.cache.store import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ovtensor.cache.folder import CacheFolder
    from ovtensor.cache.locks import Hold

__all__ = ["Entries", "FolderError"]

_log = logging.getLogger("ovtensor")


class FolderError(Exception):
    """The cache's folder does not do what a cache needs; the cause says what. Never leaves it."""


class Entries:
    """Opens the entries of a folder, by keys that somebody else makes.

    Parameters
    ----------
    folder : CacheFolder
        Where they are.
    max_bytes : int
        What they may take together.
    warn : callable
        Called with what was found wrong with one.
    """

    def __init__(self, folder: CacheFolder, max_bytes: int, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._warn = warn
        self._sweeping = threading.Lock()
        self._swept = False
        self._checked: dict[str, Any] = {}  # key -> what its files were when they were compared

    def open(
        self,
        key: str,
        fields: dict[str, Any],
        build: Callable[[Path], None],
        base: Entry | None,
        label: str,
    ) -> Entry:
        """Return an entry, built if it is not there or broken.

        Raises
        ------
        FolderError
            If that is not possible in this folder. Nothing is left behind then.
        """
        broken = ""
        while True:
            with contextlib.ExitStack() as claim:
                with contextlib.ExitStack() as locked:
                    with _folder_errors():
                        self._prepare()
                        if base is not None:
                            with self._folder.locked(base.key):
                                self._lease(claim, base.key)
                        locked.enter_context(self._folder.locked(key))
                        lease = self._lease(claim, key)
                        if broken:  # unless somebody else has made it anew meanwhile
                            broken = self._throw_broken_away(key)
                        found = os.path.lexists(self._folder.entry(key)) and not broken
                    if not found:
                        self._tell_miss(key, fields, label, broken)
                        manifest = self._build(lease, key, fields, build, label)
                        return self._entry(manifest, base, claim.pop_all(), hit=False)
                # From here on the lease keeps it, and others may look at it at the same time.
                try:
                    manifest = self._verified(key)
                except BrokenEntryError as error:
                    broken = str(error)
                else:
                    return self._entry(manifest, base, claim.pop_all(), hit=True)

    def find(self, key: str, base: Entry | None) -> Entry | None:
        """Return an entry that is there and sound, without waiting for anybody or a warning."""
        try:
            with contextlib.ExitStack() as claim:
                self._prepare()  # which holds locks, and so would be in the way of a thread of ours
                for claimed in (key,) if base is None else (base.key, key):
                    if (lease := self._folder.lease_at_once(claimed)) is None:
                        return None
                    claim.callback(self._folder.end, lease)
                return self._entry(self._verified(key), base, claim.pop_all(), hit=True)
        except (OSError, BrokenEntryError) as error:
            _log.debug("the cache has nothing at once for %s: %s", key, error)
            return None

    def _prepare(self) -> None:
        self._folder.make()
        with self._sweeping:
            if not self._swept:
                self._folder.sweep()
                self._swept = True

    def _lease(self, claim: contextlib.ExitStack, key: str) -> Hold:
        lease = self._folder.lease(key)
        claim.callback(self._folder.end, lease)
        return lease

    def _tell_miss(self, key: str, fields: dict[str, Any], label: str, broken: str) -> None:
        if _log.isEnabledFor(logging.INFO):
            reason = (
                f"the entry was broken: {broken}"
                if broken
                else reason_of_miss(self._folder, fields)
            )
            _log.info("cache miss: %s: %s", _called(key, label), reason)

    def _build(
        self,
        lease: Hold,
        key: str,
        fields: dict[str, Any],
        build: Callable[[Path], None],
        label: str,
    ) -> Manifest:
        """Write an entry; what is half-written when this raises goes with the lease."""
        with _folder_errors():
            self._folder.in_use(key)  # what builders left who were killed goes
            part = self._folder.part(lease)
            part.mkdir(mode=0o700)
        try:
            build(part)
        except Exception as error:
            if (failure := disk_failure(error)) is None:
                raise
            raise FolderError from failure
        with _folder_errors():
            manifest = Manifest.of(part, key, fields, label)
            manifest.write(part)
            self._folder.publish(part, key)
        self._checked[key] = self._state(key)
        if manifest.size > self._max_bytes:
            self._warn(
                f"{label or key} takes {manifest.size} bytes, and max_bytes is {self._max_bytes}: "
                f"so it goes as soon as it is closed"
            )
        return manifest

    def _verified(self, key: str) -> Manifest:
        folder = self._folder.entry(key)
        manifest = Manifest.read(folder)
        state = manifest.state(folder)
        if self._checked.get(key) != state:
            manifest.check(folder)
            self._checked[key] = state
        return manifest

    def _state(self, key: str) -> Any:
        """Tell the files of an entry from those that come to lie there later."""
        folder = self._folder.entry(key)
        try:
            return Manifest.read(folder).state(folder)
        except BrokenEntryError:
            return None

    def _entry(
        self, manifest: Manifest, base: Entry | None, claim: contextlib.ExitStack, *, hit: bool
    ) -> Entry:
        key, state = manifest.key, self._state(manifest.key)
        if hit:
            _log.info("cache hit: %s", _called(key, manifest.label))
        self._mark_used(key)
        if base is not None:
            self._mark_used(base.key)  # later, so that it is not the one that goes first
        if not hit:
            self._bound()

        def release() -> None:
            claim.close()
            self._bound()

        def reject(reason: str) -> None:
            try:
                with self._folder.locked(key):
                    if self._state(key) != state:
                        return  # this one is gone already
                    self._folder.take_away(key)
            except OSError as error:
                reason = f"{reason}; but it cannot be removed: {error}"
            self._warn(f"{manifest.label or key} is to be made anew: {reason}")

        folder = self._folder.entry(key)
        return Entry(
            folder, hit=hit, key=key, content=manifest.content, release=release, reject=reject
        )

    def _mark_used(self, key: str) -> None:
        now = time.time_ns()  # the system's own is coarse: two entries could have the same
        with tolerated("the time of last use of an entry stays as it is"):
            os.utime(self._folder.entry(key) / NAME, ns=(now, now))

    def _bound(self) -> None:
        with tolerated("the cache is not pruned"):
            prune(self._folder, self._max_bytes)

    def _throw_broken_away(self, key: str) -> str:
        """Say what is wrong with an entry, if it is there, and remove it even from under users."""
        if not os.path.lexists(self._folder.entry(key)):
            return ""
        try:
            self._verified(key)
        except BrokenEntryError as error:
            self._folder.take_away(key)
            self._warn(f"the entry {key} is to be made anew: {error}")
            return str(error)
        return ""


def _called(key: str, label: str) -> str:
    return f"{label} ({key[:12]})" if label else key[:12]


@contextlib.contextmanager
def _folder_errors() -> Iterator[None]:
    """Tell the failures of the cache's folder from those of what is built."""
    try:
        yield
    except OSError as error:
        raise FolderError from error
