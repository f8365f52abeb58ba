"""Text encoders on OpenVINO give every field that those of transformers give."""

from __future__ import annotations

import pytest
import torch

import ovtensor
from ovtensor import Backend
from ovtensor.errors import ComponentError

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def split(eager_pipeline, converted):
    with ovtensor.split_backends(
        eager_pipeline, unet="torch", text_encoders=F32, cache=converted, progress=False
    ) as pipe:
        yield pipe


def token_ids(pipe, name):
    tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
    prompts = ["a large red circle on a blue background", "a square"]
    return tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


@pytest.mark.parametrize("hidden", [None, False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_field_is_that_of_the_original(name, hidden, eager_pipeline, split):
    ids = token_ids(eager_pipeline, name)
    with torch.no_grad():
        expected = getattr(eager_pipeline, name)(ids, output_hidden_states=hidden)
    found = getattr(split, name)(ids, output_hidden_states=hidden)
    assert type(found) is type(expected)
    assert list(found) == list(expected)  # the fields that are there, in order
    assert ("hidden_states" in found) is bool(hidden)
    for key, wanted in expected.items():
        ones, twos = (
            value if isinstance(value, tuple) else (value,) for value in (found[key], wanted)
        )
        for one, two in zip(ones, twos, strict=True):
            assert one.dtype == two.dtype
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert hasattr(found, "text_embeds") == hasattr(expected, "text_embeds")
    assert hasattr(found, "pooler_output") == hasattr(expected, "pooler_output")


@pytest.mark.parametrize("name", ENCODERS)
def test_as_a_tuple(name, eager_pipeline, split):
    ids = token_ids(eager_pipeline, name)
    with torch.no_grad():
        expected = getattr(eager_pipeline, name)(ids, output_hidden_states=True, return_dict=False)
    found = getattr(split, name)(ids, output_hidden_states=True, return_dict=False)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert isinstance(one, tuple) == isinstance(two, tuple)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_final_layer_norm_is_the_originals(name, eager_pipeline, split):
    original, proxy = getattr(eager_pipeline, name), getattr(split, name)
    ids = token_ids(eager_pipeline, name)
    with torch.no_grad():
        states = original(ids, output_hidden_states=True).hidden_states[-2]
        norm = getattr(original, "text_model", original).final_layer_norm
        expected = norm(states)
    proxy(ids)
    for found in (proxy.final_layer_norm, proxy.text_model.final_layer_norm):
        torch.testing.assert_close(found(states), expected, rtol=1e-4, atol=1e-4)


def test_the_final_layer_norm_needs_weights_that_the_graph_gives(eager_pipeline, converted):
    with (
        ovtensor.split_backends(
            eager_pipeline, unet="torch", text_encoders=F32, cache=converted, progress=False
        ) as pipe,
        pytest.raises(ComponentError, match="before the encoder has run"),
    ):
        pipe.text_encoder.final_layer_norm(torch.zeros(1, 77, 8))


@pytest.mark.parametrize("skip", [None, 1])
def test_skipped_layers(skip, eager_pipeline, split):
    def encoded(pipe):
        return pipe.encode_prompt("a large red circle", device="cpu", clip_skip=skip)

    for one, two in zip(encoded(split), encoded(eager_pipeline), strict=True):
        if two is not None:
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
