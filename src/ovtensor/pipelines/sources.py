"""Where the weights of a component come from: a folder, or a module that the caller has.

Both kinds can tell them from all others, for a cache, and show a component without its weights,
which is all that a stand-in needs; the weights are loaded when there is something to convert.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import sys
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ovtensor.engine.backend import HALVES
from ovtensor.engine.copies import not_offloaded, with_dtype
from ovtensor.engine.identity import config_of, plain, structure, told
from ovtensor.errors import ModelError
from ovtensor.pipelines.adapters import has_adapters, merge_adapters
from ovtensor.pipelines.folders import WEIGHTS, variant_of
from ovtensor.tensors.host import qualified_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovtensor.cache import Store
    from ovtensor.pipelines.lora import Lora

# The order of conversion is the order of weight, so that the largest one finds the most memory.
COMPONENTS = ("unet", "text_encoder_2", "text_encoder", "vae")


class Source(Protocol):
    """The weights of one component."""

    @property
    def skeleton(self) -> Any:
        """The component, whose tensors may have no values."""
        ...

    @property
    def size(self) -> int:
        """How many weights it has."""
        ...

    @property
    def halves(self) -> torch.dtype | None:
        """The dtype of 16 bits that all weights have, if they may be loaded in it and changed."""
        ...

    def load(self, dtype: torch.dtype, loras: Sequence[Lora]) -> Any:
        """The component with weights in ``dtype`` and LoRAs fused in; the caller's is not changed.

        Without LoRAs and of the right dtype it can be the caller's own module.
        """
        ...

    def in_memory(self, dtype: torch.dtype, loras: Sequence[Lora]) -> bool:
        """Whether what ``load`` gives is the session's own and was computed, not just mapped."""
        ...

    def facts(self, store: Store) -> dict[str, Any]:
        """What tells these weights from all others; raises ``UndescribedError`` if nothing can."""
        ...


class FolderSource:
    """A component's folder in a saved pipeline; nothing is imported before ``skeleton`` is."""

    def __init__(self, name: str, folder: Path, library: str, kind: str) -> None:
        self._name = name
        self._folder = folder
        self._library, self._kind = library, kind
        # What is imported only now is as it was installed.
        self._may_be_patched = library in sys.modules

    @functools.cached_property
    def _class(self) -> Any:
        return getattr(importlib.import_module(self._library), self._kind)

    @functools.cached_property
    def skeleton(self) -> Any:
        """See :class:`Source`."""
        try:
            with torch.device("meta"):  # makes the layers and none of their weights
                if self._library == "diffusers":
                    skeleton = self._class.from_config(self._class.load_config(self._folder))
                else:
                    config = self._class.config_class.from_pretrained(self._folder)
                    skeleton = self._class(config)
        except Exception as error:
            raise ModelError(
                f"the config in {str(self._folder)!r} makes no {self._kind}: {error}"
            ) from error
        return skeleton.eval()

    @property
    def size(self) -> int:
        """See :class:`Source`; of files that are no safetensors at most, as if of 16 bits."""
        return self._stored[1]

    @property
    def halves(self) -> torch.dtype | None:
        """See :class:`Source`."""
        dtype, _ = self._stored
        return dtype if dtype in HALVES else None

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

    def load(self, dtype: torch.dtype, loras: Sequence[Lora]) -> Any:
        """See :class:`Source`."""
        try:
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
                f"{self._kind}: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
            )
        # from_pretrained keeps some modules of text encoders in float32 where the config says so.
        module = with_dtype(module, dtype)
        for lora in loras:
            lora.fuse(self._name, module)
        return module

    def in_memory(self, dtype: torch.dtype, loras: Sequence[Lora]) -> bool:
        """See :class:`Source`."""
        return bool(loras) or dtype != self._stored[0]

    def facts(self, store: Store) -> dict[str, Any]:
        """See :class:`Source`; a hash of the files, which need not be read if they are known."""
        if self._may_be_patched:
            structure(self.skeleton)  # the same for all as the versions are, or raises
        files = sorted(path for kind in WEIGHTS for path in self._folder.glob(kind))
        return {
            "class": f"{self._library}.{self._kind}",
            "config": told(json.loads((self._folder / "config.json").read_text(encoding="utf-8"))),
            "files": store.fingerprint_files(files),
        }


class ModuleSource:
    """A module in memory; adapters that peft has put into it are converted in effect.

    One that is not ``owned`` is the caller's and never changed. One that is was loaded from
    ``folder``, if that is known.
    """

    def __init__(
        self, name: str, module: Any, *, owned: bool, folder: FolderSource | None = None
    ) -> None:
        self._name = name
        self._module = not_offloaded(plain(module))
        self._owned = owned
        self._folder = folder

    @property
    def skeleton(self) -> Any:
        """See :class:`Source`."""
        return self._module

    @property
    def size(self) -> int:
        """See :class:`Source`."""
        return sum(parameter.numel() for parameter in self._module.parameters())

    @property
    def halves(self) -> None:
        """See :class:`Source`; the module can be the caller's."""
        return

    def load(self, dtype: torch.dtype, loras: Sequence[Lora]) -> Any:
        """See :class:`Source`."""
        adapters = has_adapters(self._module)
        changes = bool(adapters or loras) and not self._owned
        module = with_dtype(self._module, dtype, own=changes)
        if adapters:
            merge_adapters(module)
        for lora in loras:
            lora.fuse(self._name, module)
        return module

    def in_memory(self, dtype: torch.dtype, loras: Sequence[Lora]) -> bool:
        """See :class:`Source`."""
        return self._owned and (self._folder is None or self._folder.in_memory(dtype, loras))

    def facts(self, store: Store) -> dict[str, Any]:
        """See :class:`Source`; a hash of the memory."""
        described = structure(self._module)
        tensors = [*self._module.named_parameters(), *self._module.named_buffers()]
        return {
            "class": qualified_name(type(self._module)),
            "config": config_of(self._module),
            "structure": described,
            "tensors": store.fingerprint_tensors(tensors),
        }


def folder_sources(model: Path) -> dict[str, FolderSource]:
    """The sources of a saved pipeline's components, of those that diffusers can load by itself."""
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    sources = {}
    for name in COMPONENTS:
        library, kind = index.get(name, (None, None))
        if library in ("diffusers", "transformers"):
            sources[name] = FolderSource(name, model / name, library, kind)
    return sources
