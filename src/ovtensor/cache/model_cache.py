"""The cache of converted and compiled models: found by content, checked, bounded, shared."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import platformdirs

from ovtensor._disk import checked_path, tolerated
from ovtensor.cache.entries import Entries, FolderError
from ovtensor.cache.fingerprints import FileFingerprints, hash_tensors
from ovtensor.cache.folder import CacheFolder
from ovtensor.cache.inventory import CachedModel, inventory, problems, prune
from ovtensor.cache.manifest import key_of
from ovtensor.cache.store import Entry, ScratchStore
from ovtensor.errors import CacheWarning, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["ModelCache"]


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
        if path == "":
            raise InputError("a cache is kept in a folder, which an empty path does not name")
        if path is None:
            path = os.environ.get("OVTENSOR_CACHE_DIR") or platformdirs.user_cache_path(
                "ovtensor", appauthor=False
            )
        try:
            self.path = checked_path(path).absolute()
        except TypeError:
            raise InputError(
                f"a cache is kept in a folder, which a {type(path).__qualname__} does not name"
            ) from None
        except ValueError as error:
            raise InputError(f"{str(path)!r} cannot be the folder of a cache: {error}") from None
        self.max_bytes = max_bytes
        self._folder = CacheFolder(self.path)
        self._fingerprints = FileFingerprints(self._folder.files)
        self._entries = Entries(self._folder, max_bytes, self._warn)
        self._warned: set[int | None] = set()

    def __repr__(self) -> str:
        return f"ModelCache({str(self.path)!r}, max_bytes={self.max_bytes})"

    def open(
        self,
        fields: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        base: Entry | None = None,
        label: str = "",
    ) -> Entry:
        """Return the entry of some cache-key fields, built if it is not there.

        Parameters
        ----------
        fields : mapping
            Everything that can change a byte of the entry, as JSON has it.
        build : callable
            Writes the files into an empty folder, which it is given. What it raises passes
            through, and nothing is left behind. It is called a second time, with a temporary
            folder, if the cache's disk fails under it.
        base : Entry, optional
            An open entry that this one is good for only together with: its key and every byte of
            it belong to the fields, and it stays as long as this one is open.
        label : str
            What it is, for people; not one of the fields.

        Returns
        -------
        Entry
            To be closed. Its files must not be written to.

        Raises
        ------
        InputError
            If the fields are not what JSON can say exactly or have one of the name ``base``, or if
            `base` is closed, or nothing was built.
        """
        if base is not None and base.closed:
            raise InputError("the base of an entry has to be open; it was closed")
        if base is not None and not base.key:  # it is not in the cache, so this could not be found
            return ScratchStore().open(fields, build)
        whole = _with_base(fields, base)
        key = key_of(whole)
        try:
            return self._entries.open(key, whole, build, base, label)
        except FolderError as failure:
            self._warn_of_folder(failure.__cause__)
        return ScratchStore().open(fields, build)

    def find(self, fields: Mapping[str, Any], *, base: Entry | None = None) -> Entry | None:
        """Return the entry of some cache-key fields, or None if that takes more than looking.

        Nothing is built or mended or waited for, and nothing is warned of: :meth:`open` is for
        that.

        Parameters
        ----------
        fields, base
            See :meth:`open`.

        Returns
        -------
        Entry or None
            To be closed. None if there is no such entry, if it is broken, if somebody is at it
            right now, or if the folder cannot be used.
        """
        if base is not None and (base.closed or not base.key):
            return None
        return self._entries.find(key_of(_with_base(fields, base)), base)

    def fingerprint_files(self, files: Iterable[str | os.PathLike[str]]) -> str:
        """Return a hash of files' names and bytes, in the order of the files.

        An unchanged file, told by device, inode, size and times in nanoseconds, is not read
        again. Links are followed.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        known = FileFingerprints(None)
        with tolerated("no file's hash is remembered"):  # `open` will warn of it
            self._folder.make()
            known = self._fingerprints
        return known.of_files(files)

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
            If the folder is there and cannot be read, or is not this user's alone.
        """
        return inventory(self._folder)

    def verify(self) -> dict[str, str]:
        """Compare every byte of every entry with its checksums; nothing is changed.

        Returns
        -------
        dict
            Keys of broken entries, and what is wrong with each. They are made anew when they are
            next needed.

        Raises
        ------
        OSError
            As :meth:`entries` does.
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
            What was removed: nothing that a living process uses, or that is not provably the
            cache's own.

        Raises
        ------
        OSError
            If the folder cannot be read, is not this user's alone, or an entry cannot be removed;
            the others are.
        """
        return prune(self._folder, self.max_bytes if max_bytes is None else max_bytes)

    def clear(self) -> list[CachedModel]:
        """Remove every entry that no living process uses, and all remembered hashes of files.

        Returns
        -------
        list of CachedModel
            What was removed; see :meth:`prune`.

        Raises
        ------
        OSError
            As :meth:`prune` does.
        """
        removed = self.prune(0)
        self._fingerprints.forget(keep=0)
        return removed

    def _warn_of_folder(self, error: BaseException | None) -> None:
        number = getattr(error, "errno", None)
        if number not in self._warned:
            self._warned.add(number)
            self._warn(f"it cannot be used, so work goes on without it: {error}")

    def _warn(self, message: str) -> None:
        warnings.warn(f"model cache {str(self.path)!r}: {message}", CacheWarning, stacklevel=4)


def _with_base(fields: Mapping[str, Any], base: Entry | None) -> dict[str, Any]:
    if "base" in fields:
        raise InputError('the field "base" is what the argument `base` says; leave it out')
    if base is None:
        return dict(fields)
    return {**fields, "base": {"key": base.key, "content": base.content}}
