"""Weights of eight bits, by nncf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovtensor.engine.passes.base import Pass

if TYPE_CHECKING:
    import openvino as ov

    from ovtensor.engine.passes.base import Conditions


class Int8Weights(Pass):
    """Compress the weights that ``Backend.weights`` asks for; it alters the model in place."""

    name = "int8"
    releases = "all"
    upstream = "none: this is a feature"

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """Where they are asked for."""
        return given.backend.weights == "int8"

    def on_model(self, model: ov.Model) -> None:
        """See :class:`.Pass`."""
        import nncf

        nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
