"""The cache of converted and compiled models: found by content, checked, bounded, shared."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ovtensor._disk import remove
from ovtensor.cache.fingerprints import FileFingerprints, hash_tensors
from ovtensor.cache.folder import CacheFolder
from ovtensor.cache.manifest import NAME, BrokenEntryError, Manifest, key_of
from ovtensor.cache.store import Entry, ScratchStore, Store
from ovtensor.errors import CacheWarning, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ovtensor.cache.locks import Hold

__all__ = ["CachedModel", "ModelCache", "store_of"]

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@dataclasses.dataclass(frozen=True, slots=True)
class CachedModel:
    """What an entry of a cache is.

    Attributes
    ----------
    key : str
        The name of its folder.
    label : str
        What it is, for people.
    facts : dict
        What it was made from.
    size : int
        Bytes of all its files.
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
    facts: dict[str, Any]
    size: int
    created: str
    last_used: float
    in_use: bool
    problem: str | None = None


class _FolderError(Exception):
    """The cache's folder does not do what a cache needs; the cause says what. Never leaves here."""


class ModelCache:
    """A folder of converted and compiled models.

    Parameters
    ----------
    path : path, optional
        The folder; it is made when it is first needed, for its owner alone. By default that of
        the environment variable ``OVTENSOR_CACHE_DIR``, or else the platform's folder for caches.
    max_bytes : int
        Bytes that the entries may take. Beyond it those go that were used least recently, except
        the ones that a living process uses: so this is exceeded while one session needs more.

    Raises
    ------
    InputError
        If `max_bytes` is no positive integer or `path` no path.

    Notes
    -----
    Several threads and processes may use one folder. An entry is found by everything that can
    change a number in it, comes whole or not at all, and every byte of it is compared with its
    checksums when a cache object first opens it. What turns out to be broken is made anew, and
    where the folder cannot be used, work goes on without it, each with one
    :class:`~ovtensor.errors.CacheWarning`.

    Examples
    --------
    >>> import ovtensor
    >>> cache = ovtensor.ModelCache("~/models/cache", max_bytes=50 * 2**30)
    >>> cache.max_bytes
    53687091200
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = 20 * 2**30
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes <= 0:
            raise InputError(f"max_bytes is a positive number of bytes, not {max_bytes!r}")
        if path is None:
            path = os.environ.get("OVTENSOR_CACHE_DIR") or platformdirs.user_cache_path(
                "ovtensor", appauthor=False
            )
        try:
            self.path = Path(path).expanduser().absolute()
        except TypeError:
            raise InputError(
                f"a cache is kept in a folder, which {type(path).__qualname__} does not name"
            ) from None
        self.max_bytes = max_bytes
        self._folder = CacheFolder(self.path)
        self._fingerprints = FileFingerprints(self._folder.files)
        self._changing = threading.Lock()
        self._swept = False
        self._checked: dict[str, Any] = {}  # key -> what its files were when they were compared
        self._warned: set[int | None] = set()

    def __repr__(self) -> str:
        return f"ModelCache({str(self.path)!r}, max_bytes={self.max_bytes})"

    # What a session asks for

    def open(
        self,
        facts: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        base: Entry | None = None,
        label: str = "",
    ) -> Entry:
        """Return the entry of some facts, built if it is not there: see :class:`Store`.

        Raises
        ------
        InputError
            If the facts are not what JSON can say exactly, or `base` is closed.
        """
        if base is not None and base.closed:
            raise InputError("the base of an entry has to be open; it was closed")
        if base is not None and not base.key:  # it is not in the cache, so this could not be found
            return ScratchStore().open(facts, build)
        whole = dict(facts)
        if base is not None:
            whole["base"] = {"key": base.key, "content": base.content}
        key = key_of(whole)
        try:
            return self._open(key, whole, build, base, label)
        except _FolderError as failure:
            self._warn_of_folder(failure.__cause__)
        return ScratchStore().open(facts, build)

    def fingerprint_files(self, files: Iterable[str | os.PathLike[str]]) -> str:
        """Return a hash of files' names and bytes, in the order of the files.

        An unchanged file, told by device, inode, size and times in nanoseconds, is not read
        again. Links are followed.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        with contextlib.suppress(OSError):
            self._folder.make()
        return self._fingerprints.of_files(files)

    def fingerprint_tensors(self, tensors: Iterable[tuple[str, Any]]) -> str:
        """Return a hash of tensors' names, element types, shapes and bytes, in their order.

        Raises
        ------
        DatalessTensorError
            If a tensor has no values.
        """
        return hash_tensors(tensors)

    def _open(
        self,
        key: str,
        facts: dict[str, Any],
        build: Callable[[Path], None],
        base: Entry | None,
        label: str,
    ) -> Entry:
        while True:
            with contextlib.ExitStack() as locked:
                with _folder_errors():
                    self._prepare()
                    leases = self._lease_base(base)
                    locked.enter_context(self._folder.locked(key))
                    found = os.path.lexists(self._folder.entry(key))
                    leases.append(self._folder.lease(key))
                try:
                    if not found:
                        manifest = self._build(key, facts, build, label)
                        return self._entry(manifest, leases, hit=False)
                except BaseException:
                    _release(leases)
                    raise
            # From here on the lease keeps it, and others may look at it at the same time.
            identity = self._identity(key)
            try:
                manifest = self._verified(key)
            except BrokenEntryError as error:
                _release(leases)
                with _folder_errors():
                    self._discard(key, identity, str(error))
                continue
            except BaseException:
                _release(leases)
                raise
            self._mark_used(key)
            if base is not None:
                self._mark_used(base.key)
            return self._entry(manifest, leases, hit=True)

    def _prepare(self) -> None:
        self._folder.make()
        with self._changing:
            first, self._swept = not self._swept, True
        if first:
            self._folder.sweep()

    def _lease_base(self, base: Entry | None) -> list[Hold]:
        if base is None:
            return []
        with self._folder.locked(base.key):
            return [self._folder.lease(base.key)]

    def _build(
        self, key: str, facts: dict[str, Any], build: Callable[[Path], None], label: str
    ) -> Manifest:
        with _folder_errors():
            part = self._folder.new_part(key)
        try:
            try:
                build(part)
            except Exception as error:
                if (failure := _disk_failure(error)) is None:
                    raise
                raise _FolderError from failure
            with _folder_errors():
                manifest = Manifest.of(part, key, facts, label)
                manifest.write(part)
                self._folder.publish(part, key)
        except BaseException:
            remove(part)
            raise
        self._note_checked(key, manifest)
        with contextlib.suppress(OSError):
            self.prune()
        return manifest

    def _entry(self, manifest: Manifest, leases: list[Hold], *, hit: bool) -> Entry:
        key, identity = manifest.key, self._identity(manifest.key)

        def release() -> None:
            _release(leases)
            with contextlib.suppress(OSError):
                self.prune()

        def reject(reason: str) -> None:
            try:
                self._discard(key, identity, reason)
            except OSError as error:
                self._warn_of_folder(error)

        folder = self._folder.entry(key)
        return Entry(
            folder, hit=hit, key=key, content=manifest.content, release=release, reject=reject
        )

    def _identity(self, key: str) -> tuple[int, int] | None:
        """Tell one entry from a later one of the same key."""
        try:
            status = self._folder.entry(key).lstat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _verified(self, key: str) -> Manifest:
        folder = self._folder.entry(key)
        manifest = Manifest.read(folder)
        identities = manifest.identities(folder)
        if self._checked.get(key) != identities:
            manifest.check(folder)
            self._note_checked(key, manifest)
        return manifest

    def _note_checked(self, key: str, manifest: Manifest) -> None:
        with contextlib.suppress(BrokenEntryError):
            self._checked[key] = manifest.identities(self._folder.entry(key))

    def _mark_used(self, key: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._folder.entry(key) / NAME)

    def _discard(self, key: str, identity: tuple[int, int] | None, reason: str) -> None:
        with self._folder.locked(key):
            if self._identity(key) != identity:
                return  # somebody else found it too
            self._folder.take_away(key)
        _warn(
            f"the entry {key} of the model cache {str(self.path)!r} is removed and made anew: "
            f"{reason}"
        )

    def _warn_of_folder(self, error: BaseException | None) -> None:
        number = getattr(error, "errno", None)
        with self._changing:
            known = number in self._warned
            self._warned.add(number)
        if not known:
            _warn(
                f"the model cache {str(self.path)!r} cannot be used ({error}), so work goes on "
                f"without it; give another folder or see `ovtensor cache where`"
            )

    # Upkeep

    def entries(self) -> list[CachedModel]:
        """List what is in the cache, the least recently used first.

        Raises
        ------
        OSError
            If the folder is there and cannot be read.
        """
        found = (self._describe(key) for key in self._folder.keys())  # noqa: SIM118
        return sorted((entry for entry in found if entry), key=lambda entry: entry.last_used)

    def _describe(self, key: str) -> CachedModel | None:
        folder = self._folder.entry(key)
        try:
            size = sum(path.lstat().st_size for path in _files(folder))
            try:
                manifest, problem = Manifest.read(folder), None
                last_used = (folder / NAME).lstat().st_mtime
            except BrokenEntryError as error:
                manifest, problem = None, str(error)
                last_used = folder.lstat().st_mtime
            in_use = self._folder.in_use(key)
        except FileNotFoundError:  # it was taken away meanwhile
            return None
        return CachedModel(
            key=key,
            label=manifest.label if manifest else "",
            facts=manifest.facts if manifest else {},
            size=size,
            created=manifest.created if manifest else "",
            last_used=last_used,
            in_use=in_use,
            problem=problem,
        )

    def verify(self) -> dict[str, str]:
        """Compare every byte of every entry with its checksums; nothing is changed.

        Returns
        -------
        dict
            Keys of broken entries, and what is wrong with each. They are made anew when they are
            next needed.
        """
        problems = {}
        for key in self._folder.keys():  # noqa: SIM118
            folder = self._folder.entry(key)
            try:
                Manifest.read(folder).check(folder)
            except BrokenEntryError as error:
                if os.path.lexists(folder):
                    problems[key] = str(error)
        return problems

    def prune(self, max_bytes: int | None = None) -> list[CachedModel]:
        """Remove the least recently used entries until the rest takes at most `max_bytes`.

        Parameters
        ----------
        max_bytes : int, optional
            By default the cache's own bound.

        Returns
        -------
        list of CachedModel
            What was removed. Entries that a living process uses are not.

        Raises
        ------
        OSError
            If the folder cannot be read or changed.
        """
        bound = self.max_bytes if max_bytes is None else max_bytes
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if total <= bound:
                break
            if self._folder.take_away_unused(entry.key):
                total -= entry.size
                removed.append(entry)
        self._fingerprints.forget_oldest()
        return removed

    def clear(self) -> list[CachedModel]:
        """Remove every entry that no living process uses, and all remembered hashes of files.

        Returns
        -------
        list of CachedModel
            What was removed.
        """
        removed = self.prune(0)
        self._fingerprints.forget_oldest(keep=0)
        return removed


