"""The census of a decoded image that holds NaN or infinity, and the words for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ovtensor.diffusers import _pixels
from ovtensor.nonfinite import ENVIRONMENT, Policy, act
from ovtensor.tensors.convert import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["report"]


def report(images: Sequence[torch.Tensor], policy: Policy) -> None:
    """Count what is not finite in a batch, and raise or warn if anything is.

    Parameters
    ----------
    images : sequence of torch.Tensor
        The batch before any arithmetic, each ``(channels, height, width)``.
    policy : {"raise", "warn", "ignore"}
        ``"ignore"`` returns at once.

    Raises
    ------
    NonFiniteError
        With the count, the images concerned, the range of the other values, cause and cure.
    """
    if policy == "ignore":
        return
    broken: list[int] = []
    nans = infinities = 0
    low, high = float("inf"), float("-inf")
    for index, image in enumerate(images):
        image_nans, image_infinities, image_low, image_high = _census(image)
        if image_nans or image_infinities:
            broken.append(index)
        nans += image_nans
        infinities += image_infinities
        low, high = min(low, image_low), max(high, image_high)
    if not broken:
        return
    message = _message(images, broken, nans, infinities, (low, high))
    tensor = describe(images[broken[0]])
    act(policy, message, stacklevel=3, device=tensor.device, tensor=tensor)


def _census(image: torch.Tensor) -> tuple[int, int, float, float]:
    """Count NaN and infinities, and find the range of the rest, block by block."""
    nans = infinities = 0
    low, high = float("inf"), float("-inf")
    for block, _ in _pixels.blocks(image, image, _pixels.BLOCK_BYTES // 8):
        values = block.to(torch.float64)
        nans += int(values.isnan().sum())
        infinities += int(values.isinf().sum())
        rest = values[values.isfinite()]
        if rest.numel():
            low, high = min(low, rest.min().item()), max(high, rest.max().item())
    return nans, infinities, low, high


def _message(
    images: Sequence[torch.Tensor],
    broken: list[int],
    nans: int,
    infinities: int,
    finite_range: tuple[float, float],
) -> str:
    total = sum(image.numel() for image in images)
    count = nans + infinities
    low, high = finite_range
    rest = f"the rest lies in [{low:.6g}, {high:.6g}]" if low <= high else "no value is finite"
    first = images[0]
    which = f"image{'s' if len(broken) > 1 else ''} {', '.join(map(str, broken))}"
    return (
        f"{count} of {total} decoded values are not finite ({nans} NaN, {infinities} infinite), in "
        f"{which} of a batch of {len(images)} ({first.dtype}, each {tuple(first.shape)}, on "
        f"{first.device}); {rest}. As a picture they would be black or white. The usual cause is a "
        "VAE that overflowed in float16: decode in float32 or bfloat16 "
        "(pipe.vae.to(torch.float32)), or use a VAE that was made for float16. To have the picture "
        f"all the same, pass nonfinite='warn' or set {ENVIRONMENT}=warn."
    )
