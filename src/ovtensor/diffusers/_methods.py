"""The methods of diffusers' image processors, once more and faster, as plain functions.

:mod:`ovtensor.diffusers.image_processor` builds subclasses from them and
:mod:`ovtensor.diffusers.patch` puts them into diffusers' own classes; `self` is any processor.
What a subclass of somebody else overrides is respected: then diffusers' own code runs, around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ovtensor.diffusers import _outputs, _unpatched
from ovtensor.diffusers._batch import Batch, as_tensor, for_preprocess
from ovtensor.diffusers._census import report
from ovtensor.errors import InputError
from ovtensor.nonfinite import policy_in_force
from ovtensor.tensors.convert import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from ovtensor.nonfinite import Policy

_Own = _unpatched.VaeImageProcessor
_OwnVideo = _unpatched.VideoProcessor
_DENORMALIZE_CONDITIONALLY = _Own._denormalize_conditionally.__code__  # noqa: SLF001

_OUTPUTS = {
    "pil": _outputs.to_pil,
    "uint8": _outputs.to_uint8,
    "np": _outputs.to_array,
    "pt": _outputs.to_tensor,
}


def postprocess(
    self: Any,
    image: Any,
    output_type: str = "pil",
    do_denormalize: Sequence[bool] | None = None,
    *,
    nonfinite: Policy | None = None,
) -> Any:
    """Turn decoded images into pictures, arrays or tensors.

    Parameters
    ----------
    image : tensor-like or list of tensor-like
        Whatever `ovtensor.to_torch` reads: ``(batch, channels, height, width)``, or a list of such
        or of ``(channels, height, width)``; of any real dtype, with values in [-1, 1] where they
        are denormalized, else in [0, 1]. Not modified.
    output_type : {"pil", "np", "pt", "latent", "uint8"}
        ``"uint8"`` is a ``(batch, height, width, channels)`` array for an encoder; the others are
        those of diffusers.
    do_denormalize : sequence of bool, optional
        For each image; None takes ``config.do_normalize`` for all.
    nonfinite : {"raise", "warn", "ignore"}, optional
        What NaN or infinity does. None takes, in this order, the processor's own attribute
        ``nonfinite``, the argument of `patch_diffusers`, the environment variable
        ``OVTENSOR_NONFINITE`` and ``"raise"``.

    Returns
    -------
    list of PIL.Image.Image, numpy.ndarray or torch.Tensor
        Every value as diffusers computes it. The caller owns it, with diffusers' two exceptions:
        ``"latent"``, and ``"pt"`` or ``"np"`` of images that are not denormalized, can be the
        caller's own memory.

    Raises
    ------
    DatalessTensorError
        If a tensor has shape and dtype but no values: fake or meta.
    NonFiniteError
        If a value is NaN or infinite and the policy is ``"raise"``.
    InputError
        If the batch is empty or of a wrong shape.
    """
    if output_type == "latent" and isinstance(image, torch.Tensor):
        return image
    if output_type == "latent":
        return Batch.of(image, None, default=False).as_one(output_type)
    if output_type == "pt" and _needs_gradient(image):
        return _Own.postprocess(self, image, output_type, do_denormalize)
    if output_type == "pt" and _is_odd(image):
        # diffusers takes any shape here: all it looks at is the first axis, that of the images.
        rows = as_tensor(image).reshape(len(image), 1, 1, -1)
        done = postprocess(self, rows, "pt", do_denormalize, nonfinite=nonfinite)
        return done.reshape(image.shape)
    batch = Batch.of(image, do_denormalize, self.config.do_normalize)
    policy = policy_of(self, nonfinite)
    convert = _OUTPUTS.get(output_type)
    if convert is None or _has_hooks_of_its_own(self):
        report(batch.images, policy)
        return _around_hooks(self, batch, output_type, do_denormalize)
    converted, looks_finite = convert(batch)
    if not looks_finite:
        report(batch.images, policy)
    return converted


def preprocess(self: Any, image: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Prepare images for a model as diffusers does, from any tensor-like object.

    Parameters
    ----------
    image : tensor-like, PIL.Image.Image, or a list of such
        Tensors are ``(batch, channels, height, width)``, NumPy arrays
        ``(batch, height, width, channels)``, both in [0, 1].
    *args, **kwargs
        Those of diffusers' `preprocess`.

    Returns
    -------
    torch.Tensor
        ``(batch, channels, height, width)``, in [-1, 1] if the config says ``do_normalize``.
    """
    prepared: torch.Tensor = _Own.preprocess(self, for_preprocess(image), *args, **kwargs)
    return prepared


def denormalize(images: Any) -> Any:
    """Map [-1, 1] to [0, 1] and clamp; the result has the dtype of `images` and its own memory."""
    if (
        type(images) is not torch.Tensor
        or images.device.type == "meta"
        or not images.dtype.is_floating_point
        or _needs_gradient(images)
    ):
        return _Own.denormalize(images)
    half = torch.tensor(0.5, dtype=images.dtype, device="cpu")
    return torch.add(half, images, alpha=0.5).clamp_(0, 1)


