"""The computation of each component as a module of flat float32 tensors.

diffusers calls its components with keywords, dictionaries and optional tensors; OpenVINO converts
a module that takes and gives plain tensors. Each graph here closes that gap once, for tracing and
for running in torch alike: float32 in, the component's own precision inside, float32 out.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.copies import shallow_copy
from ovtensor.engine.identity import plain
from ovtensor.errors import ComponentError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True)
class GraphInput:
    """One input: its name, its shape (-1 where any size goes) and a small example.

    Where the first size is 1, a batch is computed one by one: a picture keeps every core busy, and
    what lies between the layers of several would be in memory at once.
    """

    name: str
    shape: tuple[int, ...]
    example: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """What is traced: ``module(*inputs)`` gives a tuple of float32 tensors.

    ``shortest_keys`` is, for given inputs, the length of the shortest sequence that any attention
    of the graph attends to: see :class:`ovtensor.engine.runners.OpenVINORunner`. ``probe`` gives
    small inputs of a component's usual kind, always the same, for a comparison of two runners.

    Everything but ``module`` follows from the component's config: a graph of a module on torch's
    meta device has the same inputs and probe.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[GraphInput, ...]
    shortest_keys: Callable[..., int]
    probe: Callable[[], tuple[torch.Tensor, ...]]


