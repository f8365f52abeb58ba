"""Modules that take a component's place in a diffusers pipeline and run its graph elsewhere.

Each one has the attributes of the original that SDXL pipelines read, answers the calls that they
make, and refuses an argument that its graph does not have: nothing is dropped without a word.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from ovtensor.errors import ComponentError, NonFiniteError
from ovtensor.sdxl.graphs import added_embeds, shallow_copy, time_waves

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.sdxl.events import Events
    from ovtensor.sdxl.runners import Runner


class _StandIn(torch.nn.Module):
    """Common to all: a runner, the original's config, and the dtype that the pipeline sees."""

    def __init__(self, runner: Runner, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.runner = runner
        self.config = config
        self.dtype = dtype
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where results arrive unless the inputs were elsewhere."""
        return torch.device("cpu")

    def _apply(self, fn: Any, recurse: bool = True) -> _StandIn:  # noqa: ARG002
        # There are no weights to move: `.to()` changes neither where nor in what this computes.
        return self

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse: the weights are not here."""
        raise ComponentError(
            f"{self.runner.name} holds a compiled graph, not the weights; save the pipeline "
            f"outside the `with` block"
        )


class UNetStandIn(_StandIn):
    """In place of ``UNet2DConditionModel``."""

    def __init__(self, runner: Runner, unet: Any, dtype: torch.dtype) -> None:
        super().__init__(runner, unet.config, dtype)
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
        super().__init__(runner, text_encoder.config, dtype)
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


class _ConvolutionsStandIn(torch.nn.Module):
    """In place of a VAE's encoder or decoder together with its 1x1 convolution."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.runner = runner
        # diffusers reads a model's dtype off its tensors, and this is the only one left.
        self.register_buffer("interface_dtype", torch.empty(0), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> _ConvolutionsStandIn:  # noqa: ARG002
        return self  # as for every stand-in

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        (output,) = self.runner(sample)
        return output.to(sample.device)


class _Decoder(torch.nn.Module):
    """A VAE's decoder whose pixels are checked: one that overflows runs once more in float32."""

    def __init__(
        self, decoder: torch.nn.Module, in_f32: Callable[..., Any] | None, events: Events
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self._in_f32 = in_f32
        self._events = events

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._events.stage("decode", "vae_decoder"):
            pixels: torch.Tensor = self.decoder(sample, *args, **kwargs)
            if torch.isfinite(pixels).all():
                return pixels
            if not torch.isfinite(sample).all():
                raise NonFiniteError(
                    "the latents that vae_decoder was given hold NaN or infinity; it was the "
                    "unet or the scheduler that made them"
                )
            if self._in_f32 is not None:
                warnings.warn(
                    "vae_decoder gave NaN or infinity and runs once more in float32; give "
                    'vae=Backend(..., precision="f32") to spare the first run',
                    stacklevel=2,
                )
                (pixels,) = self._in_f32(sample)
                pixels = pixels.to(sample.device)
            if not torch.isfinite(pixels).all():
                raise NonFiniteError(
                    "vae_decoder gave NaN or infinity in float32, from finite latents: its weights "
                    "are broken, or the latents are out of its range"
                )
            return pixels


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
    replaced["encoder"] = _ConvolutionsStandIn(encoder)
    replaced["decoder"] = _Decoder(_ConvolutionsStandIn(decoder), in_f32, events)
    return shallow_copy(vae, **replaced)


def guarded_vae(vae: Any, events: Events) -> Any:
    """A shallow copy of ``vae``, with the same weights, whose pixels are checked."""
    return shallow_copy(vae, decoder=_Decoder(vae.decoder, None, events))


def _given(arguments: dict[str, Any]) -> list[str]:
    """Names of the arguments that say something: neither None nor an empty container."""
    return [
        name
        for name, value in arguments.items()
        if value is not None and not (isinstance(value, dict | list | tuple) and not value)
    ]
