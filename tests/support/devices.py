"""What the processor can do that only some can."""

from __future__ import annotations

import openvino as ov
import pytest

needs_bf16 = pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU does not execute bf16",
)
