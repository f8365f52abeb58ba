"""diffusers' post-processing: for any tensor, faster, and never a black picture without a word."""

from __future__ import annotations

from ovtensor.diffusers.image_processor import (
    InpaintProcessor,
    IPAdapterMaskProcessor,
    PixArtImageProcessor,
    VaeImageProcessor,
    VaeImageProcessorLDM3D,
    VideoProcessor,
)
from ovtensor.diffusers.patch import PatchHandle, is_patched, patch_diffusers

__all__ = [
    "IPAdapterMaskProcessor",
    "InpaintProcessor",
    "PatchHandle",
    "PixArtImageProcessor",
    "VaeImageProcessor",
    "VaeImageProcessorLDM3D",
    "VideoProcessor",
    "is_patched",
    "patch_diffusers",
]
