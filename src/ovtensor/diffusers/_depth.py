"""The methods of diffusers' LDM3D processor: images of colours and depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ovtensor.diffusers import _outputs, _pixels, _unpatched
from ovtensor.diffusers._batch import Batch, for_preprocess
from ovtensor.diffusers._census import report
from ovtensor.diffusers._methods import pictures_of_array, policy_of
from ovtensor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovtensor.nonfinite import Policy

__all__ = ["numpy_to_depth", "numpy_to_pil", "postprocess", "preprocess"]

_Own = _unpatched.VaeImageProcessorLDM3D


def postprocess(
    self: Any,
    image: Any,
    output_type: str = "pil",
    do_denormalize: Sequence[bool] | None = None,
    *,
    nonfinite: Policy | None = None,
) -> Any:
    """Turn decoded images of 4 or 6 channels into pairs of colours and depth.

    Parameters
    ----------
    image, output_type, do_denormalize, nonfinite
        As for `VaeImageProcessor`; ``"pt"`` and ``"latent"`` are refused, as in diffusers.

    Returns
    -------
    tuple
        ``(colours, depth)``; for ``"uint8"``, arrays ``(batch, height, width, 3)`` of uint8 and
        ``(batch, height, width)`` of uint16: the fourth channel times 65535, or the fifth and
        sixth as its high and low byte.
    """
    batch = Batch.of(image, do_denormalize, self.config.do_normalize)
    policy = policy_of(self, nonfinite)
    if not all(map(_pixels.looks_finite, batch.images)):
        report(batch.images, policy)
    if output_type != "uint8":
        return _Own.postprocess(self, batch.as_one(output_type), output_type, do_denormalize)
    colours, depth = (
        Batch(tuple(image[part] for image in batch.images), None, batch.denormalize)
        for part in (slice(3), slice(3, None))
    )
    return _outputs.to_uint8(colours)[0], _depth(_outputs.to_array(depth)[0])


def preprocess(self: Any, rgb: Any, depth: Any, *args: Any, **kwargs: Any) -> Any:
    """Prepare colours and depth as diffusers does, from any array-like object."""
    return _Own.preprocess(self, for_preprocess(rgb), for_preprocess(depth), *args, **kwargs)


def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
    """Turn the colours of ``(batch, height, width, 4 or 6)`` into pictures."""
    return pictures_of_array(images, _Own.numpy_to_pil, channels=3)


def numpy_to_depth(self: Any, images: np.ndarray[Any, Any]) -> list[Image.Image]:  # noqa: ARG001
    """Turn the depth of ``(batch, height, width, 4 or 6)`` in [0, 1] into pictures of 16 bits.

    Notes
    -----
    diffusers' own asks Pillow for what Pillow 13 refuses, and for six channels drops the high byte.
    """
    images = images if images.ndim == 4 else images[None]
    return [Image.fromarray(depth) for depth in _depth(images[..., 3:])]


def _depth(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Compute depth as uint16 from what comes after the three channels of colour."""
    channels = images.shape[-1]
    if channels == 1:
        return (images[..., 0] * 65535.0).astype(np.uint16)
    if channels == 3:
        levels = (images[..., 1:] * 255).round().astype(np.uint8).astype(np.uint16)
        return levels[..., 0] * np.uint16(256) + levels[..., 1]
    raise InputError(f"got {channels + 3} channels, wanted 4 or 6: three of colour and the depth")