def pt_to_numpy(images: Any) -> np.ndarray[Any, Any]:
    """Turn ``(batch, channels, height, width)`` into a float32 array with the channels last."""
    array: np.ndarray[Any, Any] = _Own.pt_to_numpy(as_tensor(images))
    return array


def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
    """Turn ``(batch, height, width, channels)`` in [0, 1] into pictures; see `postprocess`."""
    return pictures_of_array(images, _Own.numpy_to_pil)


def plain_numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
    """Do the work of ``diffusers.utils.pil_utils.numpy_to_pil``."""
    return pictures_of_array(images, _unpatched.numpy_to_pil)


def plain_pt_to_pil(images: Any) -> list[Image.Image]:
    """Do the work of ``diffusers.utils.pil_utils.pt_to_pil`` on any tensor-like batch."""
    batch = Batch.of(images, None, default=True)
    pictures, looks_finite = _outputs.to_pil(batch)
    if not looks_finite:
        report(batch.images, policy_in_force())
    return pictures


def preprocess_video(self: Any, video: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Prepare videos as diffusers does, from any tensor-like object."""
    prepared: torch.Tensor = _OwnVideo.preprocess_video(
        self, for_preprocess(video), *args, **kwargs
    )
    return prepared


def postprocess_video(self: Any, video: Any, output_type: str = "np", **kwargs: Any) -> Any:
    """Turn decoded videos ``(batch, channels, frames, height, width)`` into frames.

    Parameters
    ----------
    video : tensor-like
        Whatever `ovtensor.to_torch` reads.
    output_type : {"np", "pt", "pil", "uint8"}
        ``"uint8"`` is an array ``(batch, frames, height, width, channels)``.
    **kwargs
        Those of `postprocess`.

    Returns
    -------
    numpy.ndarray, torch.Tensor, or list of lists of PIL.Image.Image
        As in diffusers, ``(batch, frames, ...)``.
    """
    tensor = video if _needs_gradient(video) else as_tensor(video)
    if tensor.ndim != 5 or tensor.numel() == 0:
        raise InputError(
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}, wanted videos (batch, channels, "
            "frames, height, width) with no dimension of 0; index one video with [None]",
            tensor=describe(tensor),
        )
    if output_type != "uint8":
        return _OwnVideo.postprocess_video(self, tensor, output_type, **kwargs)
    frames = [self.postprocess(one.permute(1, 0, 2, 3), "uint8", **kwargs) for one in tensor]
    return np.stack(frames) if len(frames) > 1 else frames[0][None]


def downsample(mask: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Shrink masks ``(masks, height, width)`` for attention as diffusers does."""
    tensor = mask if _needs_gradient(mask) else as_tensor(mask)
    result: torch.Tensor = _unpatched.IPAdapterMaskProcessor.downsample(tensor, *args, **kwargs)
    return result


def _has_hooks_of_its_own(processor: Any) -> bool:
    """Tell whether a subclass changed one of the steps that `postprocess` does in one go."""
    conditionally = type(processor)._denormalize_conditionally  # noqa: SLF001
    return not (
        getattr(conditionally, "__code__", None) == _DENORMALIZE_CONDITIONALLY
        and processor.denormalize is denormalize
        and processor.pt_to_numpy is pt_to_numpy
        and processor.numpy_to_pil is numpy_to_pil
    )


def _around_hooks(
    self: Any, batch: Batch, output_type: str, do_denormalize: Sequence[bool] | None
) -> Any:
    if output_type != "uint8":
        return _Own.postprocess(self, batch.as_one(output_type), output_type, do_denormalize)
    pictures = _Own.postprocess(self, batch.as_one("pil"), "pil", do_denormalize)
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return pixels if pixels.ndim == 4 else pixels[..., None]


def pictures_of_array(images: Any, original: Any, channels: int | None = None) -> list[Image.Image]:
    """Make pictures of the first `channels` of an array, or leave odd ones to `original`."""
    regular = isinstance(images, np.ndarray) and images.ndim in (3, 4) and images.size > 0
    if not regular or images.dtype.kind != "f" or not 1 <= images.shape[-1] <= 6:
        pictures: list[Image.Image] = original(images)  # its answer, or its error
        return pictures
    images = images if images.ndim == 4 else images[None]
    seen = images if images.shape[-1] == 1 else images[..., :channels]
    pictures, looks_finite = _outputs.array_to_pil(seen)
    if not looks_finite:
        planes = torch.from_numpy(np.array(seen.transpose(0, 3, 1, 2)))
        report(planes.unbind(0), policy_in_force())
    return pictures


def policy_of(processor: Any, argument: Policy | None) -> Policy:
    """Choose what NaN does: the word of the call, of the processor, or what is in force."""
    own = getattr(processor, "nonfinite", None)
    return policy_in_force(argument, own)


def _is_odd(image: Any) -> bool:
    return isinstance(image, torch.Tensor) and image.ndim not in (0, 4) and image.numel() > 0


def _needs_gradient(image: Any) -> bool:
    return isinstance(image, torch.Tensor) and image.requires_grad and torch.is_grad_enabled()
