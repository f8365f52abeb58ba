"""``compile_module``, the engine's interface, on modules that no pipeline knows."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import logging
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from ovtensor import Backend, ModelCache
from ovtensor.engine import GraphInput, GraphTraits, MemoryPolicy, compile_module
from ovtensor.errors import (
    BackendError,
    CacheWarning,
    ComponentError,
    InputError,
    ParityError,
    SessionClosedError,
)

F32 = Backend("openvino", precision="f32")
PICTURES = GraphInput("x", (-1, 3, -1, -1), torch.zeros(2, 3, 9, 9))
WORDS = GraphInput("x", (-1, -1, 16), torch.zeros(2, 5, 16))


def network(seed=0, width=8):
    """A convolutional network of torch's own classes, which a cache can tell apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.GroupNorm(2, width),
            nn.SiLU(),
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 5, 3, stride=2, padding=1),
        ).eval()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def right(module, *inputs):
    with torch.no_grad():
        return module(*inputs)


@pytest.fixture(scope="module")
def opened():
    """The network as it runs on OpenVINO."""
    with compile_module(network(), [PICTURES], F32) as run:
        yield run


@pytest.mark.parametrize(
    "shape", [(1, 3, 9, 9), (2, 3, 16, 8), (5, 3, 7, 31), (1, 3, 1, 1), (3, 3, 64, 1)]
)
def test_every_size_and_batch_is_within_rounding_of_torch(opened, shape):
    x = normal(*shape)
    results = opened(x)
    assert isinstance(results, tuple)
    assert results[0].dtype == torch.float32
    torch.testing.assert_close(results[0], right(network(), x), rtol=0, atol=1e-5)
    assert opened.stats.compiles == 1


@pytest.mark.parametrize(
    "traits", [GraphTraits(convolutional=True), GraphTraits(runs_every_step=True)]
)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_traits_and_shapes_change_how_and_not_what(traits, static):
    backend = dataclasses.replace(F32, static_shapes=static)
    with compile_module(network(), [PICTURES], backend, traits=traits, verify=True) as run:
        assert ("upsample" in run.plan.passes) is traits.convolutional
        assert run.plan.shapes == ("static" if static else "dynamic")
        for shape in ((2, 3, 9, 9), (1, 3, 12, 7), (2, 3, 9, 9)):
            x = normal(*shape)
            torch.testing.assert_close(run(x)[0], right(network(), x), rtol=0, atol=1e-5)
        assert run.stats.compiles == (2 if static else 1)  # the check's size is the first one's


def test_threads_get_what_one_alone_gets(opened):
    inputs = [normal(1 + n % 3, 3, 8 + n, 9 + 2 * n, seed=n) for n in range(12)]
    alone = [opened(x)[0] for x in inputs]
    before = opened.stats.inferences
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for one, (other,) in zip(alone, pool.map(opened, inputs), strict=True):
                assert torch.equal(one, other)
    assert opened.stats.inferences == before + 36


def test_results_belong_to_the_caller(opened):
    x = normal(2, 3, 10, 10)
    (first,) = opened(x)
    kept = first.clone()
    opened(-x)
    assert torch.equal(first, kept)
    first.zero_()
    (again,) = opened(x)
    assert torch.equal(again, kept)
    given = x.clone()
    again.zero_()
    assert torch.equal(x, given)


class Same(nn.Module):
    def forward(self, x, y):
        return x, y


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1) + 1, x.expand(2, *x.shape)


def test_results_of_any_strides_are_compared_with_torch():
    with compile_module(
        Turned(), [GraphInput("x", (-1, 4), torch.zeros(3, 4))], F32, verify=True
    ) as run:
        x = normal(5, 4)
        for one, two in zip(run(x), Turned()(x), strict=True):
            assert torch.equal(one, two)


def test_a_result_that_is_an_input_is_a_copy_of_it():
    given = (GraphInput("x", (-1,), torch.zeros(3)), GraphInput("y", (-1,), torch.ones(3).long()))
    with compile_module(Same(), given, F32) as run:
        x, y = normal(5), torch.arange(5)
        results = run(x, y)
        for one, two in zip(results, (x, y), strict=True):
            assert torch.equal(one, two)
            one.zero_()
            assert two.any()


