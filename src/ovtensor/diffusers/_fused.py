"""The pixels of a colour picture in one pass over its memory.

torch runs the operators of `_pixels` one after another. OpenVINO's CPU plugin makes one loop of
element-wise operators on float32 whose shape is fixed. Such a loop writes float32 and nothing else,
and yet it can write words of four bytes:

- A pixel is ``v = red + 256 * green + 65536 * blue``, below 2**24 and so exact in float32.
- Below 2**23, the bits of ``v + 2**23`` are ``0x4B000000 + v``; from there on, those of ``2 * v``
  are. The larger of both is the right one each time.
- The sum of the channels minus itself is 0, and NaN where it is not finite. Adding it to v leaves a
  word as it is, or makes it larger than that of any pixel.

No step rounds in another way if a multiplication and an addition become one instruction. What is
left to do is to look for the largest word, and to make 255 of the highest byte or to drop it.
"""

from __future__ import annotations

import functools
import itertools
import platform
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ovtensor._core import core

if TYPE_CHECKING:
    from collections.abc import Callable

    import openvino as ov

__all__ = ["to_pixels", "to_words"]

# What minimum and maximum make of NaN is the processor's, and so is the order of bytes.
_TRIED = platform.machine().lower() in ("x86_64", "amd64")
# Pixels that a kernel computes at a time: OpenVINO keeps 3 MiB for as many values of the channels.
# Half of it takes a third longer. Images of fewer pixels are left to the operators.
_SHAPE = (64, 4096)
BLOCK = 64 * 4096
_LARGEST = np.uint32(0x4BFFFFFF)
_TO_OPAQUE = np.uint32(0xFF000000 - 0x4B000000)


def to_words(image: torch.Tensor, out: np.ndarray[Any, Any]) -> bool:
    """Write the pixels of one image in [-1, 1] as Pillow stores RGB, if that can be done so.

    Parameters
    ----------
    image : torch.Tensor
        ``(channels, height, width)``, on the CPU, with dense planes; not modified.
    out : numpy.ndarray
        uint32 ``(height, width)``, contiguous. Red is the lowest byte, the highest is 255.

    Returns
    -------
    bool
        False if `out` is not what it should be: there is no kernel for such an image, or a value
        may not be finite.

    Notes
    -----
    OpenVINO is not imported for this. The kernel takes 40 ms to compile, once.
    """
    kernel = _kernel_for(image)
    if kernel is None:
        return False
    flat = out.reshape(-1)

    def finish(start: int, words: np.ndarray[Any, Any]) -> bool:
        # What the last block, which runs first, shares with the one before is finished there.
        words = words[-start % BLOCK :]
        finite = _is_finite(words)
        np.add(words, _TO_OPAQUE, out=words)
        return finite

    return kernel(image, lambda start: flat[start : start + BLOCK], finish)


def to_pixels(image: torch.Tensor, out: np.ndarray[Any, Any]) -> bool:
    """Write them as bytes instead, to a contiguous uint8 ``(height, width, 3)``."""
    kernel = _kernel_for(image)
    if kernel is None:
        return False
    flat = out.reshape(-1)
    scratch = itertools.cycle(np.empty((2, BLOCK), np.uint32))

    def finish(start: int, words: np.ndarray[Any, Any]) -> bool:
        _pack(words, flat[3 * start : 3 * (start + BLOCK)])
        return _is_finite(words)

    return kernel(image, lambda _: next(scratch), finish)


