"""The pipeline that a block gives: a copy of diffusers' own, whose calls may overlap.

diffusers keeps the state of a call in the pipeline, in its scheduler and in its tokenizers. Here a
call that finds the pipeline busy runs on a copy of it with its own of these; all else is shared.
The copy's class is a subclass of the pipeline's: Python looks ``__call__`` up there. The pipeline
that it is a copy of is not touched.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

from ovtensor.errors import InputError, SessionClosedError
from ovtensor.pipelines.proxies import is_proxy, unsaved
from ovtensor.pipelines.steps import StepWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ovtensor.engine.events import Events
    from ovtensor.nonfinite import Policy

_STATE = "_ovtensor_state"
_WATCH = "_ovtensor_watch"  # of the call that runs on a pipeline


class _State:
    """Shared by an attached pipeline and the copies of it that run."""

    def __init__(
        self,
        tokenizers: Iterable[str],
        events: Events,
        nonfinite: Policy | None,
        ended: Callable[[], None],
    ) -> None:
        self.tokenizers = tuple(tokenizers)
        self.events = events
        self.nonfinite = nonfinite
        self.ended = ended  # called after each call
        self.busy = threading.Lock()  # held while a call runs on the pipeline itself
        self.copies: dict[int, Any] = {}  # on which other calls run, by identity


def attach(
    pipe: Any,
    *,
    tokenizers: Iterable[str],
    events: Events,
    nonfinite: Policy | None,
    ended: Callable[[], None],
) -> Any:
    """A copy of ``pipe`` whose calls are kept apart and watched, ``ended`` after each."""
    state = _State(tokenizers, events, nonfinite, ended)
    attached = _copied(pipe, state)
    attached.__dict__[_STATE] = state
    own: Any = type(pipe)
    attached.__class__ = _attached_class(own)
    return attached


def copied(pipe: Any) -> Any:
    """Another attached pipeline of the same components, with its own scheduler and tokenizers."""
    return _copied(pipe, pipe.__dict__[_STATE])


def put(pipe: Any, name: str, component: Any) -> None:
    """Put a component into an attached pipeline; its config goes on to name the original."""
    pipe.__dict__[name] = component


def _copied(pipe: Any, state: _State) -> Any:
    other = copy.copy(pipe)
    for name in state.tokenizers:  # they keep the padding of the call that goes on
        if getattr(pipe, name, None) is not None:
            put(other, name, copy.deepcopy(getattr(pipe, name)))
    scheduler = pipe.scheduler
    # As new: the state of a scheduler in use is no start for another one.
    put(other, "scheduler", type(scheduler).from_config(scheduler.config))
    return other


class _Attached:
    """What the subclass adds; every other attribute is that of the pipeline's own class."""

    __dict__: dict[str, Any]
    _own_class: type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state: _State = self.__dict__[_STATE]
        if state.busy.acquire(blocking=False):
            try:
                return _run(self._own_class, self, state, args, kwargs)
            finally:
                state.busy.release()
                state.ended()
        other = copied(self)
        state.copies[id(other)] = other
        try:
            return _run(self._own_class, other, state, args, kwargs)
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
        for name, component in self.components.items():  # type: ignore[attr-defined]
            if is_proxy(component):
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


class ClosedComponent:
    """What a pipeline finds in place of its components after its session was closed."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # copy, pickle and repr ask for what need not be there
            raise AttributeError(attribute)
        raise SessionClosedError(
            f"the pipeline's {self.__dict__['name']} was released when its session was closed; "
            f"use the pipeline inside the `with` block, or open a new session",
            component=self.__dict__["name"],
        )

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raise ``SessionClosedError``."""
        return self.forward


def _run(own: Any, pipe: Any, state: _State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a pipeline as its own class would be called, and watch its steps."""
    signature = inspect.signature(own.__call__)
    if "callback_on_step_end" in signature.parameters:
        bound = signature.bind(pipe, *args, **kwargs)
        watch = StepWatch(
            state.events,
            state.nonfinite,
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
def _attached_class(own: Any) -> type:
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (_Attached, own), {**names, "_own_class": own})