class Counting(nn.Module):
    """Masked tokens to their embeddings' sums, the largest one's place, and which are even."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 6)

    def forward(self, ids, mask, step):
        embedded = self.table(ids) * mask[..., None]
        return embedded.sum(1), ids.argmax(1) + step, (ids % 2 == 0) & mask, mask.sum(1)


def test_integers_and_bools_go_in_and_come_out():
    module = Counting()
    given = (
        GraphInput("ids", (-1, -1), torch.zeros(2, 4, dtype=torch.int64)),
        GraphInput("mask", (-1, -1), torch.ones(2, 4, dtype=torch.bool)),
        GraphInput("step", (-1,), torch.zeros(2, dtype=torch.int32)),
    )
    with compile_module(module, given, F32, verify=True) as run:
        for batch, tokens in ((2, 4), (1, 9), (3, 1)):
            ids = torch.randint(50, (batch, tokens), generator=torch.Generator().manual_seed(1))
            mask = ids % 3 != 0
            step = torch.arange(batch, dtype=torch.int32)
            for one, two in zip(run(ids, mask, step), right(module, ids, mask, step), strict=True):
                assert one.dtype == two.dtype
                torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_and_inputs_of_other_floats(dtype):
    narrow = network().to(dtype)
    widened = network().to(dtype).float()
    given = dataclasses.replace(PICTURES, example=PICTURES.example.to(dtype))
    with compile_module(narrow, [given], F32) as run:
        x = normal(2, 3, 11, 12).to(dtype)
        (result,) = run(x)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, right(widened, x.float()), rtol=0, atol=1e-5)
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return self.kind((x + 1, (2 * x).half()))


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: pair[0], lambda pair: pair[:1]])
def test_a_tensor_or_several(kind):
    module = Several(kind)
    x = normal(3, 4)
    with compile_module(module, [GraphInput("x", (-1, 4), x)], F32) as run:
        results = run(x)
    expected = module(x)
    expected = (expected,) if isinstance(expected, torch.Tensor) else tuple(expected)
    assert len(results) == len(expected)
    for one, two in zip(results, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two.float(), rtol=0, atol=1e-2)


class Named(nn.Module):
    def forward(self, x):
        return {"y": x + 1}


def test_results_that_are_no_tensors_are_refused():
    with pytest.raises(ComponentError, match="could not convert Named"):
        compile_module(Named(), [GraphInput("x", (-1, 4), torch.zeros(3, 4))], F32)


class Fickle(nn.Module):
    """Computes something else each time, so that the trace is not what was compared with."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls % 2 else -x


def test_a_wrong_result_is_found_when_it_is_looked_for():
    given = [GraphInput("x", (-1, 4), torch.zeros(3, 4))]
    with pytest.raises(ParityError, match=r"Fickle on CPU in f32 .*similarity of -1") as caught:
        compile_module(Fickle(), given, F32, verify=True)
    assert (caught.value.component, caught.value.device) == ("Fickle", "CPU")
    with compile_module(Fickle(), given, F32, verify=False) as run:
        x = normal(2, 4)
        assert torch.equal(run(x)[0], x)


def open_as(cache, module=None, inputs=(PICTURES,), backend=F32, **options):
    """Whether a module was in a cache; a picture of it is right."""
    module = network() if module is None else module
    with compile_module(module, inputs, backend, cache=cache, **options) as run:
        x = normal(*(size if size > 0 else 6 for size in inputs[0].shape))
        torch.testing.assert_close(run(x)[0], right(module, x), rtol=0, atol=1e-5)
        return run.stats.cache


def test_the_second_opening_is_a_hit(tmp_path):
    cache = ModelCache(tmp_path)
    assert open_as(cache) == "miss"
    for again in (cache, tmp_path, str(tmp_path)):
        assert open_as(again) == "hit"
    assert open_as(cache, verify=True) == "miss"  # the first one has no reference
    assert open_as(cache, verify=True) == "hit"
    assert open_as(None) == "off"
    assert cache.verify() == {}


def test_anything_else_is_a_miss(tmp_path, monkeypatch):
    assert open_as(tmp_path) == "miss"
    other = network()
    with torch.no_grad():
        other[0].bias[1] += 2**-10
    pooled = network()
    pooled[5] = nn.MaxPool2d(2)
    named = dataclasses.replace(PICTURES, name="z")
    square = dataclasses.replace(PICTURES, shape=(-1, 3, 9, -1))
    larger = dataclasses.replace(PICTURES, example=torch.zeros(2, 3, 11, 9))
    filled = dataclasses.replace(PICTURES, example=torch.ones(2, 3, 9, 9))
    for options in (
        {"module": other},
        {"module": pooled},
        {"module": network(seed=1)},
        {"inputs": (named,)},
        {"inputs": (square,)},
        {"inputs": (larger,)},  # what a trace does can follow from the example
        {"inputs": (filled,)},
        {"name": "another"},
        {"traits": GraphTraits(convolutional=True)},
        {"traits": GraphTraits(runs_every_step=True)},
    ):
        assert open_as(tmp_path, **options) == "miss", options
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", "drop_ones")
    assert open_as(tmp_path) == "miss"
    monkeypatch.delenv("OVTENSOR_DISABLE_PASSES")
    assert open_as(tmp_path) == "hit"


