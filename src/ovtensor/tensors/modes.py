"""Conversions stand outside of what torch does around code: compilation, modes, transforms."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ovtensor.errors import DatalessTensorError

__all__ = ["undisturbed"]

Work = TypeVar("Work", bound=Callable[..., Any])


def undisturbed(work: Work) -> Work:
    """Keep ``torch.compile``, modes and the transforms of ``torch.func`` out of a conversion.

    After a graph broke, dynamo would go on with our own frames, and fail where torch lacks what
    NumPy does there. A mode or a transform would see operators that are not the caller's, and may
    answer them with tensors that have no values.
    """
    torch = sys.modules.get("torch")
    modes = getattr(getattr(torch, "_C", None), "_len_torch_dispatch_stack", None)
    if torch is None or modes is None:  # or another thread is still importing it
        return work
    disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
    if disable is not None:
        if torch.compiler.is_dynamo_compiling():
            raise DatalessTensorError(
                "there are no values while torch.compile or torch.export traces; "
                "convert outside of the traced function"
            )
        work = _disabled(disable, work)
    inside = torch._C  # noqa: SLF001
    if (
        modes()
        or inside._len_torch_function_stack()  # noqa: SLF001
        or inside._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
    ):
        work = _outside_of_modes(work)
    return work


@functools.cache
def _disabled(disable: Any, work: Any) -> Any:
    return disable(work)


def _outside_of_modes(work: Any) -> Any:
    # A trace is a mode too: it goes on, so that tensors are refused whose values it would record.
    from ovtensor.tensors.routes.torch_data import why_traced

    if why_traced() is not None:
        return work

    def outside(*given: Any) -> Any:
        with _without_modes():
            return work(*given)

    return outside


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    """Take modes and transforms off and put them back, in the ways that torch keeps to itself."""
    from torch._C import _len_torch_function_stack, _pop_torch_function_stack
    from torch._C import _push_on_torch_function_stack as _push
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes

    functions = [_pop_torch_function_stack() for _ in range(_len_torch_function_stack())]
    try:
        with temporarily_clear_interpreter_stack(), _disable_current_modes():
            yield
    finally:
        for mode in reversed(functions):
            _push(mode)
