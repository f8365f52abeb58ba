"""What an entry says about itself, and whether that is true."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import platform
import stat
from typing import TYPE_CHECKING, Any

from ovtensor.cache.fingerprints import hash_file
from ovtensor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["BrokenEntryError", "Manifest", "key_of"]

NAME = "manifest.json"
_FORMAT = 2
_KEY_DIGITS = 32
_WRITERS = ("ovtensor", "openvino", "torch", "diffusers", "transformers")


class BrokenEntryError(Exception):
    """An entry that is not what its manifest says; the message says in what. Never leaves here."""


def key_of(fields: Mapping[str, Any]) -> str:
    """Return the key of an entry: the hash of its cache-key fields as canonical JSON, 32 digits.

    Raises
    ------
    InputError
        If the fields are not what JSON can say exactly: NaN, keys that are no strings, objects.
    """
    _check_json(fields, "fields")
    text = json.dumps({"format": _FORMAT, "fields": fields}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def is_key(name: str) -> bool:
    """Tell whether a file name is the key of an entry."""
    return len(name) == _KEY_DIGITS and set(name) <= set("0123456789abcdef")


def _check_json(value: Any, where: str) -> None:
    """Refuse what JSON would write like something else, as it does with ``{1: ...}``."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if type(key) is not str:
                raise InputError(f"the key {key!r} in {where} is no string")
            _check_json(entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_json(entry, f"{where}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise InputError(f"{where} is a {type(value).__qualname__}, which JSON does not have")
    elif value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{where} is {value}, which JSON does not have")


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """The cache-key fields of an entry and the size and checksum of each of its files.

    Attributes
    ----------
    key : str
        What the entry is found by: the hash of `key_fields`.
    label : str
        What it is, for people; not part of the key.
    key_fields : dict
        Everything that its content follows from.
    files : dict
        File name to ``{"size": bytes, "xxh3_128": hexadecimal digits}``.
    created : str
        Time in ISO 8601, UTC.
    versions : dict
        Who wrote it.
    """

    key: str
    label: str
    key_fields: dict[str, Any]
    files: dict[str, dict[str, Any]]
    created: str
    versions: dict[str, str]

    @property
    def content(self) -> str:
        """The hash of the files' names and checksums: equal where every byte is."""
        return key_of({name: file["xxh3_128"] for name, file in self.files.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(file["size"]) for file in self.files.values())

    @classmethod
    def of(cls, folder: Path, key: str, fields: Mapping[str, Any], label: str) -> Manifest:
        """Describe the files that were built into `folder`.

        Raises
        ------
        InputError
            If there is none, or anything but plain files.
        """
        paths = sorted(folder.iterdir())
        odd = [path.name for path in paths if not _is_plain(path) or path.name == NAME]
        if odd or not paths:
            found = f"{', '.join(odd)}, which cannot be in one" if odd else "no file at all"
            raise InputError(f"an entry of the cache is made of plain files, but there is {found}")
        return cls(
            key=key,
            label=label,
            key_fields=dict(fields),
            files={
                path.name: {"size": path.stat().st_size, "xxh3_128": hash_file(path)}
                for path in paths
            },
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            versions=_versions(),
        )

    def write(self, folder: Path) -> None:
        """Write the manifest; the last file of an entry."""
        text = json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2)
        (folder / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of an entry; its files are not looked at yet.

        Raises
        ------
        BrokenEntryError
            If it is missing, unreadable, or of another entry.
        """
        if folder.is_symlink() or not folder.is_dir():
            raise BrokenEntryError("it is no folder")
        try:
            if not _is_plain(folder / NAME):
                raise BrokenEntryError(f"{NAME} is no plain file")
            stored = json.loads((folder / NAME).read_text(encoding="utf-8"))
            if stored.pop("format") != _FORMAT:
                raise BrokenEntryError(f"{NAME} is of another format")
            manifest = cls(**stored)
            expected = key_of(manifest.key_fields)
        except FileNotFoundError:
            raise BrokenEntryError(f"it has no {NAME}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BrokenEntryError(f"{NAME} cannot be read: {error}") from error
        if not folder.name == manifest.key == expected:
            raise BrokenEntryError(f"{NAME} is that of another entry")
        manifest._check_form()
        return manifest

    def _check_form(self) -> None:
        try:
            for name, file in self.files.items():
                int(file["size"]), str(file["xxh3_128"])
                # A name with a separator, a drive or dots would lead out of the folder.
                if not name.strip(".") or set(name) & set('/\\:*?"<>|\0'):
                    raise BrokenEntryError(f"{NAME} names a file {name!r}")
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BrokenEntryError(f"{NAME} cannot be read: {error}") from error

    def check(self, folder: Path) -> None:
        """Compare every byte of the entry with its checksums.

        Raises
        ------
        BrokenEntryError
            If one differs, or a file is missing, no plain file or cannot be read.
        """
        self.state(folder)
        for name, file in self.files.items():
            try:
                checksum = hash_file(folder / name)
            except OSError as error:
                raise BrokenEntryError(f"{name} cannot be read: {error}") from error
            if checksum != file["xxh3_128"]:
                raise BrokenEntryError(f"{name} is not what was written: its checksum differs")

    def state(self, folder: Path) -> tuple[tuple[int, ...], ...]:
        """Return what differs when one of the files was written to or replaced.

        Raises
        ------
        BrokenEntryError
            If a file is missing, no plain file, or has another size.
        """
        found = []
        for name, file in self.files.items():
            try:
                status = (folder / name).lstat()
            except OSError as error:
                raise BrokenEntryError(f"{name} is missing: {error}") from error
            if not stat.S_ISREG(status.st_mode):
                raise BrokenEntryError(f"{name} is no plain file")
            if status.st_size != file["size"]:
                raise BrokenEntryError(
                    f"{name} has {status.st_size} bytes, and {file['size']} were written"
                )
            found.append((status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
        return tuple(found)


def _versions() -> dict[str, str]:
    import importlib.metadata  # slow, and needed for writing only

    found = {"python": platform.python_version()}
    for package in _WRITERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)