def test_the_same_model_is_compiled_anew_for_sizes_and_properties(tmp_path):
    cache = ModelCache(tmp_path)
    open_as(cache)
    before = len(cache.entries())
    static = dataclasses.replace(F32, static_shapes=True)
    for backend in (static, dataclasses.replace(F32, properties={"NUM_STREAMS": 1})):
        assert open_as(cache, backend=backend) == "hit"  # of what is written
        assert len(cache.entries()) == before + 1
        assert open_as(cache, backend=backend) == "hit"
        before = len(cache.entries())


class Own(nn.Sequential):
    pass


def test_code_that_no_version_tells_is_not_cached(tmp_path):
    with pytest.warns(CacheWarning, match=r"Own is converted and not cached.*Own is code of"):
        assert open_as(tmp_path, Own(*network())) == "off"


def test_closing_twice_and_calling_afterwards(tmp_path):
    run = compile_module(network(), [PICTURES], F32, name="net", cache=tmp_path)
    run(normal(1, 3, 9, 9))
    run.close()
    run.close()
    with pytest.raises(SessionClosedError, match="net was called after") as caught:
        run(normal(1, 3, 9, 9))
    assert caught.value.component == "net"
    with run:
        pass
    cache = ModelCache(tmp_path)
    cache.clear()
    assert cache.entries() == []  # nothing is in use any more


def test_input_that_cannot_be_right_is_refused_before_long_work():
    net, told = network(), []
    short = GraphInput("x", (-1, 3), torch.zeros(2, 3, 9, 9))
    wide = GraphInput("x", (-1, 4, -1, -1), torch.zeros(2, 3, 9, 9))
    for given, kind, message in [
        ((net.forward, [PICTURES]), InputError, "takes a torch.nn.Module, not a method"),
        ((net, []), InputError, "at least one GraphInput"),
        ((net, [torch.zeros(1)]), InputError, "at least one GraphInput"),
        ((net, [short]), InputError, r"'x'.*\(-1, 3\).*\(2, 3, 9, 9\)"),
        ((net, [wide]), InputError, r"'x'.*\(-1, 4, -1, -1\).*\(2, 3, 9, 9\)"),
        ((net, [PICTURES, PICTURES]), InputError, r"names of their own.*'x', 'x'"),
        ((net, [PICTURES], "torch"), BackendError, "to run on torch, call the module"),
        ((net, [PICTURES], "tensorrt"), BackendError, "is no backend"),
        ((net, [PICTURES], Backend("openvino", "TPU")), BackendError, "no device 'TPU'"),
    ]:
        with pytest.raises(kind, match=message):
            compile_module(*given, on_event=told.append)
    with pytest.raises(InputError, match="is no cache"):
        compile_module(net, [PICTURES], cache=3, on_event=told.append)
    assert told == []


def test_a_call_with_other_inputs_than_described(opened):
    x = normal(1, 3, 9, 9)
    for given, message in [
        ((), r"takes 1 tensor \(x\), and was called with 0"),
        ((x, x), r"takes 1 tensor \(x\), and was called with 2"),
        ((x.numpy(),), r"takes tensors, and x is a ndarray"),
    ]:
        with pytest.raises(InputError, match=message):
            opened(*given)
    for wrong in (normal(1, 4, 9, 9), normal(3, 9, 9)):
        with pytest.raises(ComponentError, match="failed to run Sequential on inputs of shapes"):
            opened(wrong)
    with pytest.raises(ComponentError, match="one is empty"):
        opened(normal(0, 3, 9, 9))
    torch.testing.assert_close(opened(x)[0], right(network(), x), rtol=0, atol=1e-5)


class Broken(nn.Module):
    def forward(self, x):
        raise LookupError("nothing here")


def test_a_module_that_torch_cannot_run():
    given = [GraphInput("x", (-1, 4), torch.zeros(3, 4))]
    with pytest.raises(ComponentError, match="could not convert Broken: nothing here"):
        compile_module(Broken(), given, F32)
    with pytest.raises(ComponentError, match=r"torch could not compute Broken .*nothing here"):
        compile_module(Broken(), given, F32, verify=True)


def attributes(module):
    return [(part, part.training, sorted(vars(part))) for part in module.modules()]


