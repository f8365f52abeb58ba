"""Decoded images to pixels: diffusers' arithmetic, value for value, in blocks that fit the cache.

diffusers computes ``round(clamp(x * 0.5 + 0.5, 0, 1) * 255)`` with a new array for every operator.
Here the same rounding steps happen in place in one scratch block that stays in the cache:

- ``x * 0.5`` is exact, so ``0.5 + 0.5 * x`` in one operation rounds as the two do. (Where halving
  does round, among the subnormal numbers, the sum is 0.5 either way.)
- It rounds in the tensor's own dtype, as diffusers does; only then comes float32.
- Adding 2**23 to a float32 in [0, 255] rounds it half to even, as ``np.round`` does, and leaves the
  integer in the low byte of its bits. torch casts int32 to uint8 nine times as fast as float32.

A sum of each block, while it is in the cache, tells whether all of it is finite: NaN and infinities
survive every addition. A sum can overflow over finite values too; what it reports is a suspicion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["blocks", "looks_finite", "to_bytes", "to_unit", "unit_to_bytes"]

# Bytes of scratch: one plane of a 1024-pixel picture, at home in the last-level cache. Blocks the
# size of the L2 cache took 1.4 times as long on two cores: each of the six operators costs about
# 8 microseconds to start, whatever its size.
BLOCK_BYTES = 2**22
# The dtypes in which diffusers' arithmetic runs; of every other it computes in torch's default.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# As tensors, because each plain number would be wrapped in one at every block.
_ROUND = torch.tensor(2.0**23, dtype=torch.float32, device="cpu")
_LEVELS = torch.tensor(255.0, dtype=torch.float32, device="cpu")


def to_bytes(image: torch.Tensor, out: torch.Tensor, *, denormalize: bool) -> bool:
    """Write the pixels of one image as bytes.

    Parameters
    ----------
    image : torch.Tensor
        ``(channels, height, width)`` on the CPU, of any real dtype and any strides; not modified.
        Values in [-1, 1] with `denormalize`, else in [0, 1].
    out : torch.Tensor
        uint8, of the shape of `image`; fastest with the memory order of `image`.
    denormalize : bool
        Whether to map [-1, 1] to [0, 1] and clamp first. Without it nothing is clamped, and values
        outside of [0, 1] wrap around as they do in NumPy's cast.

    Returns
    -------
    bool
        False if there may be values that are not finite.
    """
    image = _computable(image)
    dtype = image.dtype
    is_float32 = dtype is torch.float32
    step = BLOCK_BYTES // (4 if is_float32 else 4 + dtype.itemsize)
    size = min(step, image.numel())
    work = torch.empty(size, dtype=torch.float32, device="cpu")
    own = work if is_float32 else torch.empty(size, dtype=dtype, device="cpu")
    half = torch.tensor(0.5, dtype=dtype, device="cpu")
    finite = True
    for source, target in blocks(image, out, step):
        x = _like(work, source)
        if not denormalize:
            x.copy_(source)
        elif is_float32:
            torch.add(half, source, alpha=0.5, out=x)
        else:
            x.copy_(torch.add(half, source, alpha=0.5, out=_like(own, source)))
        block_is_finite = math.isfinite(x.sum().item())
        finite = finite and block_is_finite
        if denormalize:
            # In diffusers this comes before float32. Clamping to two numbers that both dtypes
            # have commutes with the rounding between them.
            x.clamp_(0.0, 1.0)
        x.mul_(_LEVELS)
        if denormalize and block_is_finite:
            target.copy_(x.add_(_ROUND).view(torch.int32))
        else:
            # NumPy's own cast, because what it makes of NaN and of values that do not fit in a
            # byte differs between processors.
            with np.errstate(invalid="warn" if block_is_finite else "ignore"):
                np.copyto(target.numpy(), x.round_().numpy(), casting="unsafe")
    return finite


def to_unit(image: torch.Tensor, out: torch.Tensor) -> bool:
    """Write ``clamp(image * 0.5 + 0.5, 0, 1)`` to `out`.

    Parameters
    ----------
    image : torch.Tensor
        ``(channels, height, width)``, of any real dtype and strides, on any device; not modified.
    out : torch.Tensor
        Of the same shape and device; of the dtype of `image`, or float32.

    Returns
    -------
    bool
        False if there may be values that are not finite.
    """
    image = _computable(image)
    half = torch.tensor(0.5, dtype=image.dtype, device="cpu")  # a CPU scalar serves every device
    in_place = out.dtype is image.dtype
    step = image.numel() if in_place else BLOCK_BYTES // image.dtype.itemsize
    own = out if in_place else image.new_empty(min(step, image.numel()))
    finite = True
    for source, target in blocks(image, out, step):
        if in_place:
            torch.add(half, source, alpha=0.5, out=target)
        else:
            target.copy_(torch.add(half, source, alpha=0.5, out=_like(own, source)))
        finite = math.isfinite(target.sum(dtype=_wide(target)).item()) and finite
        target.clamp_(0.0, 1.0)
    return finite


def unit_to_bytes(values: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> bool:
    """Write ``round(values * 255)`` as bytes, computed in the dtype of `values` as NumPy does.

    Parameters
    ----------
    values : numpy.ndarray
        One-dimensional and contiguous, of a floating dtype, in [0, 1]; not modified. Other values
        wrap around.
    out : numpy.ndarray
        uint8, of the same shape.

    Returns
    -------
    bool
        False if there may be values that are not finite.
    """
    step = BLOCK_BYTES // values.itemsize
    work = np.empty(min(step, values.size), values.dtype)
    wide = np.float64 if values.itemsize > 4 else np.float32
    finite = True
    for start in range(0, values.size, step):
        block = values[start : start + step]
        x = work[: block.size]
        np.multiply(block, 255, out=x)
        with np.errstate(invalid="ignore", over="ignore"):
            block_is_finite = math.isfinite(x.sum(dtype=wide))
        with np.errstate(invalid="warn" if block_is_finite else "ignore"):
            np.copyto(out[start : start + step], np.rint(x, out=x), casting="unsafe")
        finite = finite and block_is_finite
    return finite


def looks_finite(image: torch.Tensor) -> bool:
    """Tell whether every value of `image` is finite; False may be a false alarm."""
    if not image.dtype.is_floating_point:
        return True
    image = _computable(image)
    step = BLOCK_BYTES // image.dtype.itemsize
    return all(
        math.isfinite(block.sum(dtype=_wide(block)).item())
        for block, _ in blocks(image, image, step)
    )


def blocks(
    image: torch.Tensor, out: torch.Tensor, step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two tensors ``(channels, height, width)`` alike into views of about `step` values.

    The views are flat where both have one dense memory order, planar or channels-last; of all
    other memory they are rows of a channel.
    """
    for order in ((0, 1, 2), (1, 2, 0)):
        a, b = image.permute(order), out.permute(order)
        if a.is_contiguous() and b.is_contiguous():
            yield from zip(
                torch.split(a.view(-1), step), torch.split(b.view(-1), step), strict=True
            )
            return
    rows = max(1, step // image.shape[-1])
    for a, b in zip(image, out, strict=True):
        yield from zip(torch.split(a, rows), torch.split(b, rows), strict=True)


def _computable(image: torch.Tensor) -> torch.Tensor:
    return image if image.dtype in _FLOATS else image.to(torch.get_default_dtype())


def _wide(image: torch.Tensor) -> torch.dtype:
    # Only float16 is summed in a wider type: bfloat16 has the range of float32.
    return torch.float32 if image.dtype is torch.float16 else image.dtype


def _like(scratch: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    return scratch[: block.numel()].view(block.shape)
