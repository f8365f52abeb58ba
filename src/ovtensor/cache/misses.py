"""Why nothing was found: what the nearest entry was made from, and this one is not."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from ovtensor.cache.manifest import BrokenEntryError, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ovtensor.cache.folder import CacheFolder

__all__ = ["reason_of_miss"]

_SHOWN_FIELDS = 8
_SHOWN_DIGITS = 40


def reason_of_miss(folder: CacheFolder, fields: Mapping[str, Any]) -> str:
    """Say which cache-key fields differ from the entry of the same kind and graph that is nearest.

    Only manifests are read.
    """
    wanted = dict(_leaves(fields))
    nearest: list[str] | None = None
    for key in folder.keys():  # noqa: SIM118
        with contextlib.suppress(BrokenEntryError):
            found = Manifest.read(folder.entry(key)).key_fields
            if all(found.get(name) == fields.get(name) for name in ("kind", "graph")):
                differing = _differing(dict(_leaves(found)), wanted)
                if nearest is None or len(differing) < len(nearest):
                    nearest = differing
    if nearest is None:
        return "there is no entry of its kind and graph"
    more = len(nearest) - _SHOWN_FIELDS
    return ", ".join(nearest[:_SHOWN_FIELDS]) + (f" and {more} more" if more > 0 else "")


def _differing(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [
        f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value that holds no other, as JSON, by where it is."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple) and value:
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{name}[{index}]")
    else:
        yield name, json.dumps(value)


def _shown(text: str | None) -> str:
    if text is None:
        return "(none)"
    text = text[1:-1] if text.startswith('"') else text
    return text if len(text) <= _SHOWN_DIGITS else f"{text[: _SHOWN_DIGITS - 3]}..."
