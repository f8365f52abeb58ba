"""Giving freed memory back to the operating system."""

from __future__ import annotations

import ctypes
import functools
import gc
from typing import Any


def give_back() -> None:
    """Collect garbage and return the pages that the allocator keeps for later, where it can.

    After a model of gigabytes was freed, glibc holds on to much of it: half a gigabyte for a
    model of a hundred megabytes is common. Other systems' allocators give pages back by
    themselves.
    """
    gc.collect()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
