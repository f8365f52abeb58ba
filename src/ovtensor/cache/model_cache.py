"""The cache of converted and compiled models: found by content, checked, bounded, shared."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ovtensor._disk import disk_failure, remove
from ovtensor.cache.fingerprints import FileFingerprints, hash_tensors
from ovtensor.cache.folder import CacheFolder
from ovtensor.cache.inventory import CachedModel, inventory, problems, prune
from ovtensor.cache.manifest import NAME, BrokenEntryError, Manifest, key_of
from ovtensor.cache.store import Entry, ScratchStore
from ovtensor.errors import CacheWarning, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["ModelCache"]


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
                f"a cache is kept in a folder, which a {type(path).__qualname__} does not name"
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

    def open(
        self,
        facts: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        base: Entry | None = None,
        label: str = "",
    ) -> Entry:
        """Return the entry of some facts, built if it is not there.

        Parameters
        ----------
        facts : mapping
            Everything that can change a byte of the entry, as JSON has it.
        build : callable
            Writes the files into an empty folder, which it is given. What it raises passes
            through, and nothing is left behind. It is called a second time, with a temporary
            folder, if the cache's disk fails under it.
        base : Entry, optional
            An open entry that this one is good for only together with: its key and every byte of
            it belong to the facts, and it stays as long as this one is open.
        label : str
            What it is, for people; not one of the facts.

        Returns
        -------
        Entry
            To be closed. Its files must not be written to.

        Raises
        ------
        InputError
            If the facts are not what JSON can say exactly or have one of the name ``base``, or if
            `base` is closed, or nothing was built.
        """
        if base is not None and base.closed:
            raise InputError("the base of an entry has to be open; it was closed")
        if base is not None and not base.key:  # it is not in the cache, so this could not be found
            return ScratchStore().open(facts, build)
        if "base" in facts:
            raise InputError('the fact "base" is what the argument `base` says; leave it out')
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
        with contextlib.suppress(OSError):  # then nothing is remembered; `open` will say why
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

    def entries(self) -> list[CachedModel]:
        """List what is in the cache, the least recently used first.

        Raises
        ------
        OSError
            If the folder is there and cannot be read.
        """
        return inventory(self._folder)

    def verify(self) -> dict[str, str]:
        """Compare every byte of every entry with its checksums; nothing is changed.

        Returns
        -------
        dict
            Keys of broken entries, and what is wrong with each. They are made anew when they are
            next needed.
        """
        return problems(self._folder)

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
        removed = prune(self._folder, self.max_bytes if max_bytes is None else max_bytes)
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

    def _open(
        self,
        key: str,
        facts: dict[str, Any],
        build: Callable[[Path], None],
        base: Entry | None,
        label: str,
    ) -> Entry:
        while True:
            with contextlib.ExitStack() as claim:
                with contextlib.ExitStack() as locked:
                    with _folder_errors():
                        self._prepare()
                        if base is not None:
                            with self._folder.locked(base.key):
                                self._lease(claim, base.key)
                        locked.enter_context(self._folder.locked(key))
                        self._lease(claim, key)
                        found = os.path.lexists(self._folder.entry(key))
                    if not found:
                        manifest = self._build(key, facts, build, label)
                        self._mark_used(base)
                        return self._entry(manifest, claim.pop_all(), hit=False)
                # From here on the lease keeps it, and others may look at it at the same time.
                identity = self._identity(key)
                try:
                    manifest = self._verified(key)
                except BrokenEntryError as error:
                    reason = str(error)
                else:
                    entry = self._entry(manifest, claim.pop_all(), hit=True)
                    self._mark_used(entry)
                    self._mark_used(base)
                    return entry
            with _folder_errors():
                self._discard(key, identity, reason)

    def _prepare(self) -> None:
        self._folder.make()
        with self._changing:
            first, self._swept = not self._swept, True
        if first:
            self._folder.sweep()

    def _lease(self, claim: contextlib.ExitStack, key: str) -> None:
        claim.callback(self._folder.lease(key).release, and_remove=True)

    def _build(
        self, key: str, facts: dict[str, Any], build: Callable[[Path], None], label: str
    ) -> Manifest:
        with _folder_errors():
            part = self._folder.new_part(key)
        try:
            try:
                build(part)
            except Exception as error:
                if (failure := disk_failure(error)) is None:
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
        if manifest.size > self.max_bytes:
            _warn(
                f"{label or key} takes {manifest.size} bytes, more than the model cache "
                f"{str(self.path)!r} may keep: it goes when it is closed; give a larger max_bytes"
            )
        with contextlib.suppress(OSError):
            self.prune()
        return manifest

    def _entry(self, manifest: Manifest, claim: contextlib.ExitStack, *, hit: bool) -> Entry:
        key, identity = manifest.key, self._identity(manifest.key)

        def release() -> None:
            claim.close()
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
            self._checked[key] = identities
        return manifest

    def _note_checked(self, key: str, manifest: Manifest) -> None:
        with contextlib.suppress(BrokenEntryError):
            self._checked[key] = manifest.identities(self._folder.entry(key))

    def _mark_used(self, entry: Entry | None) -> None:
        if entry is not None:
            with contextlib.suppress(OSError):
                os.utime(self._folder.entry(entry.key) / NAME)

    def _discard(self, key: str, identity: tuple[int, int] | None, reason: str) -> None:
        with self._folder.locked(key):
            if self._identity(key) != identity:
                return  # somebody else found it too
            self._folder.take_away(key)
        _warn(
            f"the entry {key} of the model cache {str(self.path)!r} was removed, to be made anew: "
            f"{reason}"
        )

    def _warn_of_folder(self, error: BaseException | None) -> None:
        number = getattr(error, "errno", None)
        with self._changing:
            known = number in self._warned
            self._warned.add(number)
        if not known:
            _warn(
                f"the model cache {str(self.path)!r} cannot be used, so work goes on without it: "
                f"{error}"
            )


@contextlib.contextmanager
def _folder_errors() -> Iterator[None]:
    """Tell the failures of the cache's folder from those of what is built."""
    try:
        yield
    except OSError as error:
        raise _FolderError from error


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=4)
