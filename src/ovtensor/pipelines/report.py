"""What runs where and what it has cost, for people and for programs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovtensor.engine.plan import ConversionPlan


@dataclasses.dataclass(frozen=True, slots=True)
class ComponentReport:
    """What one component runs on and what it has cost so far.

    Attributes
    ----------
    component : str
        Name of the component in the pipeline.
    backend : {"torch", "openvino"}
        Who computes.
    device : str
        The device that was asked for.
    execution_devices : tuple of str
        Those that OpenVINO says it runs on; for torch where the weights are.
    precision : str
        Of the arithmetic: ``"f32"``, ``"bf16"`` or ``"f16"``.
    weight_bytes : int
        Size of the weights, in a file or in memory.
    convert_seconds, compile_seconds : float
        Wall-clock; a conversion includes loading the weights and writing the model.
    compiles, inferences : int
        How often that happened so far.
    cache : {"off", "hit", "miss"}
        Whether the converted model was found in the cache.
    plans : tuple of ConversionPlan
        How each of its graphs that are open was converted and compiled; empty on torch.
    """

    component: str
    backend: str
    device: str
    execution_devices: tuple[str, ...]
    precision: str
    weight_bytes: int
    convert_seconds: float
    compile_seconds: float
    compiles: int
    inferences: int
    cache: Literal["off", "hit", "miss"]
    plans: tuple[ConversionPlan, ...] = ()


class Report(tuple[ComponentReport, ...]):
    """One row a component; ``str`` makes a table of it."""

    __slots__ = ()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Everything as plain values, by component."""
        return {row.component: dataclasses.asdict(row) for row in self}

    def __str__(self) -> str:
        header = (
            "component", "backend", "device", "runs on", "precision", "weights", "cache",
            "convert", "compile", "compiles", "inferences",
        )  # fmt: skip
        return "\n".join(_aligned([header, *map(_cells, self)]))


def _cells(row: ComponentReport) -> tuple[str, ...]:
    return (
        row.component,
        row.backend,
        row.device,
        ", ".join(row.execution_devices) or "-",
        row.precision,
        f"{row.weight_bytes / 1e6:.1f} MB",
        row.cache,
        f"{row.convert_seconds:.1f} s",
        f"{row.compile_seconds:.1f} s",
        str(row.compiles),
        str(row.inferences),
    )


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
