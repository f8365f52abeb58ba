"""Giving freed memory back to the operating system."""

from __future__ import annotations

import ctypes
import functools
import gc
from typing import Any


def give_back(*, collect: bool = True) -> None:
    """Collect garbage and return the pages that the allocator keeps for later, where it can.

    Looking for garbage takes a third of a second where torch and diffusers are imported.

    glibc keeps freed tensors of up to 32 MB in its heap: of a module of 420 MB it held 450 MB
    until it was asked. Other systems' allocators are not asked.
    """
    if collect:
        gc.collect()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
