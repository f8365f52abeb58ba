"""What an entry says about itself, and whether that is true."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import platform
import re
import stat
from typing import TYPE_CHECKING, Any

from ovtensor._disk import open_to_others
from ovtensor.cache.fingerprints import hash_file
from ovtensor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["BrokenEntryError", "Manifest", "is_key", "key_of", "names_of"]

NAME = "manifest.json"
_FORMAT = 2
_DIGITS = re.compile("[0-9a-f]{32}")  # of a key, and of a checksum
_MOST_BYTES = 2**24
_MOST_NESTED = 50
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
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_key(name: str) -> bool:
    """Tell whether a file name is the key of an entry."""
    return _DIGITS.fullmatch(name) is not None


def names_of(folder: Path) -> set[str]:
    """The names of the files of an entry that its manifest proves to be the cache's own.

    Of whatever format the manifest is; where it proves nothing there are none.
    """
    try:
        stored = _stored(folder)
    except BrokenEntryError:
        return set()
    names = stored.get("files")
    is_table = isinstance(names, dict) and stored.get("key") == folder.name
    return {NAME, *names} if is_table and names and all(map(_is_name, names)) else set()


def _stored(folder: Path) -> dict[str, Any]:
    """What the manifest of an entry says; raises `BrokenEntryError` if it cannot be trusted."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise BrokenEntryError("it is no folder")
        if reason := open_to_others(status):
            raise BrokenEntryError(reason)
        file = (folder / NAME).lstat()
        if not stat.S_ISREG(file.st_mode) or file.st_size > _MOST_BYTES:
            raise BrokenEntryError(f"{NAME} is no plain file of a sensible size")
        stored = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenEntryError(f"it has no {NAME}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenEntryError(f"{NAME} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise BrokenEntryError(f"{NAME} cannot be read: it is no table")
    return stored


def _is_name(name: str) -> bool:
    """Tell whether a file of an entry can have this name: none that leads out of its folder."""
    leads_out = not name.strip(".") or set(name) & set('/\\:*?"<>|')
    return name.isprintable() and name != NAME and not leads_out


def _check_json(value: Any, where: str, nested: int = 0) -> None:
    """Refuse what JSON would write like something else, as it does with ``{1: ...}``."""
    if nested > _MOST_NESTED:
        raise InputError(f"the fields are nested more than {_MOST_NESTED} times")
    if isinstance(value, dict):
        for key, entry in value.items():
            if type(key) is not str:
                raise InputError(f"the key {key!r} in {where} is no string")
            _check_json(entry, f"{where}[{key!r}]", nested + 1)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_json(entry, f"{where}[{index}]", nested + 1)
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
        odd = [path.name for path in paths if not (_is_plain(path) and _is_name(path.name))]
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
        stored = _stored(folder)
        if stored.pop("format", None) != _FORMAT:
            raise BrokenEntryError(f"{NAME} is of another format")
        try:
            manifest = cls(**stored)
            expected = key_of(manifest.key_fields)
        except (TypeError, InputError, UnicodeError) as error:
            raise BrokenEntryError(f"{NAME} cannot be read: {error}") from error
        if not folder.name == manifest.key == expected:
            raise BrokenEntryError(f"{NAME} is that of another entry")
        manifest._check_form()
        return manifest

    def _check_form(self) -> None:
        texts = isinstance(self.label, str) and isinstance(self.created, str)
        if not (texts and isinstance(self.versions, dict) and isinstance(self.files, dict)):
            raise BrokenEntryError(f"{NAME} cannot be read: it has other types than were written")
        if not self.files:
            raise BrokenEntryError(f"{NAME} names no files")
        for name, file in self.files.items():
            if not _is_name(name):
                raise BrokenEntryError(f"{NAME} names a file {name!r}")
            sound = (
                isinstance(file, dict)
                and type(file.get("size")) is int
                and isinstance(file.get("xxh3_128"), str)
                and _DIGITS.fullmatch(file["xxh3_128"])
            )
            if not sound:
                raise BrokenEntryError(f"{NAME} cannot be read: {name!r} is {file!r}")

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
