"""Where the weights of a pipeline's component come from: a folder, or a loaded module."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ovtensor.engine.copies import with_dtype
from ovtensor.engine.devices import SIXTEEN_BIT
from ovtensor.engine.identity import structure, told, versions
from ovtensor.engine.process import EXCLUSIVE, handed_on
from ovtensor.engine.sources import ModuleSource
from ovtensor.errors import ModelError
from ovtensor.pipelines.adapters import has_adapters, merge_adapters
from ovtensor.pipelines.folders import WEIGHTS, read_json, variant_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Protocol

    from ovtensor.cache import Store
    from ovtensor.engine.sources import Source

    class ComponentSource(Source, Protocol):
        """The weights of one component."""

        @property
        def owned(self) -> bool:
            """Whether what ``load`` gives is the session's own."""
            ...

        @property
        def adapted(self) -> bool:
            """Whether ``load`` adds to the weights."""
            ...

        def in_memory(self, dtype: torch.dtype) -> bool:
            """Whether what ``load`` gives is owned and was computed, not just mapped."""
            ...


_LIBRARIES = ("diffusers", "transformers")


class FolderSource:
    """A component's folder in a saved pipeline; its library is imported when a module is wanted."""

    owned, adapted = True, False

    def __init__(self, name: str, folder: Path, library: str, kind: str) -> None:
        self._name = name
        self._folder = folder
        self._library, self.class_name = library, kind
        # What is imported only now is as it was installed.
        self._may_be_patched = library in sys.modules

    @functools.cached_property
    def _class(self) -> Any:
        return getattr(importlib.import_module(self._library), self.class_name)

    @functools.cached_property
    @handed_on()
    def meta_module(self) -> Any:
        """See :class:`Source`."""
        try:
            with EXCLUSIVE, torch.device("meta"):  # makes the layers and none of their weights
                if self._library == "diffusers":
                    module = self._class.from_config(self._class.load_config(self._folder))
                else:
                    config = self._class.config_class.from_pretrained(self._folder)
                    module = self._class(config)
        except Exception as error:
            raise ModelError(
                f"the config in {str(self._folder)!r} makes no {self.class_name}: {error}"
            ) from error
        return module.eval()

    @property
    def size(self) -> int:
        """See :class:`Source`; of files that are no safetensors at most, as if of 16 bits."""
        return self._stored[1]

    @property
    def sixteen_bit(self) -> torch.dtype | None:
        """See :class:`Source`."""
        dtype, _ = self._stored
        return dtype if dtype in SIXTEEN_BIT else None

    @functools.cached_property
    def _stored(self) -> tuple[torch.dtype | None, int]:
        """The dtype that all weights have in their files, and how many these are.

        The dtype is None for several, or where files are no safetensors: those are not looked into.
        """
        found, size = set(), 0
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
                for entry in map(file.get_slice, file.keys()):
                    found.add(entry.get_dtype())
                    size += math.prod(entry.get_shape())
        if not found:
            size = sum(path.stat().st_size for path in self._folder.glob("*.bin")) // 2
        dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
        return dtypes.get(found.pop()) if len(found) == 1 else None, size

    @handed_on()
    def load(self, dtype: torch.dtype) -> Any:
        """See :class:`Source`."""
        try:
            with EXCLUSIVE:
                module, found = self._class.from_pretrained(
                    self._folder,
                    dtype=dtype,
                    variant=variant_of(self._folder),
                    output_loading_info=True,
                )
        except Exception as error:
            raise ModelError(
                f"the weights in {str(self._folder)!r} do not load: {error}"
            ) from error
        # transformers would draw these at random, and diffusers leave them to what is in memory.
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"the weights in {str(self._folder)!r} lack {len(missing)} of the tensors of a "
                f"{self.class_name}: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
            )
        # from_pretrained keeps some modules of text encoders in float32 where the config says so.
        return with_dtype(module, dtype)

    def in_memory(self, dtype: torch.dtype) -> bool:
        """See :class:`ComponentSource`."""
        return dtype != self._stored[0]

    def key_fields(self, store: Store) -> dict[str, Any]:
        """See :class:`Source`; a hash of the files, which need not be read if they are known."""
        if self._may_be_patched:
            structure(self.meta_module)  # the same for all as the versions are, or raises
        # Everything that loading reads: weights, the index of shards, an adapter's config. The
        # config itself is told without what does not matter.
        files = sorted(
            path
            for kind in (*WEIGHTS, "*.json")
            for path in self._folder.glob(kind)
            if path.name != "config.json"
        )
        return {
            "class": f"{self._library}.{self.class_name}",
            "config": told(read_json(self._folder / "config.json")),
            "files": store.fingerprint_files(files),
            "versions": versions(*_LIBRARIES),
        }


class LoadedSource(ModuleSource):
    """A module of a loaded pipeline; adapters that peft has put into it are converted in effect.

    One that is not ``owned`` is the caller's and never changed. One that is was loaded from
    ``folder``, if that is known.
    """

    adapted = False

    def __init__(self, module: Any, *, owned: bool, folder: FolderSource | None = None) -> None:
        super().__init__(module)
        self.owned = owned
        self._folder = folder

    def load(self, dtype: torch.dtype) -> Any:
        """See :class:`Source`."""
        adapters = has_adapters(self._module)
        module = with_dtype(self._module, dtype, own=adapters and not self.owned)
        if adapters:
            merge_adapters(module)
        return module

    def in_memory(self, dtype: torch.dtype) -> bool:
        """See :class:`ComponentSource`."""
        return self.owned and (self._folder is None or self._folder.in_memory(dtype))

    def key_fields(self, store: Store) -> dict[str, Any]:
        """See :class:`Source`; a hash of the memory."""
        return {**super().key_fields(store), "versions": versions(*_LIBRARIES)}


def folder_sources(model: Path, components: Iterable[str]) -> dict[str, FolderSource]:
    """The sources of a saved pipeline's components, of those that diffusers can load by itself."""
    index = read_json(model / "model_index.json")
    sources = {}
    for name in components:
        library, kind = index.get(name, (None, None))
        if library in _LIBRARIES:
            sources[name] = FolderSource(name, model / name, library, kind)
    return sources
