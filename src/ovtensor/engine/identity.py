"""What a module computes, apart from its tensors: for finding its conversion in a cache."""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import json
import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.tensors.convert import to_numpy, to_torch
from ovtensor.tensors.host import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ALWAYS = ("ovtensor", "torch", "openvino")
# A frozen application can lack their metadata; each tells its version by itself.
_BUNDLED = (*_ALWAYS, "diffusers", "transformers", "huggingface_hub")
_DEPTH = 6
_UNVERSIONED = "which has no version"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Attributes that every module has, and others that say nothing about results.
_SILENT = frozenset(vars(torch.nn.Module())) | {
    "_compiled_call_impl",  # what Module.compile leaves
    "_internal_dict",  # the config, which is told by itself
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",  # see _WATCHING
    "_weight_conversions",  # how transformers reads and writes checkpoints
    "gradient_checkpointing",
    "name_or_path",
}
# Where transformers puts hooks into a model that is called for all its hidden states: they watch.
_WATCHING = "transformers.utils.output_capturing"


class UndescribedError(Exception):
    """Something takes part of which nobody can tell whether it is the same next time."""


def plain(module: Any) -> Any:
    """A module or function itself, where ``torch.compile`` has wrapped it.

    What is set on a wrapped module is set on the one inside, also through a shallow copy of it.
    """
    if isinstance(module, torch.nn.Module):
        return getattr(module, "_orig_mod", module)
    inner = getattr(module, "_torchdynamo_orig_callable", module)
    if getattr(inner, "__globals__", {}).get("__name__") == "torch._dynamo.external_utils":
        return inner.__wrapped__  # torch 2.15 wraps a method twice; what others wrap computes
    return inner


def altered(part: torch.nn.Module) -> bool:
    """Whether something was put into a module by hand that computes: a ``forward`` or a hook."""
    hooks = [hook for kind in _HOOKS for hook in getattr(part, kind).values()]
    return "forward" in vars(part) or any(
        getattr(hook, "__module__", None) != _WATCHING for hook in hooks
    )


def structure(module: torch.nn.Module) -> str:
    """A hash of the classes and plain attributes of a module and all within.

    That takes in what frontends set by hand: attention processors, FreeU's factors, chunk sizes,
    the scales of adapters.

    Raises
    ------
    UndescribedError
        If something was put in by hand that has no such description: a hook, code of a module
        that has no version, an object that does not show what it holds.
    """
    describer = _Describer()
    describer.namespace("torch.nn.functional", vars(torch.nn.functional))
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        if plain(part) is not part:
            continue  # what it wraps comes next
        try:
            described = [name, *describer.module(part)]
        except Exception as error:  # noqa: BLE001  what somebody put there may raise anything
            raise UndescribedError(f"{name or 'the whole'}: {error}") from None
        digest.update(json.dumps(described).encode())
    return digest.hexdigest()


def config_of(module: Any) -> Any:
    """What :func:`told` gives for a module's config, if it has one."""
    config = getattr(module, "config", {})
    return told(config.to_dict() if hasattr(config, "to_dict") else dict(config))


