"""Keeping what is expensive to make: converted and compiled models."""

from ovtensor.cache.model_cache import CachedModel, ModelCache, store_of
from ovtensor.cache.store import Entry, ScratchStore, Store

__all__ = ["CachedModel", "Entry", "ModelCache", "ScratchStore", "Store", "store_of"]
