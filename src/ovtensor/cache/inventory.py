"""What is in a cache's folder, whether it is sound, and what goes when it is too much."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any

from ovtensor._disk import tolerated
from ovtensor.cache.folder import content_of
from ovtensor.cache.manifest import NAME, BrokenEntryError, Manifest, names_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ovtensor.cache.folder import CacheFolder

__all__ = ["CachedModel", "inventory", "problems", "prune"]

_log = logging.getLogger("ovtensor")


@dataclasses.dataclass(frozen=True, slots=True)
class CachedModel:
    """What an entry of a cache is.

    Attributes
    ----------
    key : str
        The name of its folder.
    label : str
        What it is, for people.
    key_fields : dict
        Its cache-key fields: everything that its content follows from.
    size : int
        Bytes of its files; 0 if nothing proves that they are the cache's, and then they stay.
    created : str
        Time in ISO 8601, UTC; empty if that cannot be read.
    last_used : float
        Time in seconds since the epoch.
    in_use : bool
        Whether a living process uses it.
    problem : str or None
        What is wrong with its manifest.
    """

    key: str
    label: str
    key_fields: dict[str, Any]
    size: int
    created: str
    last_used: float
    in_use: bool
    problem: str | None = None


def inventory(folder: CacheFolder) -> list[CachedModel]:
    """List the entries, the least recently used first."""
    folder.check()
    found = [_describe(folder, key) for key in folder.keys()]  # noqa: SIM118
    return sorted((entry for entry in found if entry), key=lambda entry: entry.last_used)


def problems(folder: CacheFolder) -> dict[str, str]:
    """Find what is wrong with entries, by their keys; reads every byte."""
    folder.check()
    found = {}
    for key in folder.keys():  # noqa: SIM118
        path = folder.entry(key)
        try:
            Manifest.read(path).check(path)
        except BrokenEntryError as error:
            if os.path.lexists(path):  # else it was taken away meanwhile
                found[key] = str(error)
    return found


def prune(folder: CacheFolder, max_bytes: int) -> list[CachedModel]:
    """Remove what was used least recently and is not in use, until the rest is small enough."""
    # Each entry that is closed leads here: so manifests and locks wait until something has to go.
    folder.check()
    if _total(folder) <= max_bytes:
        return []
    entries = [entry for entry in inventory(folder) if entry.size]
    if entries:
        folder.make()  # a folder may be missing by which they are taken away
    total = sum(entry.size for entry in entries)
    removed: list[CachedModel] = []
    failure: OSError | None = None
    for entry in entries:
        if total <= max_bytes:
            break
        try:
            gone = folder.take_away_unused(entry.key)
        except OSError as error:
            failure = error
        else:
            if gone:
                total -= entry.size
                removed.append(entry)
                what = entry.label or entry.key
                _log.debug("removed %s, used least recently, for max_bytes is %d", what, max_bytes)
    if failure is not None:
        raise failure
    return removed


def _describe(folder: CacheFolder, key: str) -> CachedModel | None:
    path = folder.entry(key)
    manifest, problem = None, None
    try:
        try:
            manifest = Manifest.read(path)
        except BrokenEntryError as error:
            problem = str(error)
        return CachedModel(
            key=key,
            label=manifest.label if manifest else "",
            key_fields=manifest.key_fields if manifest else {},
            size=_bytes(path / name for name in names_of(path)),
            created=manifest.created if manifest else "",
            last_used=(path / NAME if manifest else path).lstat().st_mtime,
            in_use=folder.in_use(key),
            problem=problem,
        )
    except FileNotFoundError:  # it was taken away meanwhile
        return None


def _total(folder: CacheFolder) -> int:
    """Bytes of all files that can be of entries, without a look into manifests."""
    total = 0
    for key in folder.keys():  # noqa: SIM118
        with tolerated("an entry is not counted"):
            total += _bytes(content_of(folder.entry(key)))
    return total


def _bytes(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total
