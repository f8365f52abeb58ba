"""What happens when a decoded image holds NaN or infinity: the policy, and the words for it."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ovtensor.diffusers import _pixels
from ovtensor.errors import InputError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ENVIRONMENT",
    "Policy",
    "checked_policy",
    "policy_in_force",
    "report",
    "set_process_policy",
]

Policy = Literal["raise", "warn", "ignore"]
_POLICIES: tuple[Policy, ...] = get_args(Policy)
ENVIRONMENT = "OVTENSOR_NONFINITE"

_process_policy: Policy | None = None  # the word of the patch in force


def checked_policy(value: str, origin: str) -> Policy:
    """Return `value` if it is a policy; `origin` names it in the error otherwise."""
    if value not in _POLICIES:
        raise InputError(f"{origin} is {value!r}; it must be 'raise', 'warn' or 'ignore'")
    return value


def set_process_policy(policy: Policy | None) -> None:
    """Set what holds where no argument says otherwise; None leaves it to the environment."""
    global _process_policy  # noqa: PLW0603  # one for the process, as the patch itself
    _process_policy = policy


def policy_in_force(*candidates: str | None) -> Policy:
    """Choose the first of candidates, the patch's word, the environment's word and ``"raise"``."""
    for candidate in (*candidates, _process_policy):
        if candidate is not None:
            return checked_policy(candidate, "nonfinite")
    return checked_policy(os.environ.get(ENVIRONMENT) or "raise", ENVIRONMENT)


def report(images: Sequence[torch.Tensor], policy: Policy, *, stacklevel: int = 3) -> None:
    """Count what is not finite in a batch, and raise or warn if anything is.

    Parameters
    ----------
    images : sequence of torch.Tensor
        The batch before any arithmetic, each ``(channels, height, width)``.
    policy : {"raise", "warn", "ignore"}
        ``"ignore"`` returns at once.
    stacklevel : int
        Where a warning points to, as in `warnings.warn`.

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
    if policy == "raise":
        raise NonFiniteError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


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
