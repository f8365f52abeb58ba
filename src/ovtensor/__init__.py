"""Tensor interop between PyTorch, NumPy and OpenVINO, and diffusion pipelines on OpenVINO.

The names below are the public interface. Importing this package loads NumPy and nothing heavier:
torch, openvino and diffusers come in when a function that needs them is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# One logger for the whole library, quiet until the application gives it a handler or a level.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# public name -> the module that defines it (PEP 562: looked up on first use)
_LAZY = {
    "to_numpy": "ovtensor.tensors.convert",
    "to_torch": "ovtensor.tensors.convert",
    "to_openvino": "ovtensor.tensors.convert",
    "describe": "ovtensor.tensors.registry",
    "TensorInfo": "ovtensor.tensors.host",
    "tree_to_numpy": "ovtensor.tensors.tree",
    "tree_to_torch": "ovtensor.tensors.tree",
    "tree_to_openvino": "ovtensor.tensors.tree",
    "register_route": "ovtensor.tensors.registry",
    "release_weights": "ovtensor.engine.weights",
    "ModelCache": "ovtensor.cache",
    "Backend": "ovtensor.pipelines",
    "sdxl_pipeline": "ovtensor.pipelines",
    "split_backends": "ovtensor.pipelines",
    "pipeline": "ovtensor.pipelines",
    "Event": "ovtensor.engine.events",
    "MemoryPolicy": "ovtensor.engine.memory",
    "engine": "ovtensor.engine",
    "tiny_sdxl_path": "ovtensor.models",
    "diffusers": "ovtensor.diffusers",
    "is_patched": "ovtensor.diffusers",
    "patch_diffusers": "ovtensor.diffusers",
    "errors": "ovtensor.errors",
    "BackendError": "ovtensor.errors",
    "CacheWarning": "ovtensor.errors",
    "ComponentError": "ovtensor.errors",
    "ConversionError": "ovtensor.errors",
    "DatalessTensorError": "ovtensor.errors",
    "InputError": "ovtensor.errors",
    "MissingExtraError": "ovtensor.errors",
    "ModelError": "ovtensor.errors",
    "NonFiniteError": "ovtensor.errors",
    "OvtensorError": "ovtensor.errors",
    "ParityError": "ovtensor.errors",
    "PatchConflictError": "ovtensor.errors",
    "SessionClosedError": "ovtensor.errors",
}

# what the extras bring, and so what may be missing
_EXTRA_PACKAGES = frozenset(
    (
        "torch",
        "openvino",
        "diffusers",
        "transformers",
        "safetensors",
        "tqdm",
        "PIL",
        "filelock",
        "platformdirs",
        "xxhash",
    )
)

__all__ = ["__version__", *_LAZY]  # noqa: PLE0604 - all of them are strings

if TYPE_CHECKING:
    from ovtensor import diffusers as diffusers
    from ovtensor import engine as engine
    from ovtensor import errors as errors
    from ovtensor.cache import ModelCache as ModelCache
    from ovtensor.diffusers import is_patched as is_patched
    from ovtensor.diffusers import patch_diffusers as patch_diffusers
    from ovtensor.engine.events import Event as Event
    from ovtensor.engine.memory import MemoryPolicy as MemoryPolicy
    from ovtensor.engine.weights import release_weights as release_weights
    from ovtensor.errors import BackendError as BackendError
    from ovtensor.errors import CacheWarning as CacheWarning
    from ovtensor.errors import ComponentError as ComponentError
    from ovtensor.errors import ConversionError as ConversionError
    from ovtensor.errors import DatalessTensorError as DatalessTensorError
    from ovtensor.errors import InputError as InputError
    from ovtensor.errors import MissingExtraError as MissingExtraError
    from ovtensor.errors import ModelError as ModelError
    from ovtensor.errors import NonFiniteError as NonFiniteError
    from ovtensor.errors import OvtensorError as OvtensorError
    from ovtensor.errors import ParityError as ParityError
    from ovtensor.errors import PatchConflictError as PatchConflictError
    from ovtensor.errors import SessionClosedError as SessionClosedError
    from ovtensor.models import tiny_sdxl_path as tiny_sdxl_path
    from ovtensor.pipelines import Backend as Backend
    from ovtensor.pipelines import pipeline as pipeline
    from ovtensor.pipelines import sdxl_pipeline as sdxl_pipeline
    from ovtensor.pipelines import split_backends as split_backends
    from ovtensor.tensors.convert import to_numpy as to_numpy
    from ovtensor.tensors.convert import to_openvino as to_openvino
    from ovtensor.tensors.convert import to_torch as to_torch
    from ovtensor.tensors.host import TensorInfo as TensorInfo
    from ovtensor.tensors.registry import describe as describe
    from ovtensor.tensors.registry import register_route as register_route
    from ovtensor.tensors.tree import tree_to_numpy as tree_to_numpy
    from ovtensor.tensors.tree import tree_to_openvino as tree_to_openvino
    from ovtensor.tensors.tree import tree_to_torch as tree_to_torch


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_PACKAGES:
            raise
        from ovtensor.errors import MissingExtraError

        raise MissingExtraError.of(f"ovtensor.{name}", package) from error
    value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
