"""Modules that take a component's place in a diffusers pipeline and run its graph elsewhere.

Each one has the attributes of the original that SDXL pipelines read, answers the calls that they
make, and refuses an argument that its graph does not have: nothing is dropped without a word.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from ovtensor.engine.copies import shallow_copy
from ovtensor.engine.identity import plain
from ovtensor.errors import ComponentError, NonFiniteError
from ovtensor.pipelines.graphs import added_embeds, time_waves

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.engine.events import Events
    from ovtensor.engine.runners import Runner

# Which argument of a session says where each runs; for the rest it is text_encoders.
_ARGUMENT = {"unet": "unet", "vae_encoder": "vae", "vae_decoder": "vae"}


class _Elsewhere(torch.nn.Module):
    """A module without weights, whose results a runner makes.

    They arrive where the inputs are. A pipeline puts its inputs on the device of its first module:
    so this one tells that of the module in whose place it is, or where it was moved.
    """

    def __init__(self, runner: Runner, device: torch.device) -> None:
        super().__init__()
        self.runner = runner
        # diffusers reads device and dtype off a model's tensors, accelerate off its parameters,
        # and this is the only one left.
        self.place = _nothing_on("cpu" if device.type == "meta" else device)
        self.eval()

    def _apply(self, fn: Any, recurse: bool = True) -> _Elsewhere:  # noqa: ARG002
        # There are no weights to move: `.to()` changes neither where nor in what this computes.
        self.place = _nothing_on(fn(self.place).device)
        return self

    def __getattr__(self, attribute: str) -> Any:
        try:
            return super().__getattr__(attribute)
        except AttributeError as error:
            if attribute.startswith("_"):  # copy, pickle and repr ask for what need not be there
                raise
            name = self.runner.name
            raise AttributeError(
                f"{name} is a stand-in without {attribute!r}: it is computed elsewhere; change "
                f"the component before the pipeline is split, or run it on torch "
                f'({_ARGUMENT.get(name, "text_encoders")}="torch")'
            ) from error


def _nothing_on(device: torch.device | str) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(0, device=device), requires_grad=False)


class _StandIn(_Elsewhere):
    """For a whole component: with the original's config, and the dtype that the pipeline sees."""

    def __init__(self, runner: Runner, original: Any, dtype: torch.dtype) -> None:
        super().__init__(runner, original.device)
        self.config = original.config
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where a pipeline is to compute what it computes itself."""
        return self.place.device

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse: the weights are not here."""
        raise unsaved(self.runner.name)


class UNetStandIn(_StandIn):
    """In place of ``UNet2DConditionModel``."""

    def __init__(self, runner: Runner, unet: Any, dtype: torch.dtype) -> None:
        super().__init__(runner, unet, dtype)
        self.time_proj, self.add_time_proj = unet.time_proj, unet.add_time_proj  # no weights
        # Pipelines check the length of their size conditioning against this layer.
        self.add_embedding = torch.nn.Module()
        self.add_embedding.linear_1 = torch.nn.Module()
        self.add_embedding.linear_1.in_features = unet.add_embedding.linear_1.in_features

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        return_dict: bool = True,
        **unsupported: Any,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predict the noise of ``sample`` ``(batch, 4, h, w)``; shape, dtype, device as given."""
        conditions = dict(added_cond_kwargs or {})
        try:
            text_embeds, time_ids = conditions.pop("text_embeds"), conditions.pop("time_ids")
        except KeyError as error:
            raise ComponentError(
                f"SDXL's UNet needs added_cond_kwargs[{error}]; it was called with "
                f"{sorted(added_cond_kwargs or {})}"
            ) from error
        refused = _given({**unsupported, **conditions})
        if refused:
            raise ComponentError(
                f"the UNet was called with {', '.join(refused)}, which its compiled graph does "
                f'not take; run the UNet on torch (unet="torch") for this'
            )
        timesteps = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(len(sample))
        inputs = [
            sample,
            time_waves(self, timesteps),
            encoder_hidden_states,
            added_embeds(self, text_embeds, time_ids),
        ]
        if self.config.time_cond_proj_dim is not None:
            if timestep_cond is None:  # what the embedding's missing addend stands for
                timestep_cond = torch.zeros(len(sample), self.config.time_cond_proj_dim)
            inputs.append(timestep_cond)
        (noise,) = self.runner(*inputs)
        noise = noise.to(sample.device, sample.dtype)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)


class TextEncoderStandIn(_StandIn):
    """In place of ``CLIPTextModel`` and ``CLIPTextModelWithProjection``."""

    def __init__(self, runner: Runner, text_encoder: Any, dtype: torch.dtype) -> None:
        super().__init__(runner, text_encoder, dtype)
        self._projects = hasattr(text_encoder, "text_projection")

    def forward(
        self,
        input_ids: torch.Tensor,
        output_hidden_states: bool | None = None,  # noqa: ARG002 - they are always there
        return_dict: bool = True,
        **unsupported: Any,
    ) -> CLIPTextModelOutput | BaseModelOutput | tuple[Any, ...]:
        """All hidden states for ids ``(batch, 77)``; the projection or the last state first."""
        refused = _given(unsupported)
        if refused:
            raise ComponentError(
                f"{self.runner.name} was called with {', '.join(refused)}, but its compiled graph "
                f'takes nothing but token ids; run it on torch (text_encoders="torch") for this'
            )
        first, *states = (
            state.to(input_ids.device, self.dtype) for state in self.runner(input_ids)
        )
        if not all(bool(torch.isfinite(state).all()) for state in (first, *states)):
            raise NonFiniteError(
                f"{self.runner.name} gave NaN or infinity; most often its precision is too "
                f'narrow, so give text_encoders=Backend(..., precision="f32")'
            )
        output = (
            CLIPTextModelOutput(text_embeds=first, hidden_states=tuple(states))
            if self._projects
            else BaseModelOutput(last_hidden_state=first, hidden_states=tuple(states))
        )
        return output if return_dict else output.to_tuple()


class _ConvolutionsStandIn(_Elsewhere):
    """In place of a VAE's encoder or decoder together with its 1x1 convolution."""

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return _convolved(self.runner, sample)


