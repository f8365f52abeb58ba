"""Keeping what is expensive to make: converted and compiled models."""

from __future__ import annotations

import os

from ovtensor.cache.inventory import CachedModel
from ovtensor.cache.model_cache import ModelCache
from ovtensor.cache.store import Entry, ScratchStore, Store
from ovtensor.errors import InputError

__all__ = ["CachedModel", "Entry", "ModelCache", "ScratchStore", "Store", "store_of"]


def store_of(cache: bool | str | os.PathLike[str] | ModelCache | None) -> Store:
    """Return the store that a session's argument means; None and False mean no cache.

    Raises
    ------
    InputError
        If it is none of a bool, a path, a `ModelCache` and None.
    """
    if cache is None or cache is False:
        return ScratchStore()
    if cache is True:
        return ModelCache()
    if isinstance(cache, ModelCache):
        return cache
    if isinstance(cache, str | os.PathLike):
        return ModelCache(cache)
    raise InputError(
        f"cache={cache!r} is no cache; give True, the path of a folder, or an ovtensor.ModelCache"
    )
