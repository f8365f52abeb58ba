"""CLIP's text encoder: one graph that gives all hidden states, and a proxy with its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ovtensor.engine.graph import Graph, GraphInput
from ovtensor.errors import ComponentError
from ovtensor.nonfinite import act, policy_in_force
from ovtensor.pipelines.kinds.base import GraphKind, Kind
from ovtensor.pipelines.proxies import ComponentProxy, given_arguments

if TYPE_CHECKING:
    from ovtensor.engine.runners import Runner
    from ovtensor.pipelines.kinds.base import Run
    from ovtensor.pipelines.proxies import Attachment


class _TextForward(torch.nn.Module):
    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.projects = hasattr(text_encoder, "text_projection")
        self.norm = (text_encoder.text_model if self.projects else text_encoder).final_layer_norm

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.text_encoder(input_ids, output_hidden_states=True, return_dict=True)
        pooled = output.text_embeds if self.projects else output.pooler_output
        # The last norm's own weights are results too: pipelines that skip layers apply it.
        norm = (self.norm.weight + 0, self.norm.bias + 0)
        results = (output.last_hidden_state, pooled, *norm, *output.hidden_states)
        return tuple(state.float() for state in results)


def text_encoder_graph(name: str, text_encoder: Any) -> Graph:
    """Token ids ``(batch, tokens)`` to last and pooled state, a norm's weights, hidden states."""
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
        probe,
        lambda input_ids: input_ids.shape[1],
    )


class _FinalNorm(torch.nn.Module):
    """The encoder's last norm, with weights that its graph gives."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon
        self.weights: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise hidden states ``(batch, tokens, width)`` that the encoder has given."""
        if self.weights is None:
            raise ComponentError("the final layer norm has no weights before the encoder has run")
        weight, bias = (one.to(states.device, states.dtype) for one in self.weights)
        return torch.nn.functional.layer_norm(states, weight.shape, weight, bias, self._epsilon)


class TextEncoderProxy(ComponentProxy):
    """In place of ``CLIPTextModel`` and ``CLIPTextModelWithProjection``."""

    def __init__(self, runner: Runner, text_encoder: Any, to: Attachment) -> None:
        super().__init__(runner, text_encoder, to)
        self._projects = hasattr(text_encoder, "text_projection")
        # transformers 5 took one level out of CLIPTextModel; diffusers looks for both.
        self.text_model = torch.nn.Module()
        norm = _FinalNorm(text_encoder.config.layer_norm_eps)
        self.text_model.final_layer_norm = self.final_layer_norm = norm

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> Any:
        """What transformers gives for ids ``(batch, 77)``, in the dtype that the pipeline sees."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.clip.modeling_clip import CLIPTextModelOutput

        given = {"attention_mask": attention_mask, "position_ids": position_ids, **unsupported}
        if refused := given_arguments(given):
            raise ComponentError(
                f"{self.runner.name} was called with {', '.join(refused)}, but its compiled graph "
                f'takes nothing but token ids; run it on torch ({self.argument}="torch") for this',
                component=self.runner.name,
            )
        results = self.runner(input_ids)
        self.final_layer_norm.weights = (results[2], results[3])
        last, pooled, *states = (
            state.to(input_ids.device, self.dtype) for state in (*results[:2], *results[4:])
        )
        if not all(bool(torch.isfinite(state).all()) for state in (last, pooled, *states)):
            act(
                policy_in_force(self.nonfinite),
                f"{self.runner.name} gave NaN or infinity; most often its precision is too "
                f'narrow, so give {self.argument}=Backend(..., precision="f32")',
                component=self.runner.name,
            )
        hidden = tuple(states) if output_hidden_states else None
        output = (
            CLIPTextModelOutput(text_embeds=pooled, last_hidden_state=last, hidden_states=hidden)
            if self._projects
            else BaseModelOutputWithPooling(
                last_hidden_state=last, pooler_output=pooled, hidden_states=hidden
            )
        )
        return output.to_tuple() if return_dict is False else output


class CLIPText(Kind):
    """``CLIPTextModel``, with and without a projection."""

    name = "CLIP text encoder"
    classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
    graphs = (GraphKind("", text_encoder_graph),)

    def proxy(self, shown: Any, run: Run, to: Attachment) -> Any:
        """See :class:`.Kind`."""
        return TextEncoderProxy(run(self.graphs[0]), shown, to)
