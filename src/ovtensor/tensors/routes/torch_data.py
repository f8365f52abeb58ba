"""Telling whether a tensor has values; nothing here runs an operator.

``_has_storage`` and ``nbytes`` of a tensor mislead. What follows asks in the order in which the
answers can be trusted, and it asks through interfaces that torch keeps to itself: there are no
public ones. Each has a test that tells when it changes.
"""

from __future__ import annotations

import sys

import torch
from torch._C import _functorch, _get_tracing_state
from torch.nn.parameter import is_lazy

__all__ = ["peeled", "why_dataless", "why_traced"]

_RELEASED = (
    "it is a FakeTensor, which stands in for values and holds none. A model gives such results "
    "once its weights were replaced by fake ones after compiling; free that memory with "
    "ovtensor.release_weights instead, which keeps the model usable"
)
_TRACED = (
    "a trace is being recorded (torch.compile, torch.export, make_fx, torch.jit.trace) and the "
    "values are not there until it runs; convert outside of the traced function"
)


def why_dataless(x: torch.Tensor) -> str | None:
    """Say why a tensor has no values; None if it has.

    Call it under ``DisableTorchFunction``: it must not reach a subclass's own methods.
    """
    x = peeled(x)
    return why_traced() or _why_unreal(x) or _why_freed(x)


def peeled(x: torch.Tensor) -> torch.Tensor:
    """Take off what a derivative of ``torch.func`` put around a tensor that has outlived it."""
    while _functorch.is_gradtrackingtensor(x) and (inner := _functorch.unwrap_if_dead(x)) is not x:
        x = inner
    return x


def why_traced() -> str | None:
    """Say whether what is computed now is being recorded."""
    proxy = torch._C._TorchDispatchModeKey.PROXY  # noqa: SLF001
    early = torch._C.DispatchKey.PreDispatch  # noqa: SLF001
    tracing = (
        torch.compiler.is_compiling()
        or _get_tracing_state() is not None
        or torch._C._get_dispatch_mode(proxy) is not None  # noqa: SLF001
        or torch._C._dispatch_tls_is_dispatch_key_included(early)  # noqa: SLF001
    )
    return _TRACED if tracing else None


def _why_unreal(x: torch.Tensor) -> str | None:
    if is_lazy(x):
        return "its parameter was never initialized; run the module once to give it a shape"
    if _functorch.is_batchedtensor(x):
        return "torch.vmap is at work on it and it stands for a batch; convert after vmap"
    if _functorch.is_gradtrackingtensor(x):
        return "torch.func is differentiating through it; convert outside of grad, vjp or jvp"
    if _is_functional(x):
        return "it is a functional tensor; convert outside of torch.func.functionalize"
    if _is_fake(x):
        return _RELEASED
    if x.device.type == "meta":
        return "the meta device keeps shapes and no values; load the weights or move the module"
    return None


def _is_functional(x: torch.Tensor) -> bool:
    """Tell whether `x` is a functional tensor of C++, or of Python around one."""
    module = sys.modules.get("torch._subclasses.functional_tensor")
    in_python = module is not None and isinstance(x, module.FunctionalTensor)
    if in_python or torch._is_functional_tensor(x):  # noqa: SLF001
        return True
    return bool(parts := vars(x)) and any(
        isinstance(part, torch.Tensor) and torch._is_functional_tensor(part)  # noqa: SLF001
        for part in parts.values()
    )


def _is_fake(x: torch.Tensor) -> bool:
    """Look for fake values, also inside wrapper subclasses."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    return fakes is not None and bool(fakes.is_fake(x))


def _why_freed(x: torch.Tensor) -> str | None:
    """Compare what the tensor spans with what its storage still has."""
    keys = torch._C._dispatch_keys(x)  # noqa: SLF001
    key = torch._C.DispatchKey  # noqa: SLF001
    if x.layout is not torch.strided or x.is_nested or keys.has(key.Python):
        return None
    if x.numel() == 0 or keys.has(key.ZeroTensor):
        return None
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    needed = (x.storage_offset() + last + 1) * x.element_size()
    left = x.untyped_storage().nbytes()
    if left >= needed and x.data_ptr() != 0:
        return None
    return (
        f"its storage was freed or shrunk ({left} of {needed} bytes are left), as offloading "
        "and sharding do; gather or reload the weights first"
    )