def test_the_module_is_not_changed_nor_kept_alive(tmp_path):
    module = nn.Sequential(network().half(), nn.Flatten(), nn.Linear(5 * 25, 4).half()).train()
    given = dataclasses.replace(PICTURES, example=torch.zeros(2, 3, 9, 9))
    tensors = [(x, x.data_ptr(), x.clone(), x._version) for x in module.parameters()]
    before = attributes(module)
    with compile_module(
        module, [given], F32, cache=tmp_path, memory=MemoryPolicy(1), verify=True
    ) as run:
        run(normal(1, 3, 9, 9))
        for x, address, values, version in tensors:
            assert (x.data_ptr(), x._version) == (address, version)
            assert (x.requires_grad, x.grad) == (True, None)
            assert torch.equal(x, values)
        assert attributes(module) == before
        dead = [weakref.ref(module), *(weakref.ref(x) for x in module.parameters())]
        del module, tensors, before, x, values
        gc.collect()
        assert not [one for one in dead if one() is not None]
        assert run(normal(1, 3, 9, 9))[0].shape == (1, 4)


class Block(nn.Module):
    """A transformer's block: attention, and a gated layer of diffusers or a plain one after it."""

    def __init__(self, gated, width=16, heads=2):
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        inner = GEGLU(width, 24) if gated else nn.Sequential(nn.Linear(width, 24), nn.GELU())
        self.feed_forward = nn.Sequential(inner, nn.Linear(24, width))

    def forward(self, x):
        split = self.to_qkv(self.before(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind()
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.between(x))


@pytest.mark.parametrize("gated", [True, False], ids=["geglu", "plain"])
@pytest.mark.parametrize("part", [0.0, 1.0], ids=["mapped", "constant"])
def test_a_transformer_block(gated, part):
    module = Block(gated).eval()
    traits, policy = GraphTraits(runs_every_step=True), MemoryPolicy(map_weights=part)
    with compile_module(module, [WORDS], F32, traits=traits, memory=policy, verify=True) as run:
        assert ("mapped_weights" in run.plan.passes) is (part == 0)
        for batch, tokens in ((1, 77), (3, 2), (2, 154), (1, 5)):
            x = normal(batch, tokens, 16)
            torch.testing.assert_close(run(x)[0], right(module, x), rtol=0, atol=1e-5)


def test_a_first_call_that_would_spoil_later_ones_is_refused_where_keys_are_known():
    module = Block(gated=False).eval()
    with compile_module(module, [WORDS], F32, shortest_keys=lambda x: x.shape[1]) as run:
        with pytest.raises(ComponentError, match="too small for OpenVINO's attention"):
            run(normal(3, 1, 16))
        for tokens in (77, 2):
            x = normal(1, tokens, 16)
            torch.testing.assert_close(run(x)[0], right(module, x), rtol=0, atol=1e-5)


def test_the_plan_is_told_at_info_and_nothing_else(caplog):
    with (
        caplog.at_level(logging.INFO, "ovtensor"),
        compile_module(network(), [PICTURES], F32) as run,
    ):
        pass
    assert [(one.name, one.levelname) for one in caplog.records] == [("ovtensor", "INFO")]
    assert caplog.messages == [str(run.plan)]


_ALONE = """
import logging, sys, torch
from ovtensor.engine import GraphInput, compile_module

net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU())
x = GraphInput("x", (-1, 3, -1, -1), torch.zeros(1, 3, 9, 9))
for _ in range(2):
    with compile_module(net, [x], cache=sys.argv[1]) as run:
        result, = run(torch.zeros(1, 3, 5, 5))
assert run.stats.cache == "hit"
found = {name.partition(".")[0] for name in sys.modules}
print(sorted(found & {"diffusers", "transformers", "accelerate", "peft", "nncf"}))
"""


def test_the_engine_is_silent_and_imports_neither_diffusers_nor_transformers(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", _ALONE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error:::ovtensor"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n") == ["[]", ""]
    assert "ovtensor" not in result.stderr


def test_events_come_in_pairs(tmp_path):
    told = []
    options = {"cache": tmp_path, "verify": True, "on_event": told.append, "name": "net"}
    for _ in range(2):
        with compile_module(network(), [PICTURES], F32, **options):
            pass
    stages = [(one.stage, one.state) for one in told if one.component == "net"]
    cold = ["load", "convert", "compile", "warm-up"]
    expected = [
        (stage, state)
        for stage in (*cold, "compile", "warm-up")
        for state in ("started", "finished")
    ]
    assert stages == expected
    assert np.isfinite([one.seconds for one in told if one.state == "finished"]).all()
