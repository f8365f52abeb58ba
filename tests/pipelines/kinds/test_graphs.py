"""The graphs of the known kinds: what they compute at every size, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from devices import needs_bf16
from engine_graphs import opened
from ovtensor import to_numpy
from ovtensor.engine import convert
from ovtensor.engine.copies import with_dtype
from ovtensor.engine.passes.drop_ones import DropOnes
from ovtensor.engine.runners import TorchRunner
from ovtensor.errors import ComponentError
from ovtensor.pipelines.kinds import KINDS, kind_of
from ovtensor.pipelines.kinds.autoencoder_kl import DECODER, ENCODER
from ovtensor.pipelines.kinds.unet2d import added_embedding, timestep_embedding, unet_graph
from sdxl_scenes import load

UNET_TRAITS = next(kind for kind in KINDS if kind.name == "2-D UNet").graphs[0].traits


@pytest.fixture(scope="module")
def pipe():
    return load()


@pytest.fixture(scope="module")
def compiled_unet(pipe):
    runner = opened(unet_graph("unet", pipe.unet), UNET_TRAITS)
    yield runner
    runner.close()


def every_graph(pipe):
    """Each graph's way to be made, with a module that it is for."""
    for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
        module = getattr(pipe, name)
        for part in kind_of(module).graphs:
            yield part, f"{name}{part.suffix}", module


def unet_inputs(unet, timestep: float, batch=2, height=16, width=16, tokens=77):
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((batch, 6), 128.0)
    embedding = timestep_embedding(unet, torch.full((batch,), timestep))
    pooled = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
    sample = torch.randn(batch, 4, height, width, generator=generator)
    text = torch.randn(batch, tokens, unet.config.cross_attention_dim, generator=generator)
    text_embeds = torch.randn(batch, pooled, generator=generator)
    return sample, embedding, text, added_embedding(unet, text_embeds, ids)


def test_the_unet_graph_is_the_unet(pipe):
    graph = unet_graph("unet", pipe.unet)
    sample, _, text, added = inputs = unet_inputs(pipe.unet, 731.0)
    pooled = added.shape[1] - 6 * pipe.unet.config.addition_time_embed_dim
    with torch.no_grad():
        expected = pipe.unet(
            sample,
            731,
            encoder_hidden_states=text,
            added_cond_kwargs={
                "text_embeds": added[:, :pooled],
                "time_ids": torch.full((2, 6), 128.0),
            },
        ).sample
        (noise,) = graph.module(*inputs)
    assert torch.equal(noise, expected)


def test_a_meta_module_has_the_graphs_of_one_with_weights(pipe):
    for part, name, module in every_graph(pipe):
        with torch.device("meta"):
            meta = (
                type(module).from_config(module.config)
                if hasattr(module, "from_config")
                else type(module)(module.config)
            )
        real, bare = part.make(name, module), part.make(name, meta)
        for one, two in zip(real.inputs, bare.inputs, strict=True):
            assert (one.name, one.shape) == (two.name, two.shape)
            assert torch.equal(one.example, two.example)
        for one, two, again in zip(real.probe(), bare.probe(), real.probe(), strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, again)
        assert real.shortest_keys(*real.probe()) == bare.shortest_keys(*bare.probe()) > 1


@pytest.mark.parametrize(
    ("batch", "height", "width", "tokens"),
    [(1, 16, 16, 77), (2, 15, 17, 154), (3, 9, 12, 2), (1, 5, 1, 77)],
)
def test_the_converted_unet_takes_every_size(pipe, compiled_unet, batch, height, width, tokens):
    inputs = unet_inputs(pipe.unet, 500.0, batch, height, width, tokens)
    (expected,) = TorchRunner(unet_graph("unet", pipe.unet))(*inputs)
    torch.testing.assert_close(compiled_unet(*inputs)[0], expected, rtol=0, atol=2e-5)


def origin(node):
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    return node


