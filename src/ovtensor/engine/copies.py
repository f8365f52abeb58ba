"""Copies of modules that share everything with the original but what is changed in them."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.identity import plain

if TYPE_CHECKING:
    from collections.abc import Callable


def shallow_copy(module: Any, **replaced: torch.nn.Module | None) -> Any:
    """A copy of ``module`` with the same weights and some children replaced, itself unchanged."""
    module = plain(module)
    copied = copy.copy(module)
    # copy.copy shares the dictionary of children, which setattr would then change in both.
    copied._modules = {**module._modules, **replaced}  # noqa: SLF001
    return copied


def not_offloaded(module: Any) -> Any:
    """``module``, or a shallow copy of one that accelerate moves to a device for its calls."""
    attributes = vars(module)
    if "_hf_hook" not in attributes:
        return module
    from accelerate.hooks import CpuOffload

    forward = getattr(attributes.get("_old_forward"), "__func__", None)
    if type(attributes["_hf_hook"]) is not CpuOffload or forward is not type(module).forward:
        return module
    copied = copy.copy(module)
    for name in ("_hf_hook", "_old_forward", "forward"):
        del copied.__dict__[name]
    return copied


def with_dtype(module: Any, dtype: torch.dtype, *, own: bool = False) -> Any:
    """``module`` itself if it has the dtype already, else a copy of it and of all within.

    The copy shares the tensors that need no change, unless it shall ``own`` all of them.
    """

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.dtype == wanted and not own:
            return tensor
        return tensor.detach().to(wanted, copy=True)

    known = _replaced(module, cast)
    return _copied(module, known) if known else module


def detached(module: Any) -> Any:
    """A copy of a module and all within, on the CPU, without gradients or torch.compile.

    It is in evaluation mode, shares the memory of every tensor that is on the CPU, and may be
    altered: its layers are its own.
    """

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type not in ("cpu", "meta"):
            return tensor.detach().cpu()
        return tensor.detach() if tensor.requires_grad else tensor

    return _copied(module, _replaced(module, change)).eval()


def _replaced(
    module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[int, Any]:
    """What parameters and buffers become, by their identities, of those that ``change``."""
    known = {}
    for tensor in (*module.parameters(), *module.buffers()):
        changed = change(tensor)
        if changed is not tensor:
            known[id(tensor)] = (
                torch.nn.Parameter(changed, requires_grad=False)
                if isinstance(tensor, torch.nn.Parameter)
                else changed
            )
    return known


def _copied(value: Any, known: dict[int, Any]) -> Any:
    """A copy of modules and of what holds them; all else is shared.

    ``copy.deepcopy`` follows every reference: to the other models that a hook of offloading knows,
    and to locks, which it cannot copy. Meanwhile another thread may run the original, which puts
    hooks into a text encoder that runs for the first time; so dictionaries are listed at once.
    """
    if id(value) in known:
        return known[id(value)]
    kind: Any = type(value)
    made: Any
    if isinstance(value, torch.nn.Module | types.FunctionType) and plain(value) is not value:
        return _copied(plain(value), known)
    if isinstance(value, torch.jit.ScriptModule):  # its state is not in Python
        known[id(value)] = made = copy.deepcopy(value)
        return made
    if isinstance(value, torch.nn.Module):
        known[id(value)] = made = object.__new__(kind)
        vars(made).update((key, _copied(part, known)) for key, part in [*vars(value).items()])
        return made
    if kind is types.MethodType:
        return types.MethodType(value.__func__, _copied(value.__self__, known))
    if kind is functools.partial:
        function, *given = (_copied(part, known) for part in (value.func, *value.args))
        return functools.partial(function, *given, **_copied(value.keywords, known))
    if kind in (dict, OrderedDict):
        known[id(value)] = made = kind()
        made.update((key, _copied(part, known)) for key, part in [*value.items()])
        return made
    if kind is list:
        known[id(value)] = made = []
        made.extend(_copied(part, known) for part in value)
        return made
    if kind in (tuple, set):
        return kind(_copied(part, known) for part in value)
    return value
