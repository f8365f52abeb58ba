"""diffusers' image processors, for any tensor, faster, and with a word about NaN."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from diffusers import image_processor as stock
from diffusers import video_processor as stock_video

from ovtensor.diffusers import _depth, _methods

if TYPE_CHECKING:
    from ovtensor.nonfinite import Policy

__all__ = [
    "IPAdapterMaskProcessor",
    "InpaintProcessor",
    "PixArtImageProcessor",
    "VaeImageProcessor",
    "VaeImageProcessorLDM3D",
    "VideoProcessor",
]


class VaeImageProcessor(stock.VaeImageProcessor):
    """A drop-in for ``diffusers.image_processor.VaeImageProcessor``, with the same config.

    Attributes
    ----------
    nonfinite : {"raise", "warn", "ignore"} or None
        What NaN or infinity in a decoded image does, for this processor; None leaves it to
        `patch_diffusers`, then to the environment variable ``OVTENSOR_NONFINITE``, then
        ``"raise"``. Not part of the config.

    Examples
    --------
    ``pipe.image_processor = VaeImageProcessor.from_config(pipe.image_processor.config)``
    """

    nonfinite: Policy | None = None

    postprocess = _methods.postprocess
    preprocess = _methods.preprocess
    denormalize = staticmethod(_methods.denormalize)
    pt_to_numpy = staticmethod(_methods.pt_to_numpy)
    numpy_to_pil = staticmethod(_methods.numpy_to_pil)


class VaeImageProcessorLDM3D(VaeImageProcessor, stock.VaeImageProcessorLDM3D):
    """A drop-in for diffusers' processor of images with depth."""

    postprocess = _depth.postprocess
    preprocess = _depth.preprocess  # type: ignore[assignment]  # as in diffusers
    numpy_to_pil = staticmethod(_depth.numpy_to_pil)
    numpy_to_depth = _depth.numpy_to_depth


class IPAdapterMaskProcessor(VaeImageProcessor, stock.IPAdapterMaskProcessor):
    """A drop-in for diffusers' processor of IP-Adapter masks."""

    downsample = staticmethod(_methods.downsample)


class PixArtImageProcessor(VaeImageProcessor, stock.PixArtImageProcessor):
    """A drop-in for diffusers' PixArt processor."""


class VideoProcessor(VaeImageProcessor, stock_video.VideoProcessor):
    """A drop-in for ``diffusers.video_processor.VideoProcessor``."""

    preprocess_video = _methods.preprocess_video
    postprocess_video = _methods.postprocess_video


class InpaintProcessor(stock.InpaintProcessor):
    """A drop-in for diffusers' processor of images with masks."""

    _image_processor: Any
    _mask_processor: Any

    # wraps: from_config reads the names of the config from the signature.
    @functools.wraps(stock.InpaintProcessor.__init__)  # type: ignore[misc]  # it is untyped
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._image_processor = VaeImageProcessor.from_config(self._image_processor.config)
        self._mask_processor = VaeImageProcessor.from_config(self._mask_processor.config)
