"""Every decision of a conversion, made once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from ovtensor.engine.backend import PRECISION_HINT, Backend
from ovtensor.engine.devices import torch_dtype, traits_of
from ovtensor.engine.passes import Conditions, passes_for, passes_of

if TYPE_CHECKING:
    import torch

    from ovtensor.engine.graph import GraphSpec
    from ovtensor.engine.memory import MemoryPolicy

# Goes up when the same weights are written as another model, so that caches start anew.
FORMAT = 7


@dataclasses.dataclass(frozen=True, slots=True)
class ConversionPlan:
    """How a graph is converted and compiled; made by :meth:`of` and not changed from then on.

    ``str`` tells it in a line.

    Attributes
    ----------
    graph : str
        Its name.
    device : str
        The OpenVINO device.
    precision : {"f32", "bf16", "f16"}
        Of the arithmetic.
    compression : {"int8"} or None
        Of the weights.
    stored_as : str or None
        The 16-bit dtype in which linear layers are loaded for arithmetic in another one.
    passes : tuple of str
        What is done to module, model and calls, in order: see :mod:`ovtensor.engine.passes`.
    verify : bool
        Whether a small inference is compared with what torch computes.
    shapes : {"dynamic", "static"}
        Compiled once for all shapes, or for those of each call.
    properties : tuple of (str, str)
        What it is compiled with, by name.
    inputs : tuple or None
        See :attr:`.GraphSpec.inputs`.
    """

    graph: str
    device: str
    precision: Literal["f32", "bf16", "f16"]
    compression: Literal["int8"] | None
    stored_as: str | None
    passes: tuple[str, ...]
    verify: bool
    shapes: Literal["dynamic", "static"]
    properties: tuple[tuple[str, str], ...]
    inputs: tuple[Any, ...] | None = None

    @classmethod
    def of(
        cls, spec: GraphSpec, backend: Backend, *, verify: bool | None, memory: MemoryPolicy
    ) -> ConversionPlan:
        """Decide.

        Parameters
        ----------
        spec : GraphSpec
            Its weights are not loaded for this.
        backend : Backend
            With nothing left open: see :func:`.backend.resolve`.
        verify : bool or None
            None compares where numbers are rounded: for bf16, f16 and int8.
        memory : MemoryPolicy
            What counts as much.
        """
        rounds = backend.precision != "f32" or backend.weights is not None
        device = traits_of(backend.device)
        given = Conditions(
            backend=backend,
            device=device,
            traits=spec.traits,
            weights=spec.source.size,
            stored=spec.source.sixteen_bit,
            verify=rounds if verify is None else verify,
            memory=memory,
        )
        passes = passes_for(given)
        # Cast to other 16 bits while they are written, or widened in the model.
        casts = backend.precision != "f32" and "mapped_weights" in passes
        stored = given.stored if casts or "sixteen_bit" in passes else None
        told = {name: str(value) for name, value in compile_properties(backend, passes).items()}
        return cls(
            graph=spec.name,
            device=backend.device,
            precision=backend.precision,  # type: ignore[arg-type]  # "auto" is settled
            compression=backend.weights if "int8" in passes else None,
            stored_as=None if stored is None else str(stored).removeprefix("torch."),
            passes=passes,
            verify=given.verify,
            shapes="static" if backend.static_shapes else "dynamic",
            properties=tuple(sorted(told.items())),
            inputs=spec.inputs,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Torch's dtype of the arithmetic."""
        return torch_dtype(self.precision)

    @property
    def load_dtype(self) -> torch.dtype:
        """Torch's dtype in which the weights are loaded."""
        import torch

        kept: torch.dtype | None = (
            None if self.stored_as is None else getattr(torch, self.stored_as)
        )
        return self.dtype if kept is None else kept

    def conversion_fields(self) -> dict[str, Any]:
        """What changes the written model: fields of its key in a cache, as JSON has them."""
        fields = dataclasses.asdict(self)
        for name in ("device", "shapes", "properties"):
            del fields[name]
        return {"kind": "ir", "format": FORMAT, **fields, "passes": list(self.passes)}

    def compilation_fields(self) -> dict[str, Any]:
        """What else changes the compiled model, apart from the device's own version."""
        return {
            "kind": "blob",
            "graph": self.graph,
            "device": self.device,
            "properties": dict(self.properties),
        }

    def __str__(self) -> str:
        weights = "mapped" if "mapped_weights" in self.passes else "constant"
        stored = self.compression or self.stored_as or str(self.dtype).removeprefix("torch.")
        return (
            f"{self.graph}: {self.precision} on {self.device}, {self.shapes} shapes, {weights} "
            f"{stored} weights, {'' if self.verify else 'not '}compared with torch; "
            f"passes: {', '.join(self.passes) or 'none'}"
        )


def compile_properties(backend: Backend, passes: tuple[str, ...]) -> dict[str, Any]:
    """What a model is compiled with."""
    given: dict[str, Any] = {PRECISION_HINT: backend.precision}
    for one in passes_of(passes):
        given |= one.properties(backend)
    return given | dict(backend.properties)
