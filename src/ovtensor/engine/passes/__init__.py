"""Passes over a module, its model and its calls: speed on a device, and workarounds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ovtensor.engine.passes.base import Conditions, Pass
from ovtensor.engine.passes.drop_ones import DropOnes
from ovtensor.engine.passes.gated import SplitGates
from ovtensor.engine.passes.group_norms import GroupNorms
from ovtensor.engine.passes.int8 import Int8Weights
from ovtensor.engine.passes.mapped_weights import MappedWeights
from ovtensor.engine.passes.plain_attention import PlainAttention
from ovtensor.engine.passes.short_keys import ShortKeys
from ovtensor.engine.passes.sixteen_bit import SixteenBitWeights
from ovtensor.engine.passes.startup_fallback import NoStartupFallback
from ovtensor.engine.passes.upsample import FoldUpsample
from ovtensor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PASSES", "Conditions", "Pass", "passes_for", "passes_of"]

DISABLE = "OVTENSOR_DISABLE_PASSES"

# In the order in which they are run, over modules, then over models, then over files. Weights are
# rounded before group norms are made of averages, which are not to be rounded; they are taken out
# of a model when nothing looks for constants any more.
PASSES: tuple[type[Pass], ...] = (
    PlainAttention,
    SplitGates,
    DropOnes,
    FoldUpsample,
    Int8Weights,
    GroupNorms,
    MappedWeights,
    SixteenBitWeights,
    NoStartupFallback,
    ShortKeys,
)


def passes_for(given: Conditions) -> tuple[str, ...]:
    """The names of the passes that a conversion gets, less those that are switched off.

    Raises
    ------
    InputError
        If the environment switches off what is no pass.
    """
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")} - {""}
    known = {one.name for one in PASSES}
    if unknown := disabled - known:
        raise InputError(
            f"{DISABLE} names {', '.join(sorted(unknown))}; the passes are "
            f"{', '.join(sorted(known))}"
        )
    return tuple(one.name for one in PASSES if one.name not in disabled and one.applies(given))


def passes_of(names: Iterable[str]) -> list[type[Pass]]:
    """The passes of a plan, in the order in which they are run."""
    wanted = set(names)
    return [one for one in PASSES if one.name in wanted]