def _pack(words: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """Write all bytes of words but the highest.

    One after another, three bytes apart: each word covers the highest byte of the one before. A
    copy of three bytes of each would take three times as long.
    """
    np.copyto(np.ndarray(len(words) - 1, np.uint32, out, strides=(3,)), words[:-1])
    out[-3:] = words[-1:].view(np.uint8)[:3]


def _kernel_for(image: torch.Tensor) -> _Kernel | None:
    channels, height, width = image.shape
    if (
        image.dtype is not torch.float32
        or channels != 3
        or height * width < BLOCK
        or "openvino" not in sys.modules
        or not _TRIED
    ):
        return None
    return _kernel(torch.get_num_threads())


@functools.lru_cache(maxsize=4)
def _kernel(threads: int) -> _Kernel | None:
    try:
        return _Kernel(threads)
    except RuntimeError:  # an OpenVINO without its CPU plugin
        return None


class _Kernel:
    """What OpenVINO compiled for `BLOCK` pixels, and the pairs of requests that run it."""

    __slots__ = ("_compiled", "_idle")

    def __init__(self, threads: int) -> None:
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,  # requests run one after another
        }
        self._compiled = core().compile_model(_model(), "CPU", properties)
        self._idle: list[list[ov.InferRequest]] = []

    def __call__(
        self,
        image: torch.Tensor,
        place: Callable[[int], np.ndarray[Any, Any]],
        finish: Callable[[int, np.ndarray[Any, Any]], bool],
    ) -> bool:
        """Make the words of an image, a block at a time; False if any value may not be finite.

        Those of the block that begins at a pixel go to the ``place`` for it, and whoever asks
        ``finish``es them, and says whether all are finite.
        """
        try:
            pair = self._idle.pop()
        except IndexError:
            pair = [self._compiled.create_infer_request() for _ in range(2)]
        channels = [channel.reshape(-1) for channel in image.numpy()]
        last = channels[0].size - BLOCK
        # The last block ends where the picture does. It runs first: what it shares with the one
        # before is then written again by that one.
        starts = [last, *range(0, last, BLOCK)]
        words: list[np.ndarray[Any, Any]] = []
        finite = True
        try:
            for index, start in enumerate(starts):
                words.append(place(start))
                arrays = [*(channel[start : start + BLOCK] for channel in channels), words[-1]]
                _bind(pair[index % 2], arrays)
                pair[index % 2].start_async()  # infer() would leave all to the calling thread
                if index:  # while one request computes, the words of the other are finished
                    pair[1 - index % 2].wait()
                    finite = finish(starts[index - 1], words[-2]) and finite
            pair[index % 2].wait()
        except BaseException:  # such as Ctrl-C
            for request in pair:  # which may still read and write memory that goes now
                request.wait()
            raise
        finite = finish(start, words[-1]) and finite
        self._idle.append(pair)
        return finite


def _bind(request: ov.InferRequest, arrays: list[np.ndarray[Any, Any]]) -> None:
    """Have a request read and write memory that it does not keep alive."""
    import openvino as ov

    views = [array.view(np.float32).reshape(_SHAPE) for array in arrays]
    *inputs, output = (ov.Tensor(view, shared_memory=True) for view in views)
    for index, tensor in enumerate(inputs):
        request.set_input_tensor(index, tensor)
    request.set_output_tensor(output)


def _is_finite(words: np.ndarray[Any, Any]) -> bool:
    return bool(words.max() <= _LARGEST)


def _model() -> ov.Model:
    import openvino as ov
    from openvino import opset13 as ops

    def number(value: float) -> ov.Node:
        return ops.constant(np.float32(value))

    def level(channel: ov.Node) -> ov.Node:
        unit = ops.add(ops.multiply(channel, number(0.5)), number(0.5))
        return ops.round(ops.multiply(ops.clamp(unit, 0.0, 1.0), number(255)), "half_to_even")

    channels = [ops.parameter(_SHAPE, np.float32) for _ in range(3)]
    red, green, blue = map(level, channels)
    value = ops.add(ops.multiply(green, number(2**8)), red)
    value = ops.add(ops.multiply(blue, number(2**16)), value)
    total = ops.add(ops.add(channels[0], channels[1]), channels[2])
    value = ops.add(value, ops.subtract(total, total))
    word = ops.maximum(ops.add(value, number(2**23)), ops.add(value, value))
    return ov.Model([word], channels, "pixels")
