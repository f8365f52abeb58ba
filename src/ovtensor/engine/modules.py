"""The engine's interface for any module: described inputs in, a compiled module out."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.cache import store_of
from ovtensor.engine.backend import Backend, resolve
from ovtensor.engine.events import Events
from ovtensor.engine.graph import GraphInput, GraphSpec, GraphTraits, flat_graph
from ovtensor.engine.opening import Opener
from ovtensor.engine.sources import ModuleSource
from ovtensor.errors import BackendError, InputError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from ovtensor.cache import ModelCache
    from ovtensor.engine.compiled import RunnerStats
    from ovtensor.engine.events import Event
    from ovtensor.engine.memory import MemoryPolicy
    from ovtensor.engine.plan import ConversionPlan


class CompiledModule:
    """A module that OpenVINO runs, made by :func:`compile_module`; several threads may call it.

    Attributes
    ----------
    plan : ConversionPlan
        How it was converted and compiled.
    stats : RunnerStats
        What that has cost so far.
    """

    def __init__(
        self, spec: GraphSpec, backend: Backend, opener: Opener, names: Sequence[str]
    ) -> None:
        self._names = names
        with contextlib.ExitStack() as undo:
            undo.callback(opener.close)
            self._runner = opener.open(spec, backend)
            undo.callback(self._runner.close)
            self._undo = undo.pop_all()
        assert self._runner.plan is not None  # what OpenVINO runs was converted
        self.plan: ConversionPlan = self._runner.plan
        self.stats: RunnerStats = self._runner.stats

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run it.

        Parameters
        ----------
        *inputs : torch.Tensor
            As described, of any floating dtype where floats are wanted, on any device.

        Returns
        -------
        tuple of torch.Tensor
            On the CPU, floats as float32; the caller owns them.

        Raises
        ------
        SessionClosedError
            After :meth:`close`.
        InputError
            If there are more or fewer than described, or others than tensors.
        ComponentError
            If OpenVINO fails to compile or run it for these inputs.
        """
        name, names = self.plan.graph, self._names
        if len(inputs) != len(names):
            raise InputError(
                f"{name} takes {len(names)} tensor{'s' * (len(names) != 1)} ({', '.join(names)}), "
                f"and was called with {len(inputs)}",
                component=name,
            )
        for key, value in zip(names, inputs, strict=True):
            if not isinstance(value, torch.Tensor):
                raise InputError(
                    f"{name} takes tensors, and {key} is a {type(value).__name__}; give "
                    f"ovtensor.to_torch({key})",
                    component=name,
                )
        return self._runner(*inputs)

    def close(self) -> None:
        """Release the compiled model and its weights; closing twice is fine."""
        self._undo.pop_all().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def compile_module(
    module: torch.nn.Module,
    inputs: Sequence[GraphInput],
    backend: str | Backend = "openvino",
    *,
    name: str | None = None,
    traits: GraphTraits | None = None,
    shortest_keys: Callable[..., int] | None = None,
    cache: bool | str | os.PathLike[str] | ModelCache | None = None,
    verify: bool | None = None,
    memory: MemoryPolicy | None = None,
    on_event: Callable[[Event], Any] | None = None,
) -> CompiledModule:
    """Convert a module and compile it, or take it from a cache.

    Parameters
    ----------
    module : torch.nn.Module
        Takes tensors by position and gives a tensor or a tuple of them. It is not changed and
        not kept alive.
    inputs : sequence of GraphInput
        Its inputs, each with a small example.
    backend : "openvino" or Backend
        Device, precision and properties.
    name : str, optional
        For messages and the cache; by default that of the module's class.
    traits : GraphTraits, optional
        What helps to convert it well.
    shortest_keys : callable, optional
        For inputs of a call the length of the shortest sequence that any attention of the module
        attends to. A call that has a single one is refused then: OpenVINO's attention would give
        garbage in calls after it (see :class:`.passes.short_keys.ShortKeys`).
    cache, verify, memory, on_event
        See :func:`ovtensor.sdxl_pipeline`.

    Returns
    -------
    CompiledModule
        A context manager; call it with tensors.

    Raises
    ------
    InputError
        If `module` is no module, or `inputs` are none or such that no tensors fit.
    BackendError
        If the backend is not OpenVINO, or not to be had here.
    ComponentError
        If it cannot be converted or compiled.
    ParityError
        If the compiled module does not compute what torch does.

    Examples
    --------
    >>> import torch
    >>> from ovtensor.engine import GraphInput, compile_module
    >>> net = torch.nn.Conv2d(3, 8, 3)
    >>> x = GraphInput("x", (-1, 3, -1, -1), torch.zeros(2, 3, 9, 9))
    >>> with compile_module(net, [x]) as run:
    ...     (y,) = run(torch.zeros(1, 3, 32, 16))
    >>> y.shape
    torch.Size([1, 8, 30, 14])
    """
    given = tuple(inputs)
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"compile_module takes a torch.nn.Module, not a {type(module).__name__}")
    if not given or not all(isinstance(one, GraphInput) for one in given):
        raise InputError("inputs is a sequence of at least one GraphInput: name, shape and example")
    for one in given:
        pairs = zip(one.shape, one.example.shape, strict=False)
        if len(one.shape) != one.example.dim() or any(a not in (-1, b) for a, b in pairs):
            raise InputError(
                f"the input {one.name!r} has the shape {tuple(one.shape)}, and its example "
                f"{tuple(one.example.shape)}; give an example of that shape"
            )
    names = [one.name for one in given]
    if len(set(names)) != len(names):
        raise InputError(f"inputs have names of their own, not {', '.join(map(repr, names))}")
    traits = GraphTraits() if traits is None else traits
    wanted = resolve(Backend.of(backend, "backend"), prefer_f32=traits.f32_by_default)
    if wanted.kind != "openvino":
        raise BackendError("compile_module compiles for OpenVINO; to run on torch, call the module")
    label = type(module).__name__ if name is None else name
    store = store_of(cache)
    # All of the examples: what is traced can follow from their sizes and values.
    examples = store.fingerprint_tensors((one.name, one.example) for one in given)
    spec = GraphSpec(
        label,
        ModuleSource(module),
        lambda one: flat_graph(label, one, given, shortest_keys),
        traits,
        (examples, *(tuple(one.shape) for one in given)),
    )
    opener = Opener(store, Events(on_event), verify=verify, memory=memory)
    return CompiledModule(spec, wanted, opener, names)
