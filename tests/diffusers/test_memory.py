"""What post-processing needs beside its input and its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from child import numbers
from ovtensor.diffusers import _pixels

pytestmark = pytest.mark.slow

RESET = Path("/proc/self/clear_refs")

# How far the resident memory rises above the result, with our processor and with diffusers' own. In
# a process of its own, whose blocks glibc maps one by one: pages that its heap keeps of what was
# freed, by us or by other tests, would count as more or less.
_EXTRA = """
    import ctypes, sys, openvino, torch
    from pathlib import Path
    from diffusers.image_processor import VaeImageProcessor as Stock
    from ovtensor.diffusers import VaeImageProcessor

    M_MMAP_THRESHOLD = -3
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)

    def resident(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    output_type, bytes_a_pixel, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    image = torch.rand(4, 3, side, side) * 2 - 1
    for processor in (VaeImageProcessor(), Stock())[: 2 if output_type == "pil" else 1]:
        processor.postprocess(image[:1], output_type)  # code and threads that the first call loads
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        result = processor.postprocess(image, output_type)
        print(resident("VmHWM") - before - bytes_a_pixel * 4 * side**2)
        del result
"""


@pytest.mark.skipif(not RESET.exists(), reason="reads the high-water mark that Linux keeps")
@pytest.mark.parametrize(("output_type", "bytes_a_pixel"), [("pil", 4), ("uint8", 3)])
def test_at_most_one_image_of_bytes_and_one_block(output_type, bytes_a_pixel):
    side = 1536
    ours, *stock = numbers(
        _EXTRA, 2 if output_type == "pil" else 1, output_type, bytes_a_pixel, side
    )
    one_image = 3 * side**2
    assert ours <= one_image + _pixels.BLOCK_BYTES
    if stock:  # else the measurement does not measure
        assert stock[0] > 2 * 4 * 4 * one_image
