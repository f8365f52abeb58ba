"""The route: one function from the own type to something that ovtensor converts already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from thermometer import Celsius


def ROUTE(x: Celsius) -> np.ndarray[Any, Any]:  # noqa: N802  the name that the entry point gives
    """Give the temperatures in degrees."""
    return x.degrees