def store_of(cache: bool | str | os.PathLike[str] | ModelCache | None) -> Store:
    """The store that a session's argument means.

    Raises
    ------
    InputError
        If it is none of a bool, a path, a `ModelCache` and None.
    """
    if cache is None or cache is False:
        return ScratchStore()
    if cache is True:
        return ModelCache()
    if isinstance(cache, ModelCache):
        return cache
    if isinstance(cache, str | os.PathLike):
        return ModelCache(cache)
    raise InputError(
        f"cache={cache!r} is no cache; give True, the path of a folder, or an ovtensor.ModelCache"
    )


@contextlib.contextmanager
def _folder_errors() -> Iterator[None]:
    """Tell the failures of the cache's folder from those of what is built."""
    try:
        yield
    except OSError as error:
        raise _FolderError from error


def _disk_failure(error: BaseException) -> BaseException | None:
    """Find in an error what says that nothing could be written here, and so perhaps elsewhere."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return cause
        # What OpenVINO raises when a stream of C++ cannot write; every standard library says so.
        if isinstance(cause, RuntimeError) and "iostream" in str(cause):
            return cause
        cause = cause.__cause__
    return None


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else [folder]


def _release(leases: list[Hold]) -> None:
    for lease in leases:
        lease.release(and_remove=True)


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=4)
