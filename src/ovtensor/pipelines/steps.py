"""The denoising steps of a call: checked for NaN, and told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.events import Event
from ovtensor.nonfinite import act, policy_in_force

if TYPE_CHECKING:
    from ovtensor.engine.events import Events
    from ovtensor.nonfinite import Policy


class StepWatch:
    """Called at the end of each step: checks the latents, tells of the step, asks the caller's."""

    def __init__(
        self, events: Events, nonfinite: Policy | None, callback: Any, tensors: list[str] | None
    ) -> None:
        self._events = events
        self._nonfinite = nonfinite
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
        """Tell that a step has ended, and ask the caller's callback."""
        seconds = time.perf_counter() - self._start
        latents, steps = tensors["latents"], _steps(pipe)
        if not torch.isfinite(latents).all():
            broken = int((~torch.isfinite(latents)).sum())
            of = "" if steps is None else f" of {steps}"
            act(
                policy_in_force(self._nonfinite),
                f"the unet gave NaN or infinity at step {step + 1}{of} (timestep "
                f"{float(timestep):g}): {broken} of {latents.numel()} latents; most often its "
                f'precision is too narrow, so give unet=Backend(..., precision="f32")',
                component="unet",
                step=step,
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
