"""The pipeline that a session lends: diffusers' own, whose calls may overlap.

diffusers keeps the state of a call in the pipeline, in its scheduler and in its tokenizers. Here a
call that finds the pipeline busy runs on a copy of it with its own of these; all else is shared.
The class of the pipeline is exchanged for a subclass of it: Python looks ``__call__`` up there.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.events import Event
from ovtensor.errors import InputError, NonFiniteError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.engine.events import Events

_STATE = "_ovtensor_lent"
_WATCH = "_ovtensor_watch"  # of the call that runs on a pipeline


class _State:
    """Shared by a lent pipeline and the copies of it that run."""

    def __init__(self, events: Events, ended: Callable[[], None]) -> None:
        self.events = events
        self.ended = ended  # called after each call
        self.busy = threading.Lock()  # held while a call runs on the pipeline itself
        self.copies: dict[int, Any] = {}  # on which other calls run, by identity


def lend(pipe: Any, events: Events, ended: Callable[[], None]) -> Callable[[], None]:
    """Make a pipeline's calls safe and watched, ``ended`` after each; the result undoes that."""
    own: Any = type(pipe)
    pipe.__dict__[_STATE] = _State(events, ended)
    pipe.__class__ = _lent_class(own)

    def give_back() -> None:
        pipe.__class__ = own
        del pipe.__dict__[_STATE]

    return give_back


def copied(pipe: Any) -> Any:
    """Another pipeline of the same components, with a scheduler and tokenizers of its own."""
    other = copy.copy(pipe)
    for name in ("tokenizer", "tokenizer_2"):  # they keep the padding of the call that goes on
        if getattr(pipe, name, None) is not None:
            setattr(other, name, copy.deepcopy(getattr(pipe, name)))
    scheduler = pipe.scheduler
    # As new: the state of a scheduler in use is no start for another one.
    other.scheduler = type(scheduler).from_config(scheduler.config)
    return other


class _Lent:
    """What the subclass adds; every other attribute is that of the pipeline's own class."""

    __dict__: dict[str, Any]
    _own_class: type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state: _State = self.__dict__[_STATE]
        if state.busy.acquire(blocking=False):
            try:
                return _run(self._own_class, self, state.events, args, kwargs)
            finally:
                state.busy.release()
                state.ended()
        other = copied(self)
        state.copies[id(other)] = other
        try:
            return _run(self._own_class, other, state.events, args, kwargs)
        finally:
            del state.copies[id(other)]
            state.ended()

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Let the pipeline's own check of its arguments raise this library's ``InputError``."""
        try:
            super().check_inputs(*args, **kwargs)  # type: ignore[misc]
        except ValueError as error:
            raise InputError(str(error)) from error

    def progress_bar(self, *args: Any, **kwargs: Any) -> Any:
        """Make the bar of the steps, which begin then."""
        bar = super().progress_bar(*args, **kwargs)  # type: ignore[misc]
        if (watch := self.__dict__.get(_WATCH)) is not None:
            watch.begin(self, 0)
        return bar

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what diffusers would leave out of the folder, and out of the pipeline's config."""
        from ovtensor.pipelines.proxies import stands_in, unsaved

        for name, component in self.components.items():  # type: ignore[attr-defined]
            if stands_in(component):
                raise unsaved(name)
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    @property
    def _interrupt(self) -> bool:
        return bool(self.__dict__.get("_interrupt", False))

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self.__dict__["_interrupt"] = value
        state: _State = self.__dict__[_STATE]
        if value and id(self) not in state.copies:
            # Set on the pipeline that everybody knows, it is for every call that runs.
            for other in list(state.copies.values()):
                other.__dict__["_interrupt"] = True


class _Watch:
    """Called at the end of each step: checks the latents, tells of the step, asks the caller's."""

    def __init__(self, events: Events, callback: Any, tensors: list[str] | None) -> None:
        self._events = events
        self._callback = callback
        # diffusers' own callback objects say by themselves what they want
        wanted = getattr(callback, "tensor_inputs", tensors)
        self._wanted = ["latents"] if wanted is None else list(wanted)
        self.needs = list(dict.fromkeys([*self._wanted, "latents"]))
        self._start = time.perf_counter()

    def begin(self, pipe: Any, step: int) -> None:
        """Tell that a step begins."""
        self._events.emit(Event("step", "started", "unet", None, step, _steps(pipe)))
        self._start = time.perf_counter()

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        seconds = time.perf_counter() - self._start
        latents, steps = tensors["latents"], _steps(pipe)
        if not torch.isfinite(latents).all():
            broken = int((~torch.isfinite(latents)).sum())
            of = "" if steps is None else f" of {steps}"
            raise NonFiniteError(
                f"the unet gave NaN or infinity at step {step + 1}{of} (timestep "
                f"{float(timestep):g}): {broken} of {latents.numel()} latents; most often its "
                f'precision is too narrow, so give unet=Backend(..., precision="f32")'
            )
        self._events.emit(Event("step", "finished", "unet", seconds, step, steps))
        changed = {}
        if self._callback is not None:
            wanted = {name: tensors[name] for name in self._wanted}
            changed = self._callback(pipe, step, timestep, wanted)
        if step + 1 != steps and not getattr(pipe, "interrupt", False):
            self.begin(pipe, step + 1)
        return changed


def _steps(pipe: Any) -> int | None:
    return getattr(pipe, "num_timesteps", None)


class ClosedComponent:
    """What a pipeline finds in place of its components after its session was closed."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # copy, pickle and repr ask for what need not be there
            raise AttributeError(attribute)
        raise SessionClosedError(
            f"the pipeline's {self.__dict__['name']} was released when its session was closed; "
            f"use the pipeline inside the `with` block, or open a new session"
        )

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raise ``SessionClosedError``."""
        return self.forward


def _run(own: Any, pipe: Any, events: Events, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a pipeline as its own class would be called, and watch its steps."""
    signature = inspect.signature(own.__call__)
    if "callback_on_step_end" in signature.parameters:
        bound = signature.bind(pipe, *args, **kwargs)
        watch = _Watch(
            events,
            bound.arguments.get("callback_on_step_end"),
            bound.arguments.get("callback_on_step_end_tensor_inputs"),
        )
        bound.arguments["callback_on_step_end"] = watch
        bound.arguments["callback_on_step_end_tensor_inputs"] = watch.needs
        args, kwargs = bound.args[1:], bound.kwargs
        pipe.__dict__[_WATCH] = watch
    try:
        return own.__call__(pipe, *args, **kwargs)
    finally:
        pipe.__dict__.pop(_WATCH, None)


@functools.cache
def _lent_class(own: Any) -> type:
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (_Lent, own), {**names, "_own_class": own})
