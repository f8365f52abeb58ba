"""The 2-D UNet of Stable Diffusion: one graph, and a proxy that takes what pipelines give it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.copies import shallow_copy
from ovtensor.engine.graph import Graph, GraphInput, GraphTraits
from ovtensor.engine.identity import plain
from ovtensor.errors import ComponentError
from ovtensor.pipelines.kinds.base import GraphKind, Kind
from ovtensor.pipelines.proxies import ComponentProxy, given_arguments

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    from ovtensor.engine.runners import Runner
    from ovtensor.pipelines.kinds.base import Run
    from ovtensor.pipelines.proxies import Attachment


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
    """The UNet from its timestep's sinusoids onward: see :func:`timestep_embedding`."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self._adds = unet.config.addition_embed_type is not None
        given = {"time_proj": _Given()} | ({"add_time_proj": _Given()} if self._adds else {})
        self.unet = shallow_copy(unet, **given)
        forward = plain(vars(self.unet).pop("forward", None))
        if (
            forward is not None
            and getattr(forward, "__func__", None) is not type(self.unet).forward
        ):
            raise ComponentError(
                "the unet has a forward of its own, which somebody put into it; take that out "
                'before the pipeline is split, or run it on torch (unet="torch")',
                component="unet",
            )
        self.dtype = unet.dtype

    def forward(
        self,
        sample: torch.Tensor,
        timestep_embedding: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *conditions: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        rest = list(conditions)
        self.unet.time_proj.give(timestep_embedding)
        added: dict[str, torch.Tensor] | None = None
        if self._adds:
            added_embedding = rest.pop(0)
            # The UNet itself joins these two again; where they meet makes no difference.
            self.unet.add_time_proj.give(added_embedding[:, 1:])
            added = {"text_embeds": added_embedding[:, :1], "time_ids": sample.new_zeros(())}
        (noise,) = self.unet(
            sample.to(self.dtype),
            sample.new_zeros(()),  # not looked at: its sinusoids are given
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            timestep_cond=rest[0].to(self.dtype) if rest else None,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return (noise.float(),)


def timestep_embedding(unet: Any, timestep: torch.Tensor) -> torch.Tensor:
    """The sinusoids of timesteps ``(batch,)``, in float32.

    They stay outside of the graph because a device that executes bf16 or f16 rounds their phase,
    which goes up to 999 radians: in bf16 that alone multiplied the UNet's error by up to six.
    """
    embedding: torch.Tensor = unet.time_proj(timestep.float())
    return embedding


def added_embedding(unet: Any, text_embeds: torch.Tensor, time_ids: torch.Tensor) -> torch.Tensor:
    """Pooled text and the sinusoids of sizes ``(batch, 6)``, joined, in float32.

    A refiner has five sizes instead. As for :func:`timestep_embedding`, their phase must not be
    rounded.
    """
    sizes = unet.add_time_proj(time_ids.float().flatten()).reshape(len(text_embeds), -1)
    return torch.cat([text_embeds.float(), sizes], dim=-1)


def unet_graph(name: str, unet: Any) -> Graph:
    """Sample, timestep embedding, text and what else the UNet is conditioned on to noise."""
    config = unet.config
    # An example of odd height and width makes diffusers resize to the skip connection's size
    # instead of doubling, and only that is right for every latent size.
    depth = 2 ** (len(config.block_out_channels) - 1)
    side, batch, tokens = depth * 2 + 1, 2, 3
    embedding = timestep_embedding(unet, torch.zeros(batch))
    text = config.cross_attention_dim
    # The widths of conditions that have no other size: sizes and pooled text, and the guidance
    # that is an input of distilled models.
    widths = {
        "added_embedding": (
            None
            if config.addition_embed_type is None
            else config.projection_class_embeddings_input_dim
        ),
        "timestep_cond": config.time_cond_proj_dim,
    }
    widths = {key: width for key, width in widths.items() if width is not None}

    def rows(name: str, example: torch.Tensor) -> GraphInput:
        return GraphInput(name, (-1, *example.shape[1:]), example)

    channels = config.in_channels
    inputs = (
        GraphInput("sample", (-1, channels, -1, -1), torch.zeros(batch, channels, side, side)),
        rows("timestep_embedding", embedding),
        GraphInput("encoder_hidden_states", (-1, -1, text), torch.zeros(batch, tokens, text)),
        *(rows(key, torch.zeros(batch, width)) for key, width in widths.items()),
    )
    time_proj = unet.time_proj  # what follows must not keep the weights alive

    def probe() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        return (
            normal(batch, channels, 4 * depth, 4 * depth),
            time_proj(torch.tensor([17.0, 951.0])),
            normal(batch, 77, text),
            *(normal(batch, width) for width in widths.values()),
        )

    def shortest_keys(sample: torch.Tensor, _: Any, text: torch.Tensor, *__: Any) -> int:
        height, width = (-(-side // depth) for side in sample.shape[2:])
        return int(min(height * width, text.shape[1]))

    return Graph(name, _UNetForward(unet), inputs, probe, shortest_keys)


class UNetProxy(ComponentProxy):
    """In place of ``UNet2DConditionModel``."""

    def __init__(self, runner: Runner, unet: Any, to: Attachment) -> None:
        super().__init__(runner, unet, to)
        self.time_proj = unet.time_proj  # no weights
        self._adds = unet.config.addition_embed_type is not None
        if self._adds:
            self.add_time_proj = unet.add_time_proj
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
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        timesteps = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(len(sample))
        inputs = [sample, timestep_embedding(self, timesteps), encoder_hidden_states]
        conditions = dict(added_cond_kwargs or {})
        if self._adds:
            try:
                text_embeds, time_ids = conditions.pop("text_embeds"), conditions.pop("time_ids")
            except KeyError as error:
                raise ComponentError(
                    f"the UNet needs added_cond_kwargs[{error}]; it was called with "
                    f"{sorted(added_cond_kwargs or {})}",
                    component=self.runner.name,
                ) from error
            inputs.append(added_embedding(self, text_embeds, time_ids))
        if self.config.time_cond_proj_dim is not None:
            if timestep_cond is None:  # what the embedding's missing addend stands for
                timestep_cond = torch.zeros(len(sample), self.config.time_cond_proj_dim)
            inputs.append(timestep_cond)
        elif timestep_cond is not None:
            unsupported["timestep_cond"] = timestep_cond
        if refused := given_arguments({**unsupported, **conditions}):
            raise ComponentError(
                f"the UNet was called with {', '.join(refused)}, which its compiled graph does "
                f'not take; run the UNet on torch (unet="torch") for this',
                component=self.runner.name,
            )
        (noise,) = self.runner(*inputs)
        noise = noise.to(sample.device, sample.dtype)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)


class UNet2D(Kind):
    """``UNet2DConditionModel`` of Stable Diffusion and SDXL."""

    name = "2-D UNet"
    classes = ("UNet2DConditionModel",)
    graphs = (GraphKind("", unet_graph, GraphTraits(runs_every_step=True)),)

    def obstacle(self, module: Any) -> str | None:
        """See :class:`.Kind`: what it can be conditioned on that the graph does not take."""
        config = module.config
        wanted = {
            "addition_embed_type": (None, "text_time"),
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "encoder_hid_dim_type": (None,),
            "encoder_hid_dim": (None,),
        }
        for key, values in wanted.items():
            if (value := config.get(key)) not in values:
                return f"it has {key}={value!r}, which its graph does not take"
        if any(getattr(block, "s1", None) is not None for block in module.up_blocks):
            return "FreeU is on, whose Fourier transforms OpenVINO lacks (disable_freeu() ends it)"
        if not isinstance(config.cross_attention_dim, int):
            return f"it has cross_attention_dim={config.cross_attention_dim!r}"
        return None

    def proxy(self, shown: Any, run: Run, to: Attachment) -> Any:
        """See :class:`.Kind`."""
        return UNetProxy(run(self.graphs[0]), shown, to)
