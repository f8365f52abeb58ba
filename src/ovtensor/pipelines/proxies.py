"""Modules that take a component's place in a diffusers pipeline and have its graph run elsewhere.

Each one has the attributes of the original that pipelines read, answers the calls that they make,
and refuses an argument that its graph does not have: nothing is dropped without a word.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.errors import ComponentError

if TYPE_CHECKING:
    from ovtensor.engine.events import Events
    from ovtensor.engine.runners import Runner
    from ovtensor.nonfinite import Policy


@dataclasses.dataclass(frozen=True, slots=True)
class Attachment:
    """What a proxy is made for.

    Attributes
    ----------
    name : str
        Of the component in the pipeline.
    argument : str
        The argument of a session that says where it runs, for error messages.
    dtype : torch.dtype
        That the pipeline sees.
    narrow : bool
        Whether numbers are rounded to fewer bits than float32 has.
    encodes : bool
        Whether the pipeline takes a picture, so that an encoder is needed at once.
    events : Events
        Who is told.
    nonfinite : {"raise", "warn", "ignore"} or None
        What NaN and infinity do, as the session was told.
    """

    name: str
    argument: str
    dtype: torch.dtype
    narrow: bool
    encodes: bool
    events: Events
    nonfinite: Policy | None


class Proxy(torch.nn.Module):
    """A module without weights, whose results a runner makes.

    They arrive where the inputs are. A pipeline puts its inputs on the device of its first module:
    so this one tells that of the module in whose place it is, or where it was moved.
    """

    def __init__(self, runner: Runner, device: torch.device, argument: str) -> None:
        super().__init__()
        self.runner = runner
        self.argument = argument
        # diffusers reads device and dtype off a model's tensors, accelerate off its parameters,
        # and this is the only one left.
        self.place = _nothing_on("cpu" if device.type == "meta" else device)
        self.eval()

    def _apply(self, fn: Any, recurse: bool = True) -> Proxy:  # noqa: ARG002
        # There are no weights to move: `.to()` changes neither where nor in what this computes.
        self.place = _nothing_on(fn(self.place).device)
        return self

    def __getattr__(self, attribute: str) -> Any:
        try:
            return super().__getattr__(attribute)
        except AttributeError as error:
            if attribute.startswith("_"):  # copy, pickle and repr ask for what need not be there
                raise
            raise AttributeError(
                f"{self.runner.name} is a proxy without {attribute!r}: it is computed elsewhere; "
                f"change the component before the pipeline is split, or run it on torch "
                f'({self.argument}="torch")'
            ) from error


def _nothing_on(device: torch.device | str) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(0, device=device), requires_grad=False)


class ComponentProxy(Proxy):
    """For a whole component: with the original's config, and the dtype that the pipeline sees."""

    def __init__(self, runner: Runner, original: Any, to: Attachment) -> None:
        super().__init__(runner, original.device, to.argument)
        self.config = original.config
        self.dtype = to.dtype
        self.nonfinite = to.nonfinite

    @property
    def device(self) -> torch.device:
        """Where a pipeline is to compute what it computes itself."""
        return self.place.device

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse: the weights are not here."""
        raise unsaved(self.runner.name)


def is_proxy(component: Any) -> bool:
    """Tell whether a component, or a part of it, is computed elsewhere."""
    return isinstance(component, torch.nn.Module) and any(
        isinstance(part, Proxy) for part in component.modules()
    )


def unsaved(name: str) -> ComponentError:
    """Make the error of saving what has no weights."""
    return ComponentError(
        f"{name} is computed elsewhere and has no weights here; save the pipeline outside of the "
        f"`with` block",
        component=name,
    )


def given_arguments(arguments: dict[str, Any]) -> list[str]:
    """Names of the arguments that say something: neither None nor an empty container."""
    return [
        name
        for name, value in arguments.items()
        if value is not None and not (isinstance(value, dict | list | tuple) and not value)
    ]
