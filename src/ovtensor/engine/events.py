"""What a session tells while it works: stages to a callback, and a bar while it opens."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

Stage: TypeAlias = Literal["load", "convert", "compile", "warm-up", "step", "decode"]


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One stage of a session's work began or ended.

    Attributes
    ----------
    stage : {"load", "convert", "compile", "warm-up", "step", "decode"}
        Weights are loaded; a graph is converted, compiled, run once on a small input; a denoising
        step or a pass of the VAE's decoder, of which slicing and tiling make several.
    state : {"started", "finished"}
        A stage that raises, and a step that is interrupted, has no second event.
    component : str
        ``"unet"``, ``"vae"``, ``"vae_decoder"``, ``"vae_encoder"``, ``"text_encoder"`` or
        ``"text_encoder_2"``.
    seconds : float or None
        Wall-clock seconds that the stage took, when it has finished; without what
        ``callback_on_step_end`` did.
    step, steps : int or None
        Which denoising step it is, from 0, and of how many.
    """

    stage: Stage
    state: Literal["started", "finished"]
    component: str
    seconds: float | None = None
    step: int | None = None
    steps: int | None = None


class Events:
    """Passes events on; what the callback raises ends the work that it interrupts."""

    def __init__(self, on_event: Callable[[Event], Any] | None) -> None:
        self._on_event = on_event
        self._bar: tqdm[Any] | None = None

    @contextlib.contextmanager
    def bar(self, disable: bool | None) -> Iterator[Self]:
        """Show the stages within as a bar; None shows it on a terminal only."""
        with tqdm(disable=disable, leave=False, unit=" stages") as bar:
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None

    @contextlib.contextmanager
    def stage(self, stage: Stage, component: str) -> Iterator[None]:
        """Announce what happens within; the end only if it does not raise."""
        if self._bar is not None:
            self._bar.set_description(f"{stage} {component}")
        self.emit(Event(stage, "started", component))
        start = time.perf_counter()
        yield
        self.emit(Event(stage, "finished", component, time.perf_counter() - start))
        if self._bar is not None:
            self._bar.update()

    def passed(self, stage: Stage, component: str, seconds: float) -> None:
        """Announce what went on in another thread, when it is over."""
        self.emit(Event(stage, "started", component))
        self.emit(Event(stage, "finished", component, seconds))
        if self._bar is not None:
            self._bar.update()

    def emit(self, event: Event) -> None:
        """Tell the callback, if there is one."""
        if self._on_event is not None:
            self._on_event(event)
