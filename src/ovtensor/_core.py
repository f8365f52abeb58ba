"""The one ``openvino.Core`` of this process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["core"]


@functools.cache
def core() -> ov.Core:
    """Make it on first use."""
    import openvino as ov

    return ov.Core()
