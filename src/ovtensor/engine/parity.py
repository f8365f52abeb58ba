"""Whether a compiled component computes what torch does: one small forward of each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ovtensor.errors import ParityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovtensor.engine.plan import ConversionPlan

# The least cosine similarity of an output that passes for right, by what was rounded. Rounding
# every operation of a network to bf16's eight bits costs about 1e-4 of similarity, int8 weights
# 1e-3; a kernel that computes something else loses more than a tenth.
_LEAST = {"f32": 0.9999, "bf16": 0.99, "f16": 0.99}
_LEAST_INT8 = 0.98


def demand_parity(
    plan: ConversionPlan,
    expected: Sequence[torch.Tensor],
    computed: Sequence[torch.Tensor],
) -> None:
    """Raise unless every output is near what torch computed from the same weights and inputs.

    Raises
    ------
    ParityError
        With cosine similarity and largest error of the worst output.
    """
    least = _LEAST_INT8 if plan.compression == "int8" else _LEAST[plan.precision]
    similarities = [_cosine(one, two) for one, two in zip(expected, computed, strict=True)]
    # NaN is the worst of all, and compares as neither less nor more.
    index = min(
        range(len(similarities)),
        key=lambda at: -math.inf if math.isnan(similarities[at]) else similarities[at],
    )
    similarity = similarities[index]
    if not similarity >= least:
        error = float((expected[index].double() - computed[index].double()).abs().max())
        scale = float(expected[index].abs().max())
        raise ParityError(
            f"{plan.graph} on {plan.device} in {plan.precision} does not compute what torch does: "
            f"output {index} has a cosine similarity of {similarity:.5f} (wanted {least}) and a "
            f"maximum error of {error:.3g} where torch's values reach {scale:.3g}; "
            f'give precision="f32", update the device\'s driver and OpenVINO, or run it on torch',
            component=plan.graph,
            device=plan.device,
        )


def _cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    one, two = one.double().flatten(), two.double().flatten()
    norms = one.norm() * two.norm()
    if norms == 0:
        return float(torch.equal(one, two))
    return float(one @ two / norms)
