"""Entries of a model cache that are quick to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ovtensor.cache import ModelCache

KEY_FIELDS = {"kind": "ir", "weights": "0123", "openvino": "2026.4.1"}


class Builder:
    """Writes the same two files each time, and counts how often."""

    def __init__(self, content: bytes = b"weights" * 1000) -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        assert list(folder.iterdir()) == []
        (folder / "model.xml").write_text("<net/>")
        (folder / "model.bin").write_bytes(self.content)


def left_overs(cache: ModelCache) -> list[str]:
    """What is in the folders for what is under way."""
    return [
        path.name for folder in ("writing", "leases") for path in (cache.path / folder).iterdir()
    ]
