"""What a module computes, apart from its tensors: for finding its conversion in a cache."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import types
from typing import Any

import torch

from ovtensor._host import qualified_name

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Attributes that every module has, and others that say nothing about results.
_SILENT = frozenset(vars(torch.nn.Module())) | {
    "_internal_dict",  # the config, which is told by itself
    "_is_hf_initialized",
    "gradient_checkpointing",
    "name_or_path",
}


def altered(part: torch.nn.Module) -> bool:
    """Whether something was put into a module by hand that computes: a ``forward`` or a hook."""
    return "forward" in vars(part) or any(getattr(part, hooks) for hooks in _HOOKS)


def structure(module: torch.nn.Module) -> str | None:
    """A hash of the classes and plain attributes of a module and all within.

    That takes in what frontends set by hand: attention processors, FreeU's factors, chunk sizes,
    the scales of adapters. None if something was put in by hand that has no such description: a
    replaced ``forward`` or a hook.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        if altered(part):
            return None
        described = [
            (key, said)
            for key, value in sorted(vars(part).items())
            if key not in _SILENT and (said := _described(value)) is not ...
        ]
        digest.update(json.dumps([name, qualified_name(type(part)), described]).encode())
    return digest.hexdigest()


def config_of(module: Any) -> Any:
    """What :func:`told` gives for a component's config."""
    config = module.config
    return told(config.to_dict() if hasattr(config, "to_dict") else dict(config))


def told(config: dict[str, Any]) -> Any:
    """A config as JSON has it, without where it came from and what saved it."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    kept.pop("transformers_version", None)
    return json.loads(json.dumps(kept, default=str))


def versions(*packages: str) -> dict[str, str]:
    """Versions of what takes part in every conversion, and of other packages."""
    always = ("ovtensor", "torch", "diffusers", "transformers", "openvino")
    return {package: _version(package) for package in (*always, *packages)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree, or bundled without metadata
        return str(importlib.import_module(package).__version__)


def _described(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it, or ``...`` for what computes nothing."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value) if isinstance(value, float) else value
    if depth == 3:
        return ...
    if isinstance(value, list | tuple):
        return [part for entry in value if (part := _described(entry, depth + 1)) is not ...]
    if isinstance(value, dict):
        pairs = ((str(key), _described(entry, depth + 1)) for key, entry in value.items())
        return dict(sorted(pair for pair in pairs if pair[1] is not ...))
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, types.FunctionType):  # all of one class: its name and code tell it
        code = value.__code__
        body = code.co_code.hex(), repr(code.co_consts), repr(code.co_names)
        return [value.__module__, value.__qualname__, *body]
    if hasattr(value, "__dict__") and callable(value):  # an attention processor, an activation
        own = _described(vars(value), depth + 1) if not isinstance(value, type) else {}
        return [qualified_name(value if isinstance(value, type) else type(value)), own]
    return ...
