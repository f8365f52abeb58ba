"""Libraries whose tensors one call of their own turns into an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovtensor._registry import Unwrap

__all__ = ["CUPY", "PILLOW", "SCIPY"]


def dense(x: Any) -> Any:
    """Write out the zeros of a SciPy sparse matrix or array."""
    return np.asarray(x.toarray())


def pixels(x: Any) -> Any:
    """Take a copy of a picture's pixels: ``(height, width)`` or ``(height, width, bands)``."""
    return np.asarray(x)


def to_host(x: Any) -> Any:
    """Copy a CuPy array from its device; CuPy refuses to do that implicitly."""
    return x.get()


SCIPY, PILLOW, CUPY = Unwrap(dense), Unwrap(pixels), Unwrap(to_host)
