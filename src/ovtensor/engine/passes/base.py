"""What a pass is: one thing that is done because of how OpenVINO computes, in a file of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    import openvino as ov
    import torch

    from ovtensor.engine.backend import Backend
    from ovtensor.engine.devices import DeviceTraits
    from ovtensor.engine.graph import GraphTraits
    from ovtensor.engine.memory import MemoryPolicy


@dataclasses.dataclass(frozen=True, slots=True)
class Conditions:
    """What decides whether a pass applies.

    Attributes
    ----------
    backend : Backend
        What was asked for, with nothing left open.
    device : DeviceTraits
        Its device's row.
    traits : GraphTraits
        The graph's.
    weights : int
        How many weights there are.
    stored : torch.dtype or None
        The 16-bit dtype that all of them have where they come from, if they may be loaded in it.
    verify : bool
        Whether torch computes a reference from the weights as they are loaded.
    memory : MemoryPolicy
        What counts as much.
    """

    backend: Backend
    device: DeviceTraits
    traits: GraphTraits
    weights: int
    stored: torch.dtype | None
    verify: bool
    memory: MemoryPolicy


class Pass:
    """Base of the passes; an object is made for each conversion, and keeps what it must in between.

    Attributes
    ----------
    name : str
        In the plan, and in ``OVTENSOR_DISABLE_PASSES``, which switches passes off for diagnosis.
    releases : str
        The releases of OpenVINO that it is for; a canary in the tests tells when that ends.
    upstream : str
        The issue there, or "not reported".
    """

    name: ClassVar[str]
    releases: ClassVar[str]
    upstream: ClassVar[str]

    def __init__(self, precision: str) -> None:
        self.precision = precision

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """Whether a conversion under these conditions gets it."""
        raise NotImplementedError

    def on_module(self, module: torch.nn.Module, folder: Path) -> None:
        """Alter the module before it is traced; `folder` is where the model will be."""

    def on_model(self, model: ov.Model) -> None:
        """Alter the model before it is written."""

    def on_file(self, path: Path) -> None:
        """Alter the written model."""

    @classmethod
    def properties(cls, backend: Backend) -> dict[str, Any]:  # noqa: ARG003
        """What is added to the properties of a compilation."""
        return {}

    @classmethod
    def check_call(cls, name: str, shapes: Sequence[tuple[int, ...]], keys: int) -> None:
        """Refuse a call that OpenVINO would compute wrongly; `keys` as ``Graph.shortest_keys``."""
