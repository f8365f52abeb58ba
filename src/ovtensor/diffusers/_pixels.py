"""Decoded images to pixels: diffusers' arithmetic, value for value, in blocks that fit the cache.

diffusers computes ``round(clamp(x * 0.5 + 0.5, 0, 1) * 255)`` with a new array for every operator.
Here the same rounding steps happen in place in one scratch block that stays in the cache:

- ``x * 0.5`` is exact, so ``0.5 + 0.5 * x`` in one operation rounds as the two do. (Where halving
  does round, among the subnormal numbers, the sum is 0.5 either way.)
- It rounds in the tensor's own dtype, as diffusers does; only then comes float32.
- Adding 2**23 to a float32 in [0, 255] rounds it half to even, as ``np.round`` does, and leaves the
  integer in the low byte of its bits. Integer operators go on from there: torch casts int32 to
  uint8 nine times as fast as float32, and adds the bytes of a pixel up to one word.

A sum of each block, while it is in the cache, tells whether all of it is finite: NaN and infinities
survive every addition. A sum can overflow over finite values too; what it reports is a suspicion.
So each function returns whether all values are known to be finite.

An image is ``(channels, height, width)``, of any real dtype and strides, and is not modified.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ovtensor.diffusers import _fused

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["blocks", "looks_finite", "to_bytes", "to_unit", "to_words", "unit_to_bytes"]

# Bytes of scratch: one plane of a 1024-pixel picture, at home in the last-level cache. Blocks the
# size of the L2 cache took 1.4 times as long on two cores: each operator costs some microseconds
# to start, whatever its size.
BLOCK_BYTES = 2**22
# The dtypes in which diffusers' arithmetic runs; of every other it computes in torch's default.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# As tensors, because each plain number would be wrapped in one at every block. Those of the CPU
# serve every device.
_HALF = {dtype: torch.tensor(0.5, dtype=dtype, device="cpu") for dtype in _FLOATS}
_LEVELS = torch.tensor(255.0, dtype=torch.float32, device="cpu")
_ROUND = torch.tensor(2.0**23, dtype=torch.float32, device="cpu")
# In a word, the first channel's 2**23 leaves 0x4B in the highest byte. What is added to the third
# channel makes that 255 for three channels, as in Pillow, and 0 for a fourth one to fill. Both are
# even, so that half of a level still goes to the even one.
_ROUND_IN_WORD = {
    3: _ROUND + torch.tensor([0.0, 0.0, 0xB400], device="cpu").view(3, 1, 1),
    4: _ROUND + torch.tensor([0.0, 0.0, 0xB500, 0.0], device="cpu").view(4, 1, 1),
}


def to_bytes(image: torch.Tensor, out: torch.Tensor, *, denormalize: bool) -> bool:
    """Write the pixels of one image as bytes.

    Parameters
    ----------
    image : torch.Tensor
        On the CPU. Values in [-1, 1] with `denormalize`, else in [0, 1].
    out : torch.Tensor
        uint8, of the shape of `image`; fastest with the memory order of `image`.
    denormalize : bool
        Whether to map [-1, 1] to [0, 1] and clamp first. Without it nothing is clamped, and values
        outside of [0, 1] wrap around as they do in NumPy's cast.
    """
    image = _computable(image)
    step = _step(image.dtype)
    scratch = _Scratch(image.dtype, min(step, image.numel()))
    finite = True
    for source, target in blocks(image, out, step):
        levels, block_is_finite = scratch.levels(source, denormalize=denormalize)
        if denormalize and block_is_finite:
            target.copy_(levels.add_(_ROUND).view(torch.int32))
        else:
            np.copyto(target.numpy(), _cast(levels, block_is_finite))
            finite = finite and block_is_finite
    return finite


def to_words(image: torch.Tensor, out: np.ndarray[Any, Any], *, denormalize: bool) -> bool:
    """Write the pixels of one image as Pillow stores colours: four bytes, red first.

    Parameters
    ----------
    image : torch.Tensor
        Of 3 or 4 channels, on the CPU; fastest with dense planes.
    out : numpy.ndarray
        uint32 ``(height, width)``, contiguous. A fourth byte that is no channel becomes 255.
    denormalize : bool
        As for `to_bytes`.

    Notes
    -----
    For processors that store the lowest byte of a word first.
    """
    if denormalize and _fused.to_words(image, out):
        return True
    image = _computable(image)
    channels, height, width = image.shape
    values = channels + 1  # of four bytes, for each pixel: its levels and its word
    pieces = math.ceil(height * width * values / _step(image.dtype))
    rows = math.ceil(height / pieces)
    scratch = _Scratch(image.dtype, channels * rows * width)
    finite = True
    targets = torch.split(torch.from_numpy(out.view(np.int32)), rows)
    for source, target in zip(torch.split(image, rows, 1), targets, strict=True):
        levels, block_is_finite = scratch.levels(source, denormalize=denormalize)
        if denormalize and block_is_finite:
            planes = levels.add_(_ROUND_IN_WORD[channels]).view(torch.int32).unbind(0)
            torch.add(planes[0], planes[1], alpha=2**8, out=target)
            for channel in range(2, channels):
                target.add_(planes[channel], alpha=2 ** (8 * channel))
        else:
            places = target.numpy().view(np.uint8).reshape(*target.shape, 4)
            places[..., channels:] = 255
            places[..., :channels] = _cast(levels, block_is_finite).transpose(1, 2, 0)
            finite = finite and block_is_finite
    return finite


def to_unit(image: torch.Tensor, out: torch.Tensor) -> bool:
    """Write ``clamp(image * 0.5 + 0.5, 0, 1)`` to `out`, of the image's dtype or of float32."""
    image = _computable(image)
    if out.dtype is image.dtype:
        return _fill_unit(image, out)
    own = image.new_empty(min(BLOCK_BYTES // image.dtype.itemsize, image.numel()))
    finite = True
    for source, target in blocks(image, out, own.numel()):
        x = _like(own, source)
        finite = _fill_unit(source, x) and finite
        target.copy_(x)
    return finite


def _fill_unit(source: torch.Tensor, out: torch.Tensor) -> bool:
    torch.add(_HALF[source.dtype], source, alpha=0.5, out=out)
    finite = _is_finite(out)
    out.clamp_(0.0, 1.0)
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
    return all(_is_finite(block) for block, _ in blocks(image, image, step))


def blocks(
    image: torch.Tensor, out: torch.Tensor, step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two tensors ``(channels, height, width)`` alike into views of at most `step` values.

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
        for c, d in zip(torch.split(a, rows), torch.split(b, rows), strict=True):
            yield from zip(torch.split(c, step, 1), torch.split(d, step, 1), strict=True)


def _step(dtype: torch.dtype) -> int:
    """Tell how many values of scratch fit in a block: float32, and `dtype` if that is another."""
    return max(1, BLOCK_BYTES // (4 if dtype is torch.float32 else 4 + dtype.itemsize))


class _Scratch:
    """One block in which levels from 0 to 255 are computed."""

    __slots__ = ("_half", "_own", "_work")

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        self._half = _HALF[dtype]
        self._work = torch.empty(size, dtype=torch.float32, device="cpu")
        is_float32 = dtype is torch.float32
        self._own = None if is_float32 else torch.empty(size, dtype=dtype, device="cpu")

    def levels(self, source: torch.Tensor, *, denormalize: bool) -> tuple[torch.Tensor, bool]:
        """Compute 255 times the values in [0, 1], not yet rounded, and whether all look finite."""
        x = _like(self._work, source)
        if not denormalize:
            x.copy_(source)
        elif self._own is None:
            torch.add(self._half, source, alpha=0.5, out=x)
        else:
            own = _like(self._own, source)
            x.copy_(torch.add(self._half, source, alpha=0.5, out=own))
        finite = _is_finite(x)
        if denormalize:
            # In diffusers this comes before float32. Clamping to two numbers that both dtypes
            # have commutes with the rounding between them.
            x.clamp_(0.0, 1.0)
        return x.mul_(_LEVELS), finite


def _cast(levels: torch.Tensor, finite: bool) -> np.ndarray[Any, Any]:
    """Round and cast as NumPy does.

    What that makes of NaN and of values that do not fit in a byte differs between processors, and
    between strided and contiguous memory; diffusers has contiguous memory here.
    """
    with np.errstate(invalid="warn" if finite else "ignore"):
        return levels.round_().numpy().astype(np.uint8)


def _computable(image: torch.Tensor) -> torch.Tensor:
    return image if image.dtype in _FLOATS else image.to(torch.get_default_dtype())


def _is_finite(block: torch.Tensor) -> bool:
    # Only float16 is summed in a wider type: bfloat16 has the range of float32.
    wide = torch.float32 if block.dtype is torch.float16 else block.dtype
    return math.isfinite(block.sum(dtype=wide).item())


def _like(scratch: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    return scratch[: block.numel()].view(block.shape)
