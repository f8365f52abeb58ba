"""Where the weights of a component come from: a folder, or a module that the caller has.

Both kinds can show a component without its weights, which is all that a stand-in and a compiled
model need; the weights themselves are loaded when there is something to convert.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ovtensor._host import qualified_name
from ovtensor.errors import ModelError
from ovtensor.sdxl.halves import HALVES
from ovtensor.sdxl.identity import config_of, structure
from ovtensor.sdxl.lora import has_adapters, merge_adapters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovtensor.cache import Store
    from ovtensor.sdxl.lora import Lora

WEIGHTS = ("*.safetensors", "*.bin")


class Source(Protocol):
    """The weights of one component."""

    @property
    def skeleton(self) -> Any:
        """The component, whose tensors may have no values."""
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

    def facts(self, store: Store) -> dict[str, Any] | None:
        """What tells these weights from all others, or None if nothing can."""
        ...


class FolderSource:
    """A component's folder in a saved pipeline."""

    def __init__(self, name: str, folder: Path, library: str, kind: str) -> None:
        self._name = name
        self._folder = folder
        self._class: Any = getattr(importlib.import_module(library), kind)
        try:
            with torch.device("meta"):  # makes the layers and none of their weights
                if library == "diffusers":
                    config = self._class.load_config(folder)
                    self._skeleton = self._class.from_config(config)
                else:
                    config = self._class.config_class.from_pretrained(folder)
                    self._skeleton = self._class(config)
        except Exception as error:
            raise ModelError(f"the config in {str(folder)!r} makes no {kind}: {error}") from error
        self._skeleton.eval()

    @property
    def skeleton(self) -> Any:
        """See :class:`Source`."""
        return self._skeleton

    @property
    def halves(self) -> torch.dtype | None:
        """See :class:`Source`."""
        return self._stored if self._stored in HALVES else None

    @functools.cached_property
    def _stored(self) -> torch.dtype | None:
        """The dtype that all weights have in their files, which are mapped if it is asked for.

        None for several, or where files are no safetensors: those are not looked into.
        """
        found = set()
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
                found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
        return dtypes.get(found.pop()) if len(found) == 1 else None

    def load(self, dtype: torch.dtype, loras: Sequence[Lora]) -> Any:
        """See :class:`Source`."""
        try:
            module = self._class.from_pretrained(
                self._folder, dtype=dtype, variant=variant_of(self._folder)
            )
        except Exception as error:
            raise ModelError(
                f"the weights in {str(self._folder)!r} do not load: {error}"
            ) from error
        # from_pretrained keeps some modules of text encoders in float32 where the config says so.
        module = with_dtype(module, dtype)
        for lora in loras:
            lora.fuse(self._name, module)
        return module

    def in_memory(self, dtype: torch.dtype, loras: Sequence[Lora]) -> bool:
        """See :class:`Source`."""
        return bool(loras) or dtype != self._stored

    def facts(self, store: Store) -> dict[str, Any]:
        """See :class:`Source`; a hash of the files, which need not be read if they are known."""
        files = sorted(path for kind in WEIGHTS for path in self._folder.glob(kind))
        return {
            "class": qualified_name(self._class),
            "config": config_of(self._skeleton),
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
        self._module = module
        self._owned = owned
        self._folder = folder

    @property
    def skeleton(self) -> Any:
        """See :class:`Source`."""
        return self._module

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

    def facts(self, store: Store) -> dict[str, Any] | None:
        """See :class:`Source`; a hash of the memory."""
        described = structure(self._module)
        if described is None:
            return None
        tensors = [*self._module.named_parameters(), *self._module.named_buffers()]
        return {
            "class": qualified_name(type(self._module)),
            "config": config_of(self._module),
            "structure": described,
            "tensors": store.fingerprint_tensors(tensors),
        }


def with_dtype(module: Any, dtype: torch.dtype, *, own: bool = False) -> Any:
    """``module`` itself if it has the dtype already, else a copy; the original is not touched.

    The copy shares the tensors that need no change, unless it shall ``own`` all of them.
    """
    tensors = [*module.parameters(), *module.buffers()]
    changed = [t for t in tensors if own or (t.is_floating_point() and t.dtype != dtype)]
    if not changed:
        return module
    # What deepcopy finds in its memo it takes as copied: no tensor is copied in the old dtype.
    memo = {id(tensor): tensor for tensor in tensors}
    for tensor in changed:
        cast = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        memo[id(tensor)] = (
            torch.nn.Parameter(cast, requires_grad=False)
            if isinstance(tensor, torch.nn.Parameter)
            else cast
        )
    return copy.deepcopy(module, memo)


def variant_of(folder: Path) -> str | None:
    """The variant that a folder of weights holds if it lacks the plain one, such as ``"fp16"``."""
    names = [path.name for kind in WEIGHTS for path in folder.glob(kind)]
    plain = ("diffusion_pytorch_model", "model", "pytorch_model")
    for name in names:
        stem = name.partition(".")[0].partition("-0")[0]
        if stem in plain and name.count(".") == 1:
            return None
    variants = {name.split(".")[1].partition("-0")[0] for name in names if name.count(".") == 2}
    return min(variants) if variants else None


def folder_sources(model: Path, names: Sequence[str]) -> dict[str, FolderSource]:
    """The sources of a saved pipeline's components, of those that diffusers can load by itself."""
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    sources = {}
    for name in names:
        library, kind = index.get(name, (None, None))
        if library in ("diffusers", "transformers"):
            sources[name] = FolderSource(name, model / name, library, kind)
    return sources
