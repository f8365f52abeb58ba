"""The kinds of components that OpenVINO runs, found by class."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ovtensor.engine.graph import GraphSpec
from ovtensor.engine.identity import plain
from ovtensor.errors import ComponentError
from ovtensor.pipelines.kinds.autoencoder_kl import AutoencoderKL, OtherAutoencoder
from ovtensor.pipelines.kinds.base import GraphKind, Kind
from ovtensor.pipelines.kinds.clip_text import CLIPText
from ovtensor.pipelines.kinds.unet2d import UNet2D

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovtensor.engine.sources import Source

__all__ = ["KINDS", "GraphKind", "Kind", "convertible", "graph_spec", "kind_called", "kind_of"]

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


def convertible(name: str, argument: str, module: Any) -> Kind:
    """The kind of a component that is to run on OpenVINO.

    Raises
    ------
    ComponentError
        If none is known, or something about it cannot be converted.
    """
    kind, given = kind_of(module), type(plain(module)).__qualname__
    cure = f'run it on torch ({argument}="torch")'
    if kind is None or not kind.graphs:
        raise ComponentError(
            f"the {name} is a {given}, which cannot be converted; OpenVINO runs "
            f"{', '.join(known_classes())}; {cure}",
            component=name,
        )
    if obstacle := kind.obstacle(module):
        raise ComponentError(
            f"the {name} ({given}) cannot be converted: {obstacle}; {cure}", component=name
        )
    return kind


def graph_spec(component: str, part: GraphKind, source: Source) -> GraphSpec:
    """The spec of one of a component's graphs."""
    name = component + part.suffix
    return GraphSpec(name, source, functools.partial(part.make, name), part.traits)
