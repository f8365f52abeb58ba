"""What the machine has that only some have."""

from __future__ import annotations

import openvino as ov
import pytest

needs_bf16 = pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU does not execute bf16",
)
needs_gpu = pytest.mark.skipif(
    not any(device.startswith("GPU") for device in ov.Core().available_devices),
    reason="OpenVINO has no GPU here",
)
