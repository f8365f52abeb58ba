"""What tells two modules of the same weights apart in a cache."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn

import ovtensor
from ovtensor.engine import identity
from ovtensor.engine.identity import UndescribedError, structure
from ovtensor.errors import CacheWarning
from sdxl_scenes import load


def test_what_torch_compile_wraps_is_found_inside():
    from torch._dynamo.external_utils import wrap_inline

    layer = torch.nn.Linear(2, 2)
    assert identity.plain(torch.compile(layer, backend="eager")) is layer
    for method in (layer.forward, layer):
        assert identity.plain(method) is method
    for method in (layer.forward, layer._call_impl):
        assert identity.plain(torch.compile(method, backend="eager")) == method
        # As torch 2.15 does by itself.
        assert identity.plain(torch.compile(wrap_inline(method), backend="eager")) == method


@pytest.fixture(scope="module")
def pipe():
    return load()


def told(module) -> str:
    """A text that is the same for what may share an entry; what may not have one is unique."""
    try:
        return structure(module)
    except UndescribedError as error:
        return f"not cached: {error} ({object()!r})"


def times(factor):
    def multiplied(x):
        return x * factor

    return multiplied


class Scaled(AttnProcessor):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * 0.9


class Pair:
    def __init__(self, factor):
        self.factor = factor

    def multiplied(self, x):
        return x * self.factor


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_what_nobody_touched_is_described_the_same_each_time(pipe, name):
    described = structure(getattr(pipe, name))
    other = load()
    assert structure(getattr(other, name)) == described
    other("a red circle", num_inference_steps=1)  # transformers' own hooks come with the first run
    assert structure(getattr(other, name)) == described


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ({"a": 1}, {"a": 2}),
        ({1}, {2}),
        (torch.float16, torch.bfloat16),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.zeros(4), torch.zeros(8, dtype=torch.bfloat16)),  # of the same bytes
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.sigmoid, torch.tanh),
        ([1].count, [2].count),
        (torch.nn.functional.silu, torch.nn.functional.relu),
        (torch.nn.SiLU, torch.nn.ReLU),
        (
            functools.partial(torch.nn.functional.gelu, approximate="tanh"),
            functools.partial(torch.nn.functional.gelu, approximate="none"),
        ),
        (AttnProcessor(), AttnProcessor2_0()),
        (torch.nn.Dropout(0.1).forward, torch.nn.Dropout(0.2).forward),
        (times(2), times(3)),
        (Pair(2), Pair(3)),
        (Pair(2).multiplied, Pair(3).multiplied),
        (Scaled(), AttnProcessor()),
        (object(), iter([])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_were_set_by_hand(pipe, one, other):
    module = pipe.unet.time_proj
    seen = [told(module)]
    try:
        for value in (one, other):
            module.by_hand = value
            seen.append(told(module))
    finally:
        del module.by_hand
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    "value", [(1, "a", None, {"b": (torch.ones(2), torch.relu)}), AttnProcessor(), torch.nn.SiLU]
)
def test_values_that_are_told_keep_their_description(pipe, value):
    module = pipe.unet.time_proj
    module.by_hand = value
    try:
        assert structure(module) == structure(module)
    finally:
        del module.by_hand


def test_code_that_no_version_tells_is_not_described(pipe, monkeypatch):
    described = structure(pipe.unet)

    def mine(self, *args, **kwargs):
        return own(self, *args, **kwargs) * 2

    own = Attention.forward
    for disguised in (mine, functools.wraps(own)(mine), torch.no_grad()(mine)):
        with monkeypatch.context() as patch:
            patch.setattr(Attention, "forward", disguised)
            with pytest.raises(
                UndescribedError, match=r"Attention\.forward is code of .*test_identity"
            ):
                structure(pipe.unet)
    with monkeypatch.context() as patch:
        patch.setattr(ModelMixin, "num_parameters", mine)  # inherited
        with pytest.raises(UndescribedError, match=r"ModelMixin\.num_parameters is code of"):
            structure(pipe.unet)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", mine)
        with pytest.raises(UndescribedError, match="scaled_dot_product_attention is code of"):
            structure(pipe.unet)

    class Block(UNetMidBlock2DCrossAttn):
        pass

    monkeypatch.setattr(pipe.unet.mid_block, "__class__", Block)
    with pytest.raises(UndescribedError, match=r"mid_block: .*Block is code of .*test_identity"):
        structure(pipe.unet)
    monkeypatch.undo()
    assert structure(pipe.unet) == described
    monkeypatch.setattr(identity, "_version_of", lambda _: "another")
    assert structure(pipe.unet) != described


def test_the_attention_of_text_encoders(pipe):
    described = structure(pipe.text_encoder)
    encoder = load().text_encoder
    encoder.set_attn_implementation("eager")
    assert structure(encoder) != described
    encoder.config._attn_implementation = "somebody's"
    with pytest.raises(UndescribedError, match="somebody's"):
        structure(encoder)


@pytest.mark.slow
def test_a_cache_that_is_done_without_says_why(pipe, tmp_path):
    own = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(Scaled())
    try:
        with (
            pytest.warns(CacheWarning, match=r"unet .*attn1: .*Scaled is code of") as warned,
            ovtensor.split_backends(pipe, cache=tmp_path, progress=False) as lent,
        ):
            assert lent.ovtensor.report().to_dict()["unet"]["cache"] == "off"
    finally:
        pipe.unet.set_attn_processor(own)
    assert len(warned) == 1
    with ovtensor.split_backends(pipe, cache=tmp_path, progress=False) as lent:
        assert lent.ovtensor.report().to_dict()["unet"]["cache"] == "miss"
    assert all(json.loads(path.read_text()) for path in tmp_path.glob("entries/*/manifest.json"))


@pytest.mark.slow
def test_a_folder_is_not_cached_with_somebodys_code(tmp_path, monkeypatch):
    def forward(self, *args, **kwargs):
        return own(self, *args, **kwargs)

    own = Attention.forward
    options = {"cache": tmp_path, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Attention, "forward", forward)
        with (
            pytest.warns(CacheWarning, match=r"unet .*Attention\.forward is code of"),
            ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **options) as pipe,
        ):
            assert pipe.ovtensor.report().to_dict()["unet"]["cache"] == "off"
    for state in ("miss", "hit"):
        with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **options) as pipe:
            assert pipe.ovtensor.report().to_dict()["unet"]["cache"] == state


@pytest.mark.usefixtures("no_metadata")
def test_packages_that_were_bundled_without_metadata_have_versions(pipe):
    for module, version in [("torch.nn", torch.__version__), ("__main__", None)]:
        assert identity._version_of(module) == version
    structure(pipe.unet)
