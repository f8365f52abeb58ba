"""What post-processing needs beside its input and its result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as Stock

from ovtensor.diffusers import VaeImageProcessor, _pixels

RESET = Path("/proc/self/clear_refs")


def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.skipif(not RESET.exists(), reason="reads the high-water mark that Linux keeps")
@pytest.mark.parametrize(("output_type", "result_bytes_a_pixel"), [("pil", 4), ("uint8", 3)])
def test_at_most_one_image_of_bytes_and_one_block(output_type, result_bytes_a_pixel):
    image = torch.rand(4, 3, 1536, 1536) * 2 - 1
    pixels = 4 * 1536 * 1536

    def extra(processor, output_type):
        processor.postprocess(image[:, :, :8, :8], output_type)
        before = resident("VmRSS")
        RESET.write_text("5")
        result = processor.postprocess(image, output_type)
        peak = resident("VmHWM")
        del result
        return peak - before - result_bytes_a_pixel * pixels

    one_image = 3 * 1536 * 1536
    measured = extra(VaeImageProcessor(), output_type)
    assert measured <= one_image + _pixels.BLOCK_BYTES + 2**20  # a MiB for the allocators' pages
    if output_type == "pil":
        assert extra(Stock(), output_type) > 2 * image.nbytes, "the measurement does not measure"
