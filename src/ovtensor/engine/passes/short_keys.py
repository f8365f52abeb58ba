"""Calls whose attention would see a single key, refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovtensor.engine.passes.base import Pass
from ovtensor.errors import ComponentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovtensor.engine.passes.base import Conditions


class ShortKeys(Pass):
    """Refuse a first sequence of a single element.

    OpenVINO's fused attention on the CPU goes wrong for good when the first sequence that it
    attends to has a single element: every later, longer one gives garbage, without an error. So a
    call with such a sequence (a picture of 8 pixels, a prompt of one embedding) is refused.
    """

    name = "short_keys"
    releases = "up to 2026.4"
    upstream = "not reported"

    @classmethod
    def applies(cls, given: Conditions) -> bool:  # noqa: ARG003
        """Everywhere: which device computes a virtual one's attention is not known beforehand."""
        return True

    @classmethod
    def check_call(cls, name: str, shapes: Sequence[tuple[int, ...]], keys: int) -> None:
        """See :class:`.Pass`."""
        if keys < 2:
            raise ComponentError(
                f"{name} was called on inputs of shapes {list(shapes)}, which are too small for "
                f"OpenVINO's attention; use a larger picture or prompt, or run it on torch",
                component=name,
            )
