"""AUTO devices that begin where they go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovtensor.engine.passes.base import Pass

if TYPE_CHECKING:
    from ovtensor.engine.backend import Backend
    from ovtensor.engine.passes.base import Conditions


class NoStartupFallback(Pass):
    """Keep AUTO from running on the CPU until the model is compiled for the GPU.

    It would change the device, and with it the numbers, between two steps of a picture.
    """

    name = "startup_fallback"
    releases = "all"
    upstream = "none: documented behaviour"

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """For AUTO devices."""
        return given.backend.device.partition(":")[0] == "AUTO"

    @classmethod
    def properties(cls, backend: Backend) -> dict[str, Any]:  # noqa: ARG003
        """See :class:`.Pass`."""
        return {"ENABLE_STARTUP_FALLBACK": False}
