"""A batch as pictures, bytes, arrays or tensors; each also tells whether all of it looks finite."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from PIL import Image

from ovtensor.diffusers import _fused, _pixels
from ovtensor.errors import InputError

if TYPE_CHECKING:
    from ovtensor.diffusers._batch import Batch

__all__ = ["array_to_pil", "to_array", "to_pil", "to_tensor", "to_uint8"]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# What `Image.frombuffer` calls; see `_picture_of_words`.
_map_buffer = getattr(Image.core, "map_buffer", None)  # type: ignore[attr-defined]
# Modes whose pixels are words in memory of ours. Before Pillow 13 exporting a picture that does not
# own its memory to Arrow read a null pointer.
_WORD_MODES: tuple[str, ...] = ("RGB", "RGBA")
_before_13 = int(PIL.__version__.split(".")[0]) < 13
if sys.byteorder != "little" or _before_13 or _map_buffer is None:
    _WORD_MODES = ()
_MOST_WORDS = 2**29 - 1  # of which Pillow maps the bytes


def to_pil(batch: Batch) -> tuple[list[Image.Image], bool]:
    """Make one picture of each image.

    Notes
    -----
    Colours are written to what becomes Pillow's memory. A grey picture shares its bytes with
    Pillow, as one of diffusers does: Pillow copies it before it writes.
    """
    pictures, finite = [], True
    for given, denormalize in zip(batch.images, batch.denormalize, strict=True):
        image = given.cpu()
        _, height, width = image.shape
        mode = _mode(len(image))
        if mode in _WORD_MODES and _is_planar(image) and height * width <= _MOST_WORDS:
            words = np.empty((height, width), np.uint32)
            finite = _pixels.to_words(image, words, denormalize=denormalize) and finite
            picture = _picture_of_words(words, mode)
        else:
            pixels = _bytes_like(image)
            finite = _pixels.to_bytes(image, pixels, denormalize=denormalize) and finite
            picture = _picture(pixels.numpy(), mode)
        pictures.append(picture)
    return pictures, finite


def to_uint8(batch: Batch) -> tuple[np.ndarray[Any, Any], bool]:
    """Make one array ``(batch, height, width, channels)`` of uint8 in memory of its own."""
    channels, height, width = batch.same_shape("uint8")
    out = torch.empty(len(batch.images), height, width, channels, dtype=torch.uint8, device="cpu")
    finite, planar = True, None
    for given, denormalize, target in zip(
        batch.images, batch.denormalize, out.unbind(0), strict=True
    ):
        image = given.cpu()
        pixels = target.permute(2, 0, 1)
        if image.permute(1, 2, 0).is_contiguous():
            finite = _pixels.to_bytes(image, pixels, denormalize=denormalize) and finite
            continue
        if _is_planar(image) and denormalize and _fused.to_pixels(image, target.numpy()):
            continue
        # Bytes to planes and then planes to pixels: quicker than to scatter the wide values.
        if planar is None:
            planar = torch.empty(batch.images[0].shape, dtype=torch.uint8, device="cpu")
        finite = _pixels.to_bytes(image, planar, denormalize=denormalize) and finite
        for channel, plane in zip(pixels, planar, strict=True):
            channel.copy_(plane)
    return out.numpy(), finite


def to_tensor(batch: Batch) -> tuple[torch.Tensor, bool]:
    """Make one tensor ``(batch, channels, height, width)`` of the images' own dtype and device."""
    first = batch.images[0]
    computed = any(batch.denormalize) and not first.dtype.is_floating_point
    dtype = torch.get_default_dtype() if computed else first.dtype
    return _unit_values(batch, "pt", dtype, first.device)


def to_array(batch: Batch) -> tuple[np.ndarray[Any, Any], bool]:
    """Make one array ``(batch, height, width, channels)`` of float32, in the batch's own order."""
    values, finite = _unit_values(batch, "np", torch.float32, torch.device("cpu"))
    return values.permute(0, 2, 3, 1).numpy(), finite


def _unit_values(
    batch: Batch, wanted: str, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, bool]:
    """Make one tensor of values in [0, 1].

    As in diffusers, a batch that came as one tensor and is not denormalized is returned as it is,
    in the caller's own memory where dtype and device allow.
    """
    shape, whole = batch.same_shape(wanted), batch.whole
    if whole is not None and not any(batch.denormalize):
        return whole.to(device, dtype), all(map(_pixels.looks_finite, batch.images))
    if whole is not None:
        out = torch.empty_like(whole, dtype=dtype, device=device)
    else:
        out = torch.empty((len(batch.images), *shape), dtype=dtype, device=device)
    finite = True
    for image, denormalize, target in zip(
        batch.images, batch.denormalize, out.unbind(0), strict=True
    ):
        if denormalize:
            finite = _pixels.to_unit(image.to(device), target) and finite
        else:
            finite = _pixels.looks_finite(target.copy_(image)) and finite
    return out, finite


def array_to_pil(images: np.ndarray[Any, Any]) -> tuple[list[Image.Image], bool]:
    """Make pictures of ``(batch, height, width, channels)``, of a floating dtype, in [0, 1]."""
    pictures, finite = [], True
    for image in images:
        mode = _mode(image.shape[-1])
        planes = image.transpose(2, 0, 1)
        values = planes if planes.flags.c_contiguous else np.ascontiguousarray(image)
        pixels = np.empty(values.shape, np.uint8)
        finite = _pixels.unit_to_bytes(values.reshape(-1), pixels.reshape(-1)) and finite
        is_planar = values is planes
        pictures.append(_picture(pixels if is_planar else pixels.transpose(2, 0, 1), mode))
    return pictures, finite


def _is_planar(image: torch.Tensor) -> bool:
    return image.stride()[1:] == (image.shape[2], 1)


def _bytes_like(image: torch.Tensor) -> torch.Tensor:
    """Allocate bytes for `image`: channels-last if it is, else planar."""
    channels, height, width = image.shape
    if image.permute(1, 2, 0).is_contiguous() and channels > 1:
        rows = torch.empty(height, width, channels, dtype=torch.uint8, device="cpu")
        return rows.permute(2, 0, 1)
    return torch.empty(image.shape, dtype=torch.uint8, device="cpu")


def _mode(channels: int) -> str:
    if channels not in _MODES:
        raise InputError(
            f"an image of {channels} channels has no Pillow mode: wanted 1 to 4; "
            "pass latents through the VAE first, or ask for output_type 'np' or 'pt'"
        )
    return _MODES[channels]


def _picture(pixels: np.ndarray[Any, Any], mode: str) -> Image.Image:
    """Hand bytes ``(channels, height, width)``, planar or channels-last, to Pillow."""
    channels, height, width = pixels.shape
    if channels > 1 and not pixels.flags.c_contiguous:
        return Image.fromarray(pixels.transpose(1, 2, 0))
    bands = [
        Image.frombuffer("L", (width, height), plane.reshape(-1), "raw", "L", 0, 1)
        for plane in pixels
    ]
    return bands[0] if mode == "L" else Image.merge(mode, bands)


def _picture_of_words(words: np.ndarray[Any, Any], mode: str) -> Image.Image:
    """Make the picture whose memory `words`, uint32 ``(height, width)``, are from now on.

    `Image.frombuffer` refuses RGB, which is stored alike, and marks what it makes as read-only,
    for somebody else may own the memory: writing through ``picture.load()`` would be an error.
    """
    size = words.shape[1], words.shape[0]
    assert _map_buffer is not None
    mapped = _map_buffer(words, size, "raw", 0, (mode, 0, 1))
    return Image.new(mode, (0, 0))._new(mapped)  # noqa: SLF001
