"""What the processors are given: any tensor-like batch, seen as images of one channel layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ovtensor.errors import ConversionError, DatalessTensorError, InputError
from ovtensor.tensors.convert import describe, to_numpy, to_torch
from ovtensor.tensors.registry import quick_by_type

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Batch", "as_tensor", "for_preprocess"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are post-processed together.

    Parameters
    ----------
    images : tuple of torch.Tensor
        Each ``(channels, height, width)``; views of what the caller gave wherever that can be.
    whole : torch.Tensor or None
        All of them as one tensor ``(batch, channels, height, width)`` if they came as one.
    denormalize : tuple of bool
        For each image, whether its values lie in [-1, 1] rather than [0, 1].
    """

    images: tuple[torch.Tensor, ...]
    whole: torch.Tensor | None
    denormalize: tuple[bool, ...]

    @classmethod
    def of(cls, given: Any, do_denormalize: Sequence[bool] | None, default: bool) -> Batch:
        """Read a batch from anything that `ovtensor.to_torch` reads, or a list of such.

        Parameters
        ----------
        given : tensor-like or list of tensor-like
            ``(batch, channels, height, width)``, or a list of such or of
            ``(channels, height, width)``.
        do_denormalize : sequence of bool, optional
            One for each image; more are ignored, as diffusers does.
        default : bool
            What to do with every image if `do_denormalize` is None.

        Raises
        ------
        DatalessTensorError
            If a tensor has no values.
        InputError
            If the batch is empty or a shape is wrong, or `do_denormalize` is too short.
        """
        whole = None
        if isinstance(given, (list, tuple)):
            parts = [as_tensor(part) for part in given]
            images = tuple(
                image
                for part in parts
                for image in ([part] if part.ndim == 3 else _four_dimensional(part).unbind(0))
            )
            empty = not images or any(image.numel() == 0 for image in images)
        else:
            whole = _four_dimensional(as_tensor(given))
            images = whole.unbind(0)
            empty = whole.numel() == 0
        if empty:
            shapes = [tuple(image.shape) for image in images] if whole is None else whole.shape
            raise InputError(
                f"there is no picture in an empty batch: got {tuple(shapes)}, wanted "
                "(batch, channels, height, width) with no dimension of 0"
            )
        if do_denormalize is None:
            flags = (default,) * len(images)
        else:
            try:
                flags = tuple(bool(flag) for flag in do_denormalize)[: len(images)]
            except TypeError:
                raise InputError(
                    f"do_denormalize={do_denormalize!r}: give one bool for each image, or None "
                    "for all alike"
                ) from None
            if len(flags) < len(images):
                raise InputError(
                    f"do_denormalize has {len(flags)} entries for a batch of {len(images)} images; "
                    "give one for each image, or None for all alike"
                )
        return cls(images, whole, flags)

    def as_one(self, wanted: str) -> torch.Tensor:
        """Return the batch as one tensor, for the output type `wanted`."""
        self.same_shape(wanted)
        return torch.stack(self.images) if self.whole is None else self.whole

    def same_shape(self, wanted: str) -> torch.Size:
        """Return the shape that all images share, or raise: `wanted` is the output type."""
        if self.whole is not None:
            return self.whole.shape[1:]
        shapes = {image.shape for image in self.images}
        if len(shapes) > 1:
            raise InputError(
                f"images of different shapes, {sorted(map(tuple, shapes))}, have no common array: "
                f"output_type {wanted!r} wants one shape here; use one call for each"
            )
        return self.images[0].shape


def as_tensor(given: Any) -> torch.Tensor:
    """Convert any tensor-like object to a plain tensor of real values, on its own device.

    Raises
    ------
    DatalessTensorError
        If it has no values, or a fake tensor mode would keep the result from having any.
    ConversionError
        If it is no tensor, or complex.
    """
    quick = quick_by_type.get(type(given)) if type(given) is torch.Tensor else None
    if quick is not None and (array := quick(given)) is not None:
        return _real(torch.from_numpy(array))
    plain = type(given) in (torch.Tensor, torch.nn.Parameter)
    # Memory of another device is not looked at here, and stays there until it has to move.
    elsewhere = plain and given.device.type not in ("cpu", "meta")
    tensor = given.detach() if elsewhere else to_torch(given)
    if type(tensor) is not torch.Tensor or type(torch.empty(0)) is not torch.Tensor:
        raise DatalessTensorError(
            f"a dispatch mode such as FakeTensorMode is active: what is computed from a "
            f"{type(given).__name__} of {tensor.dtype}, {tuple(tensor.shape)}, has no values; "
            "leave the mode before post-processing",
            device=str(tensor.device),
            tensor=describe(given),
        )
    return _real(tensor)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        raise ConversionError(
            f"{tensor.dtype} of shape {tuple(tensor.shape)} is no picture: wanted real values; "
            "pass its real part or its absolute value",
            tensor=describe(tensor),
        )
    return tensor


def for_preprocess(given: Any) -> Any:
    """Convert what diffusers' `preprocess` would refuse; leave pictures and plain tensors alone.

    Tensors stay tensors ``(batch, channels, height, width)`` with their device and their gradient,
    arrays stay arrays ``(batch, height, width, channels)``; everything else becomes a tensor.
    """
    if isinstance(given, (list, tuple)):
        return [for_preprocess(part) for part in given]
    if given is None or isinstance(given, Image.Image):
        return given
    if isinstance(given, np.ndarray):
        return to_numpy(given)
    if type(given) is torch.Tensor and given.device.type != "meta":
        return given
    return as_tensor(given)


def _four_dimensional(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim != 4:
        raise InputError(
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}, wanted (batch, channels, height, "
            "width); put one image in a list, or index it with [None]",
            tensor=describe(tensor),
        )
    return tensor
