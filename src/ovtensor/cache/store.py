"""What a session asks of whatever keeps its files: a cache, or a folder that goes with it."""

from __future__ import annotations

import os
import re
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from ovtensor._disk import remove, temporary_folder, tolerated
from ovtensor.cache.locks import Hold, is_lock, try_hold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["Entry", "ScratchStore", "Store"]

_SCRATCH = "ovtensor-scratch-"


class Entry:
    """A folder of files that nobody changes or removes until it is closed.

    Attributes
    ----------
    folder : Path
        Holds exactly what was built. The files must not be written to.
    hit : bool
        Whether it was there already.
    key : str
        What it is found by.
    content : str
        The hash of its files' names and bytes; empty where nobody had to know.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hit: bool,
        key: str,
        content: str,
        release: Callable[[], None],
        reject: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.hit = hit
        self.key = key
        self.content = content
        # Runs once: when closed, or when forgotten, or at the latest when the process ends.
        self._release = weakref.finalize(self, release)
        self._reject = reject

    @property
    def closed(self) -> bool:
        """Whether the claim was given up."""
        return not self._release.alive

    def close(self) -> None:
        """Give up the claim; closing twice is fine.

        Whatever has the files open or mapped must be gone before, for on Windows nothing else
        lets them be removed.
        """
        self._release()

    def reject(self, reason: str) -> None:
        """Say that the files are of no use although every byte is as it was written.

        The store warns with `reason` and builds the entry anew when it is next opened. This one
        stays readable until it is closed.
        """
        self._reject(reason)

    def __enter__(self) -> Entry:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Store(Protocol):
    """Keeps what is expensive to make."""

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
            through, and nothing is left behind.
        base : Entry, optional
            An open entry of the same store that this one is good for only together with: its key
            and every byte of it belong to the fields, and it stays as long as this one is open.
        label : str
            What it is, for people; not one of the fields.
        """
        ...

    def find(self, fields: Mapping[str, Any], *, base: Entry | None = None) -> Entry | None:
        """Return the entry of these fields if it is there and nobody is at it, or None."""
        ...

    def fingerprint_files(self, files: Iterable[str | os.PathLike[str]]) -> str:
        """Return a hash of files' names and bytes for use among cache-key fields."""
        ...

    def fingerprint_tensors(self, tensors: Iterable[tuple[str, Any]]) -> str:
        """Return a hash of tensors' names, element types, shapes and bytes, for the same."""
        ...


class ScratchStore:
    """Builds every entry into a temporary folder, and removes it when it is closed.

    What a killed process left there is removed when the next one opens an entry.
    """

    def open(
        self,
        fields: Mapping[str, Any],  # noqa: ARG002 - nothing is found again
        build: Callable[[Path], None],
        *,
        base: Entry | None = None,  # noqa: ARG002
        label: str = "",  # noqa: ARG002
    ) -> Entry:
        """See :class:`Store`; raises `OSError` if nothing can be written."""
        parent = temporary_folder()
        _sweep(parent)
        while True:
            folder = parent / f"{_SCRATCH}{os.urandom(8).hex()}"
            if hold := try_hold(_lock_of(folder)):  # else somebody's sweep was at the new file
                break
        release = _Scratch(folder, hold)
        try:
            folder.mkdir(mode=0o700)
            build(folder)
        except BaseException:
            release()
            raise
        return Entry(
            folder, hit=False, key="", content="", release=release, reject=lambda _reason: None
        )

    def find(
        self,
        fields: Mapping[str, Any],  # noqa: ARG002
        *,
        base: Entry | None = None,  # noqa: ARG002
    ) -> Entry | None:
        """Return nothing: nothing is found again."""
        return None

    def fingerprint_files(self, files: Iterable[str | os.PathLike[str]]) -> str:  # noqa: ARG002
        """Return nothing: nothing is found again, so nothing has to be read."""
        return ""

    def fingerprint_tensors(self, tensors: Iterable[tuple[str, Any]]) -> str:  # noqa: ARG002
        """Return nothing: nothing is found again, so nothing has to be read."""
        return ""


class _Scratch:
    """Removes a temporary folder in the process that made it, and not in a forked copy of it."""

    def __init__(self, folder: Path, hold: Hold) -> None:
        self._folder, self._hold, self._process = folder, hold, os.getpid()

    def __call__(self) -> None:
        if os.getpid() == self._process:
            remove(self._folder)
            self._hold.release(and_remove=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that are gone: those whose lock nobody holds."""
    for path in parent.glob(f"{_SCRATCH}*.lock"):
        with tolerated("what a killed process left stays"):
            ours = re.fullmatch(_SCRATCH + "[0-9a-f]{16}", path.stem) and is_lock(path)
            if not ours or (hasattr(os, "geteuid") and path.lstat().st_uid != os.geteuid()):
                continue
            if (hold := try_hold(path)) is not None:
                remove(path.with_suffix(""))
                hold.release(and_remove=True)