class _Given(torch.nn.Module):
    """Returns what its thread gave it beforehand, whatever it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self._of_thread = threading.local()

    def give(self, value: torch.Tensor) -> None:
        self._of_thread.value = value

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self._of_thread.value
        return value


class _UNetForward(torch.nn.Module):
    """The UNet from the waves of its timestep and sizes onward: see :func:`time_waves`."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = shallow_copy(unet, time_proj=_Given(), add_time_proj=_Given())
        forward = plain(vars(self.unet).pop("forward", None))
        if (
            forward is not None
            and getattr(forward, "__func__", None) is not type(self.unet).forward
        ):
            raise ComponentError(
                "the unet has a forward of its own, which somebody put into it; take that out "
                'before the pipeline is split, or run it on torch (unet="torch")'
            )
        self.dtype = unet.dtype

    def forward(
        self,
        sample: torch.Tensor,
        time_waves: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_embeds: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        self.unet.time_proj.give(time_waves)
        # The UNet itself joins these two again; where they meet makes no difference.
        self.unet.add_time_proj.give(added_embeds[:, 1:])
        (noise,) = self.unet(
            sample.to(self.dtype),
            sample.new_zeros(()),  # not looked at: its waves are given
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            timestep_cond=None if timestep_cond is None else timestep_cond.to(self.dtype),
            added_cond_kwargs={
                "text_embeds": added_embeds[:, :1],
                "time_ids": sample.new_zeros(()),
            },
            return_dict=False,
        )
        return (noise.float(),)


def time_waves(unet: Any, timestep: torch.Tensor) -> torch.Tensor:
    """The sinusoids of timesteps ``(batch,)``, in float32.

    They stay outside of the graph because a device that executes bf16 or f16 rounds their phase,
    which goes up to 999 radians: in bf16 that alone multiplied the UNet's error by up to six.
    """
    waves: torch.Tensor = unet.time_proj(timestep.float())
    return waves


def added_embeds(unet: Any, text_embeds: torch.Tensor, time_ids: torch.Tensor) -> torch.Tensor:
    """Pooled text and the sinusoids of sizes ``(batch, 6)``, joined, in float32.

    A refiner has five sizes instead. As for :func:`time_waves`, their phase must not be rounded.
    """
    waves = unet.add_time_proj(time_ids.float().flatten()).reshape(len(text_embeds), -1)
    return torch.cat([text_embeds.float(), waves], dim=-1)


class _Convolutions(torch.nn.Module):
    def __init__(self, *parts: torch.nn.Module | None) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(part for part in parts if part is not None)
        self.dtype = next(self.parameters()).dtype

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sample = sample.to(self.dtype)
        for part in self.parts:
            sample = part(sample)
        return (sample.float(),)


class _TextForward(torch.nn.Module):
    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.text_encoder(input_ids, output_hidden_states=True, return_dict=True)
        return tuple(state.float() for state in (output[0], *output.hidden_states))


def unet_graph(unet: Any) -> Graph:
    """The SDXL UNet: sample, waves of time, text and added conditioning to predicted noise."""
    config = unet.config
    # An example of odd height and width makes diffusers resize to the skip connection's size
    # instead of doubling, and only that is right for every latent size.
    depth = 2 ** (len(config.block_out_channels) - 1)
    side, batch, tokens = depth * 2 + 1, 2, 3
    waves = time_waves(unet, torch.zeros(batch))
    text = config.cross_attention_dim
    added = config.projection_class_embeddings_input_dim
    distilled = config.time_cond_proj_dim  # guidance is an input of the model

    def dynamic(name: str, example: torch.Tensor) -> GraphInput:
        return GraphInput(name, (-1, *example.shape[1:]), example)

    inputs = [
        GraphInput(
            "sample",
            (-1, config.in_channels, -1, -1),
            torch.zeros(batch, config.in_channels, side, side),
        ),
        dynamic("time_waves", waves),
        GraphInput("encoder_hidden_states", (-1, -1, text), torch.zeros(batch, tokens, text)),
        dynamic("added_embeds", torch.zeros(batch, added)),
    ]
    if distilled is not None:
        inputs.append(dynamic("timestep_cond", torch.zeros(batch, distilled)))

    time_proj = unet.time_proj  # what follows must not keep the weights alive

    def probe() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        given = [
            normal(batch, config.in_channels, 4 * depth, 4 * depth),
            time_proj(torch.tensor([17.0, 951.0])),
            normal(batch, 77, text),
            normal(batch, added),
        ]
        if distilled is not None:
            given.append(normal(batch, distilled))
        return tuple(given)

    def shortest_keys(sample: torch.Tensor, _: Any, text: torch.Tensor, *__: Any) -> int:
        height, width = (-(-side // depth) for side in sample.shape[2:])
        return int(min(height * width, text.shape[1]))

    return Graph("unet", _UNetForward(unet), tuple(inputs), shortest_keys, probe)


def vae_decoder_graph(vae: Any) -> Graph:
    """Latents ``(1, 4, h, w)`` to pixels in [-1, 1] ``(1, 3, 8h, 8w)``."""
    channels = vae.config.latent_channels
    return Graph(
        "vae_decoder",
        _Convolutions(vae.post_quant_conv, vae.decoder),
        (GraphInput("latents", (1, channels, -1, -1), torch.zeros(1, channels, 9, 9)),),
        lambda latents: latents.shape[2] * latents.shape[3],
        lambda: (torch.randn(1, channels, 12, 12, generator=torch.Generator().manual_seed(0)),),
    )


def vae_encoder_graph(vae: Any) -> Graph:
    """Pixels in [-1, 1] ``(1, 3, 8h, 8w)`` to moments of the latents ``(1, 8, h, w)``."""
    channels, scale = vae.config.in_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    example = torch.zeros(1, channels, 9 * scale, 9 * scale)
    return Graph(
        "vae_encoder",
        _Convolutions(vae.encoder, vae.quant_conv),
        (GraphInput("pixels", (1, channels, -1, -1), example),),
        lambda pixels: (pixels.shape[2] // scale) * (pixels.shape[3] // scale),
        lambda: (
            torch.empty_like(example).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)),
        ),
    )


def text_encoder_graph(name: str, text_encoder: Any) -> Graph:
    """Token ids ``(batch, tokens)`` to the pooled or last state, then every hidden state."""
    config = text_encoder.config
    tokens = config.max_position_embeddings
    ids = torch.full((2, tokens), config.eos_token_id)
    ids[:, 0] = config.bos_token_id

    def probe() -> tuple[torch.Tensor, ...]:
        given, words = ids.clone(), (2, tokens // 2)
        given[:, 1 : 1 + words[1]] = torch.randint(
            config.vocab_size, words, generator=torch.Generator().manual_seed(0)
        )
        return (given,)

    return Graph(
        name,
        _TextForward(text_encoder),
        (GraphInput("input_ids", (-1, tokens), ids),),
        lambda input_ids: input_ids.shape[1],
        probe,
    )