def _convolved(runner: Runner, sample: torch.Tensor) -> torch.Tensor:
    (output,) = runner(sample)
    return output.to(sample.device)


def _guarded(
    decode: Callable[..., torch.Tensor], in_f32: Callable[..., Any] | None, events: Events
) -> Callable[..., torch.Tensor]:
    """Check a decoder's pixels; where they overflow, have them made once more in float32."""

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with events.stage("decode", "vae_decoder"):
            pixels = decode(sample, *args, **kwargs)
            if torch.isfinite(pixels).all():
                return pixels
            if not torch.isfinite(sample).all():
                raise NonFiniteError(
                    "the latents that vae_decoder was given hold NaN or infinity; it was the "
                    "unet or the scheduler that made them"
                )
            if in_f32 is not None:
                warnings.warn(
                    "vae_decoder gave NaN or infinity and runs once more in float32; give "
                    'vae=Backend(..., precision="f32") to spare the first run',
                    stacklevel=2,
                )
                (pixels,) = in_f32(sample)
                pixels = pixels.to(sample.device)
            if not torch.isfinite(pixels).all():
                raise NonFiniteError(
                    "vae_decoder gave NaN or infinity in float32, from finite latents: its weights "
                    "are broken, or the latents are out of its range"
                )
            return pixels

    return forward


def vae_stand_in(
    vae: Any, encoder: Runner, decoder: Runner, in_f32: Runner | None, events: Events
) -> Any:
    """A shallow copy of ``vae`` whose convolutions run elsewhere.

    Slicing, tiling, posteriors and every method stay diffusers' own. It computes in float32 for
    whoever looks, so that no pipeline tries to upcast it. ``vae`` itself is not changed, and its
    weights are not kept alive.
    """
    replaced: dict[str, torch.nn.Module | None] = {
        name: torch.nn.Identity() for name, _ in vae.named_children()
    }
    replaced["encoder"] = _ConvolutionsStandIn(encoder, vae.device)
    decode = functools.partial(_convolved, decoder)
    replaced["decoder"] = _with_forward(
        _ConvolutionsStandIn(decoder, vae.device), _guarded(decode, in_f32, events)
    )
    stand_in = shallow_copy(vae, **replaced)

    def save_pretrained(*_args: Any, **_kwargs: Any) -> None:
        raise unsaved("vae")

    stand_in.save_pretrained = save_pretrained
    return stand_in


def guarded_vae(vae: Any, events: Events) -> Any:
    """A shallow copy of ``vae``, with the same weights, whose pixels are checked."""
    vae = plain(vae)
    decoder = shallow_copy(vae.decoder)
    # Calling the original runs its hooks; in the copy they would run once more.
    decoder._forward_hooks, decoder._forward_pre_hooks = OrderedDict(), OrderedDict()  # noqa: SLF001
    return shallow_copy(vae, decoder=_with_forward(decoder, _guarded(vae.decoder, None, events)))


def stands_in(component: Any) -> bool:
    """Tell whether a component, or a part of it, is computed elsewhere."""
    return isinstance(component, torch.nn.Module) and any(
        isinstance(part, _Elsewhere) for part in component.modules()
    )


def unsaved(name: str) -> ComponentError:
    """Make the error of saving what has no weights."""
    return ComponentError(
        f"{name} is computed elsewhere and has no weights here; save the pipeline outside of the "
        f"`with` block"
    )


def _with_forward(module: Any, forward: Callable[..., Any]) -> Any:
    module.forward = forward
    return module


def _given(arguments: dict[str, Any]) -> list[str]:
    """Names of the arguments that say something: neither None nor an empty container."""
    return [
        name
        for name, value in arguments.items()
        if value is not None and not (isinstance(value, dict | list | tuple) and not value)
    ]
