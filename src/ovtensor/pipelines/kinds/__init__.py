"""The kinds of components that OpenVINO runs, found by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovtensor.engine.identity import plain
from ovtensor.pipelines.kinds.autoencoder_kl import AutoencoderKL, OtherAutoencoder
from ovtensor.pipelines.kinds.base import GraphKind, Kind
from ovtensor.pipelines.kinds.clip_text import CLIPText
from ovtensor.pipelines.kinds.unet2d import UNet2D

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KINDS", "GraphKind", "Kind", "kind_called", "kind_of", "known_classes"]

KINDS: tuple[Kind, ...] = (UNet2D(), CLIPText(), AutoencoderKL(), OtherAutoencoder())


def kind_called(name: str) -> Kind | None:
    """The kind that knows a class of this name."""
    return next((kind for kind in KINDS if name in kind.classes), None)


def kind_of(module: Any) -> Kind | None:
    """The kind of a module, by its class or the nearest class that it is a subclass of."""
    for base in type(plain(module)).__mro__:
        theirs = base.__module__.partition(".")[0] in ("diffusers", "transformers")
        if theirs and (kind := kind_called(base.__name__)) is not None:
            return kind
    return None


def known_classes() -> Iterator[str]:
    """Names of all classes that OpenVINO can run, for error messages."""
    for kind in KINDS:
        if kind.graphs:
            yield from kind.classes
