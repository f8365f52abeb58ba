"""LoRA weights, read by diffusers and fused into a component by peft."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
    scale_lora_layers,
)

from ovtensor.engine.copies import with_dtype
from ovtensor.engine.identity import versions
from ovtensor.engine.process import handed_on
from ovtensor.errors import InputError, MissingExtraError, ModelError
from ovtensor.pipelines.adapters import merge_adapters

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    import torch

    from ovtensor.cache import Store
    from ovtensor.pipelines.sources import ComponentSource

    Given: TypeAlias = tuple[str | os.PathLike[str] | Mapping[str, torch.Tensor], float]

_ADAPTER = "ovtensor"  # name of an adapter while it is being fused
# What follows the name of the adapted layer in a key.
_SUFFIX = re.compile(r"\.(lora|lokr|hada)_.*$")


@dataclasses.dataclass(frozen=True, slots=True)
class Lora:
    """One LoRA file: per component, peft's tensors for the layers that the component has.

    ``loader`` is the pipeline class of diffusers that fuses it.
    """

    name: str
    scale: float
    loader: Any
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    alphas: Mapping[str, float] | None
    metadata: Mapping[str, Any] | None

    def key_fields(self, component: str, store: Store) -> list[Any]:
        """What tells the effect on a component from all others."""
        alphas = sorted((self.alphas or {}).items())
        metadata = json.dumps(dict(self.metadata or {}), sort_keys=True, default=str)
        tensors = store.fingerprint_tensors(sorted(self.tensors[component].items()))
        return [tensors, repr(self.scale), repr(alphas), metadata]

    @handed_on()
    def fuse(self, component: str, module: Any) -> None:
        """Add to the weights of ``module``, in place.

        Raises
        ------
        ModelError
            If the tensors do not fit the layers.
        """
        state = {f"{component}.{key}": value for key, value in self.tensors[component].items()}
        options = {
            "network_alphas": dict(self.alphas) if self.alphas is not None else None,
            "metadata": dict(self.metadata) if self.metadata is not None else None,
            "adapter_name": _ADAPTER,
        }
        try:
            if component == "unet":
                self.loader.load_lora_into_unet(state, unet=module, **options)
            else:
                self.loader.load_lora_into_text_encoder(
                    state, text_encoder=module, prefix=component, **options
                )
            scale_lora_layers(module, self.scale)
            merge_adapters(module)
        except Exception as error:
            raise ModelError(
                f"the LoRA {self.name} does not fit the {component} of this model: {error}"
            ) from error


class AdaptedSource:
    """Weights of a component with LoRAs added to them; their own source is not changed."""

    sixteen_bit: torch.dtype | None = None  # they are added in the dtype of the arithmetic
    adapted = True

    def __init__(self, source: ComponentSource, component: str, loras: Sequence[Lora]) -> None:
        self._source = source
        self._component = component
        self._loras = loras

    @property
    def meta_module(self) -> Any:
        """See :class:`.Source`."""
        return self._source.meta_module

    @property
    def size(self) -> int:
        """See :class:`.Source`."""
        return self._source.size

    @property
    def owned(self) -> bool:
        """See :class:`.ComponentSource`."""
        return self._source.owned

    def load(self, dtype: torch.dtype) -> Any:
        """See :class:`.Source`."""
        module = self._source.load(dtype)
        if module is self.meta_module and not self.owned:  # the caller's
            module = with_dtype(module, dtype, own=True)
        for lora in self._loras:
            lora.fuse(self._component, module)
        return module

    def in_memory(self, dtype: torch.dtype) -> bool:
        """See :class:`.ComponentSource`: what LoRAs were added to was computed."""
        del dtype
        return self.owned

    def key_fields(self, store: Store) -> dict[str, Any]:
        """See :class:`.Source`."""
        return {
            **self._source.key_fields(store),
            "loras": [lora.key_fields(self._component, store) for lora in self._loras],
            "peft": versions("peft"),
        }


def read(given: Iterable[Given], modules: Mapping[str, Any], loader: str) -> tuple[Lora, ...]:
    """Read LoRAs for a pipeline's components; ``modules`` may be on the meta device.

    ``loader`` is the name of the pipeline class of diffusers that reads them.

    Warns of tensors that belong to no layer, and lists them.

    Raises
    ------
    InputError
        If something is no pair of a file and a scale.
    ModelError
        If a file cannot be read, or none of its tensors belongs to a layer.
    MissingExtraError
        If peft is not installed.
    """
    loras = []
    for entry in given:
        try:
            source, scale = entry
            scale = float(scale)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"loras takes pairs of a path or state dict and a scale, not {entry!r:.80}; "
                f'such as loras=[("style.safetensors", 0.8)]'
            ) from error
        loras.append(_read(source, scale, modules, getattr(diffusers, loader)))
    return tuple(loras)


@handed_on()
def _read(source: Any, scale: float, modules: Mapping[str, Any], loader: Any) -> Lora:
    name = "(a state dict)" if hasattr(source, "items") else repr(str(source))
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'loras need peft, which is not installed: pip install "ovtensor[lora]"', name="peft"
        ) from error
    try:
        state, alphas, metadata = loader.lora_state_dict(
            dict(source) if hasattr(source, "items") else str(source),
            unet_config=modules["unet"].config,
            return_lora_metadata=True,
        )
    except Exception as error:
        raise ModelError(f"the LoRA {name} could not be read: {error}") from error
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    unmatched = []
    for component, module in modules.items():
        prefix = f"{component}."
        own = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        if not own:
            continue
        layers = {layer for layer, _ in module.named_modules()}
        for key, tensor in _in_peft_format(component, own).items():
            layer = _SUFFIX.sub("", key)
            # transformers 5 took one level out of CLIPTextModel; diffusers maps such keys.
            if layer in layers or layer.removeprefix("text_model.") in layers:
                tensors.setdefault(component, {})[key] = tensor
            else:
                unmatched.append(prefix + key)
    unmatched += [key for key in state if not key.startswith(tuple(f"{name}." for name in modules))]
    if not tensors:
        raise ModelError(
            f"none of the {len(state)} tensors of the LoRA {name} belongs to a layer of this "
            f"model{_listing(unmatched)}; is it for another kind of model?"
        )
    if unmatched:
        warnings.warn(
            f"{len(unmatched)} tensors of the LoRA {name} belong to no layer of this model and "
            f"are left out{_listing(unmatched)}",
            stacklevel=2,
        )
    return Lora(name, scale, loader, tensors, alphas, metadata)


def _in_peft_format(component: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert as diffusers does when it loads: UNet and text encoders have formats of their own."""
    converted: dict[str, torch.Tensor] = (
        convert_unet_state_dict_to_peft(state)
        if component == "unet"
        else convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
    )
    return converted


def _listing(keys: list[str]) -> str:
    shown = ", ".join(keys[:8])
    return f": {shown}{', ...' if len(keys) > 8 else ''}" if keys else ""
