"""A library with a tensor type of its own, which knows nothing of ovtensor."""

from __future__ import annotations

from typing import Any

import numpy as np


class Celsius:
    """Temperatures, kept as tenths of a degree."""

    def __init__(self, degrees: Any) -> None:
        self.tenths = (np.asarray(degrees, np.float32) * 10).round().astype(np.int16)

    @property
    def degrees(self) -> np.ndarray[Any, Any]:
        """The temperatures in degrees."""
        return self.tenths.astype(np.float32) / 10