def told(config: dict[str, Any]) -> Any:
    """A config as JSON has it, without where it came from and what saved it."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    kept.pop("transformers_version", None)
    return json.loads(json.dumps(kept, default=str))


def versions(*packages: str) -> dict[str, str]:
    """Versions of what takes part in every conversion, and of other packages."""
    return {package: _version(package) for package in (*_ALWAYS, *packages)}


@functools.cache  # every graph asks; reading the metadata of a package takes up to 0.8 ms
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree, or bundled without metadata
        return str(importlib.import_module(package).__version__)


class _Describer:
    """Says values as JSON has them, such that different ones are never the same."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # classes and functions that were looked into

    def module(self, module: torch.nn.Module) -> list[Any]:
        """A module without its children, parameters and buffers."""
        if altered(module):
            raise UndescribedError("it has a hook, or a forward of its own")
        own = {key: value for key, value in vars(module).items() if key not in _SILENT}
        return [self.kind(type(module)), self.value(own)]

    def value(self, value: Any, depth: int = 0) -> Any:
        """Anything that an attribute may be."""
        kind = type(value).__name__
        if depth > _DEPTH:
            raise UndescribedError(f"a {qualified_name(type(value))} is nested too deeply")

        def inner(*values: Any) -> list[Any]:
            return [self.value(part, depth + 1) for part in values]

        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return [kind, repr(value)]
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            return [kind, str(value)]
        if isinstance(value, list | tuple):
            return [kind, *inner(*value)]
        if isinstance(value, set | frozenset):
            return [kind, *sorted(inner(*value), key=json.dumps)]
        if isinstance(value, dict):
            return [kind, *sorted((inner(*pair) for pair in value.items()), key=json.dumps)]
        if isinstance(value, torch.Tensor):
            return [kind, str(value.dtype), list(value.shape), _bytes_of(value)]
        return self._code(value, inner)

    def _code(self, value: Any, inner: Callable[..., list[Any]]) -> Any:
        """Functions, classes and all other objects."""
        if isinstance(value, functools.partial):
            return ["partial", *inner(value.func, value.args, value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", *inner(value.__self__, value.__func__)]
        if isinstance(value, types.BuiltinFunctionType) and value.__module__ is not None:
            return ["builtin", value.__module__, value.__name__]
        if isinstance(value, types.FunctionType):
            self.function(value.__qualname__, value)
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return ["function", value.__module__, value.__qualname__, *inner(*cells)]
        if isinstance(value, type):
            return ["class", self.kind(value)]
        return [self.kind(type(value)), *inner(_state(value))]

    def kind(self, kind: type) -> str:
        """A class by its name and its package's version, if all its code has such a one."""
        version = _version_of(kind.__module__)
        if version is None:
            raise UndescribedError(
                f"{kind.__qualname__} is code of {kind.__module__}, {_UNVERSIONED}"
            )
        if id(kind) not in self._seen:
            self._seen[id(kind)] = kind
            for base in kind.__mro__:
                self.namespace(base.__qualname__, vars(base))
        return f"{qualified_name(kind)} {version}"

    def namespace(self, name: str, namespace: Mapping[str, Any]) -> None:
        """Find functions that somebody put into the class or module of another package."""
        for key, entry in list(namespace.items()):
            function = getattr(entry, "__func__", getattr(entry, "fget", entry))
            if isinstance(function, types.FunctionType):
                self.function(f"{name}.{key}", function)

    def function(self, name: str, function: types.FunctionType) -> None:
        """See whose a function really is: ``functools.wraps`` and decorators hide it."""
        if id(function) in self._seen:
            return
        self._seen[id(function)] = function
        module = str(function.__globals__.get("__name__"))
        if _version_of(module) is None:
            raise UndescribedError(f"{name} is code of {module}, {_UNVERSIONED}")
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # empty
                if isinstance(cell.cell_contents, types.FunctionType):
                    self.function(name, cell.cell_contents)


def _state(value: Any) -> Any:
    """What an object holds, if it shows that."""
    if hasattr(value, "to_dict"):  # a config, of which these say where it came from
        state = {key: part for key, part in value.to_dict().items() if not key.startswith("_")}
        state.pop("transformers_version", None)
        attention = getattr(value, "_attn_implementation", None)
        if attention not in (None, "eager", "sdpa"):
            raise UndescribedError(f"the attention {attention!r} is not one of transformers' own")
        return [state, attention]
    if isinstance(value, enum.Enum):
        return value.name
    if not hasattr(value, "__dict__") or isinstance(value, torch.nn.Module):
        raise UndescribedError(f"a {qualified_name(type(value))} does not show what it computes")
    return vars(value)


def _bytes_of(tensor: torch.Tensor) -> str:
    flat = to_torch(tensor, device="cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(to_numpy(flat).tobytes()).hexdigest()


@functools.cache
def _version_of(module: str) -> str | None:
    """The version of the installed package that a module belongs to; None if there is none."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        return ""
    if package in _BUNDLED:
        return _version(package)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
