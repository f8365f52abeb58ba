"""The KL autoencoder: encoder and decoder a graph each, and a copy of it that runs them."""

from __future__ import annotations

import functools
import logging
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ovtensor.engine.copies import shallow_copy
from ovtensor.engine.graph import Graph, GraphInput, GraphTraits
from ovtensor.engine.identity import plain
from ovtensor.nonfinite import act, policy_in_force
from ovtensor.pipelines.kinds.base import GraphKind, Kind
from ovtensor.pipelines.proxies import Proxy, unsaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovtensor.engine.runners import Runner
    from ovtensor.pipelines.kinds.base import Run
    from ovtensor.pipelines.proxies import Attachment


_log = logging.getLogger("ovtensor")


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


def decoder_graph(name: str, vae: Any) -> Graph:
    """Latents ``(1, 4, h, w)`` to pixels in [-1, 1] ``(1, 3, 8h, 8w)``."""
    channels = vae.config.latent_channels
    return Graph(
        name,
        _Convolutions(vae.post_quant_conv, vae.decoder),
        (GraphInput("latents", (1, channels, -1, -1), torch.zeros(1, channels, 9, 9)),),
        lambda: (torch.randn(1, channels, 12, 12, generator=torch.Generator().manual_seed(0)),),
        lambda latents: latents.shape[2] * latents.shape[3],
    )


def encoder_graph(name: str, vae: Any) -> Graph:
    """Pixels in [-1, 1] ``(1, 3, 8h, 8w)`` to moments of the latents ``(1, 8, h, w)``."""
    channels, scale = vae.config.in_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    example = torch.zeros(1, channels, 9 * scale, 9 * scale)
    return Graph(
        name,
        _Convolutions(vae.encoder, vae.quant_conv),
        (GraphInput("pixels", (1, channels, -1, -1), example),),
        lambda: (
            torch.empty_like(example).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)),
        ),
        lambda pixels: (pixels.shape[2] // scale) * (pixels.shape[3] // scale),
    )


class _ConvolutionsProxy(Proxy):
    """In place of an encoder or decoder together with its 1x1 convolution."""

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return _convolved(self.runner, sample)


def _convolved(runner: Runner, sample: torch.Tensor) -> torch.Tensor:
    (output,) = runner(sample)
    return output.to(sample.device)


def _watched(
    decode: Callable[..., torch.Tensor], in_f32: Callable[..., Any] | None, to: Attachment
) -> Callable[..., torch.Tensor]:
    """Check a decoder's pixels; where they overflow, have them made once more in float32."""
    name = f"{to.name}_decoder"

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with to.events.stage("decode", name):
            pixels = decode(sample, *args, **kwargs)
            if torch.isfinite(pixels).all():
                return pixels
            policy = policy_in_force(to.nonfinite)
            if not torch.isfinite(sample).all():
                act(
                    policy,
                    f"the latents that {name} was given hold NaN or infinity; it was the "
                    f"unet or the scheduler that made them",
                    component=name,
                )
                return pixels
            if in_f32 is not None:
                _log.info("%s falls back to float32", name)
                warnings.warn(
                    f"{name} gave NaN or infinity and runs once more in float32; give "
                    f'{to.argument}=Backend(..., precision="f32") to spare the first run',
                    stacklevel=2,
                )
                (pixels,) = in_f32(sample)
                pixels = pixels.to(sample.device)
            if not torch.isfinite(pixels).all():
                act(
                    policy,
                    f"{name} gave NaN or infinity in float32, from finite latents: its weights "
                    f"are broken, or the latents are out of its range",
                    component=name,
                )
            return pixels

    return forward


def _with_forward(module: Any, forward: Callable[..., Any]) -> Any:
    module.forward = forward
    return module


DECODER = GraphKind(
    "_decoder",
    decoder_graph,
    GraphTraits(f32_by_default=True, convolutional=True, needs_most_memory=True),
)
ENCODER = GraphKind("_encoder", encoder_graph, GraphTraits(f32_by_default=True, convolutional=True))


class AutoencoderKL(Kind):
    """``AutoencoderKL``, whose values overflow in half precision."""

    name = "KL autoencoder"
    classes: ClassVar[tuple[str, ...]] = ("AutoencoderKL",)
    graphs: ClassVar[tuple[GraphKind, ...]] = (DECODER, ENCODER)

    def dtype_on_torch(self, module: Any) -> torch.dtype:
        """See :class:`.Kind`: float32 where diffusers would upcast it."""
        dtype = super().dtype_on_torch(module)
        upcast = dtype == torch.float16 and module.config.get("force_upcast")
        return torch.float32 if upcast else dtype

    def reruns(self, to: Attachment) -> bool:
        """See :class:`.Kind`."""
        return to.narrow

    def watched(self, module: Any, to: Attachment) -> Any:
        """See :class:`.Kind`: a copy with the same weights, whose pixels are checked."""
        vae = plain(module)
        decoder = shallow_copy(vae.decoder)
        # Calling the original runs its hooks; in the copy they would run once more.
        decoder._forward_hooks, decoder._forward_pre_hooks = OrderedDict(), OrderedDict()  # noqa: SLF001
        return shallow_copy(vae, decoder=_with_forward(decoder, _watched(vae.decoder, None, to)))

    def proxy(self, shown: Any, run: Run, to: Attachment) -> Any:
        """See :class:`.Kind`: a shallow copy of it whose convolutions run elsewhere.

        Slicing, tiling, posteriors and every method stay diffusers' own. It computes in float32
        for whoever looks, so that no pipeline tries to upcast it. `shown` itself is not changed,
        and its weights are not kept alive.
        """
        replaced: dict[str, torch.nn.Module | None] = {
            name: torch.nn.Identity() for name, _ in shown.named_children()
        }
        encoder = run(ENCODER, deferred=not to.encodes)
        replaced["encoder"] = _ConvolutionsProxy(encoder, shown.device, to.argument)
        runner = run(DECODER)
        in_f32 = run(DECODER, in_f32=True, deferred=True) if to.narrow else None
        replaced["decoder"] = _with_forward(
            _ConvolutionsProxy(runner, shown.device, to.argument),
            _watched(functools.partial(_convolved, runner), in_f32, to),
        )
        proxy = shallow_copy(shown, **replaced)

        def save_pretrained(*_args: Any, **_kwargs: Any) -> None:
            raise unsaved(to.name)

        proxy.save_pretrained = save_pretrained
        return proxy


class OtherAutoencoder(AutoencoderKL):
    """Autoencoders whose pixels are checked on torch, and that no graph is known for."""

    name = "autoencoder"
    classes: ClassVar[tuple[str, ...]] = (
        "AutoencoderTiny",
        "AsymmetricAutoencoderKL",
        "ConsistencyDecoderVAE",
    )
    graphs: ClassVar[tuple[GraphKind, ...]] = ()

    def reruns(self, to: Attachment) -> bool:  # noqa: ARG002
        """See :class:`.Kind`."""
        return False