@pytest.mark.slow
def test_nothing_is_multiplied_by_one_or_divided_by_it(pipe):
    for part, name, module in every_graph(pipe):
        model = convert.convert(part.make(name, module))
        DropOnes("f32").on_model(model)
        factors = []
        for op in model.get_ops():
            if op.get_type_name() in ("Multiply", "Divide"):
                # One divided by something is another matter.
                first = 1 if op.get_type_name() == "Divide" else 0
                factors += [origin(value.get_node()) for value in op.input_values()[first:]]
        constants = [node for node in factors if node.get_type_name() == "Constant"]
        assert constants or part is ENCODER, name
        assert not any(node.shape == [] and to_numpy(node) == 1 for node in constants), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "shape"),
    [(DECODER, (3, 4, 6, 5)), (ENCODER, (3, 3, 40, 48))],
    ids=["decoder", "encoder"],
)
def test_a_batch_of_pictures_is_computed_one_by_one(pipe, part, shape):
    graph = part.make("vae", pipe.vae)
    runner = opened(graph, part.traits)
    pictures = torch.randn(shape)
    (batch,) = runner(pictures)
    assert runner.stats.inferences == len(pictures)
    assert torch.equal(batch, torch.cat([runner(one[None])[0] for one in pictures]))
    torch.testing.assert_close(batch, TorchRunner(graph)(pictures)[0], rtol=0, atol=1e-5)
    runner.close()


@pytest.mark.parametrize(("side", "tokens"), [(4, 77), (16, 1)])
def test_a_sample_that_would_spoil_later_ones_is_refused(pipe, compiled_unet, side, tokens):
    inputs = unet_inputs(pipe.unet, 500.0, 1, side, side, tokens)
    before = compiled_unet.stats.inferences
    with pytest.raises(ComponentError, match=r"unet.*too small for OpenVINO's attention"):
        compiled_unet(*inputs)
    assert compiled_unet.stats.inferences == before


@pytest.mark.parametrize(
    ("part", "shape"),
    [(DECODER, (1, 4, 1, 1)), (ENCODER, (1, 3, 8, 8))],
    ids=["decoder", "encoder"],
)
def test_a_picture_that_would_spoil_later_ones_is_refused(pipe, part, shape):
    runner = opened(part.make("vae", pipe.vae), part.traits)
    with pytest.raises(ComponentError, match=r"vae.*too small for OpenVINO's attention"):
        runner(torch.zeros(shape))
    assert runner.stats.inferences == 0
    runner.close()


@needs_bf16
def test_bf16_is_as_exact_at_late_timesteps_as_at_early_ones(pipe):
    narrow = with_dtype(pipe.unet, torch.bfloat16)
    runner = opened(unet_graph("unet", narrow), UNET_TRAITS, "bf16")
    reference = TorchRunner(unet_graph("unet", pipe.unet))

    def error(timestep: float) -> float:
        inputs = unet_inputs(pipe.unet, timestep)
        (expected,) = reference(*inputs)
        return float((runner(*inputs)[0] - expected).norm() / expected.norm())

    # With the phases of the sinusoids inside the graph this ratio was between three and six.
    early, late = max(error(t) for t in (1.0, 50.0, 100.0)), error(951.0)
    assert late < 2 * early


@pytest.mark.slow
def test_a_distilled_unet_takes_its_guidance_as_an_input(pipe):
    config = {**pipe.unet.config, "time_cond_proj_dim": 32}
    torch.manual_seed(0)
    unet = type(pipe.unet).from_config(config).eval()
    graph = unet_graph("unet", unet)
    assert [entry.name for entry in graph.inputs][-1] == "timestep_cond"
    runner = opened(graph, UNET_TRAITS)
    inputs = (*unet_inputs(unet, 500.0), torch.randn(2, 32))
    with torch.no_grad():
        (expected,) = graph.module(*inputs)
    torch.testing.assert_close(runner(*inputs)[0], expected, rtol=0, atol=2e-5)
    other = runner(*inputs[:-1], torch.zeros(2, 32))[0]
    assert not torch.allclose(other, expected)


def test_a_text_encoder_gives_its_last_norm_between_pooled_and_hidden_states(pipe):
    """Pipelines that skip layers apply it to hidden states."""
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, name)
        (part,) = kind_of(encoder).graphs
        graph = part.make(name, encoder)
        (ids,) = graph.probe()
        runner = opened(graph, part.traits)
        last, pooled, weight, bias, *states = runner(ids)
        with torch.no_grad():
            right = encoder(ids, output_hidden_states=True)
        right_pooled = right.get("text_embeds", right.get("pooler_output"))
        assert len(states) == len(right.hidden_states)
        for given, wanted in zip(
            (last, pooled, *states),
            (right.last_hidden_state, right_pooled, *right.hidden_states),
            strict=True,
        ):
            torch.testing.assert_close(given, wanted, rtol=0, atol=2e-5)
        norm = torch.nn.functional.layer_norm(
            states[-1], weight.shape, weight, bias, encoder.config.layer_norm_eps
        )
        torch.testing.assert_close(norm, last, rtol=0, atol=2e-5)
        runner.close()
