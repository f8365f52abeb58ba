"""Multiplications by one and divisions by it, taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovtensor.engine.passes.base import Pass
from ovtensor.engine.passes.nodes import is_one

if TYPE_CHECKING:
    import openvino as ov

    from ovtensor.engine.passes.base import Conditions


class DropOnes(Pass):
    """Take out what multiplies by one, which changes no value.

    diffusers divides by scales that are one, and ``a + b`` arrives as ``a + 1 * b``. Where they
    follow a linear layer whose weights are an input, OpenVINO merges them into its sum in a way
    that only its slowest kernel computes: in bf16 a layer took 28 ms, and one of its size 0.2 ms.
    """

    name = "drop_ones"
    releases = "up to 2026.4"
    upstream = "not reported"

    @classmethod
    def applies(cls, given: Conditions) -> bool:  # noqa: ARG003
        """Everywhere: it costs nothing."""
        return True

    def on_model(self, model: ov.Model) -> None:
        """See :class:`.Pass`."""
        for node in model.get_ops():
            name = node.get_type_name()
            if name == "Multiply" and is_one(node.input_value(0)):
                node.output(0).replace(node.input_value(1))
            elif name in ("Multiply", "Divide") and is_one(node.input_value(1)):
                node.output(0).replace(node.input_value(0))
