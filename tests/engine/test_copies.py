"""Copies of modules: what they share, and that the original is never changed."""

from __future__ import annotations

import functools
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

import ovtensor
from devices import needs_bf16
from ovtensor import Backend
from ovtensor.engine.copies import detached, with_dtype
from ovtensor.errors import ComponentError
from sdxl_scenes import SCENES, draw, load

F32 = Backend("openvino", precision="f32")
KINDS = ("_modules", "_forward_hooks", "_forward_pre_hooks")
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def state(module):
    """What a conversion could change in a module, and in all within it."""
    parts = [
        (part, part.training, *(list(vars(part)[kind].items()) for kind in KINDS), set(vars(part)))
        for part in module.modules()
    ]
    tensors = (*module.parameters(), *module.buffers())
    return parts, [(id(x), x.data_ptr(), x.requires_grad, x._version) for x in tensors]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("large", [False, True])
def test_a_conversion_is_not_seen_in_the_callers_modules(precision, large, monkeypatch):
    if large:  # as if weights that are copied were much of the memory
        monkeypatch.setenv("OVTENSOR_MEMORY_LIMIT", "1")
    pipe = load()
    pipe.unet.train()
    pipe.vae.decoder.mid_block.train()
    parts = pipe.text_encoder.modules()
    *_, norm = (part for part in parts if isinstance(part, torch.nn.LayerNorm))
    norm.requires_grad_(False)
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
    pipe.unet.conv_out.compile(backend="eager")
    seen, kinds = [], set()

    def states():
        return {name: state(module) for name, module in modules.items()}

    def look(module, _given, _result):
        kinds.add(type(module).__name__)
        seen.append(another_thread.submit(states).result() == before)

    for part in (pipe.unet.conv_in, pipe.vae.decoder.conv_in, norm):
        part.register_forward_hook(look)
    modules = {name: getattr(pipe, name) for name in COMPONENTS}
    before = states()
    backend = Backend("openvino", precision=precision)
    with (
        ThreadPoolExecutor(1) as another_thread,
        ovtensor.split_backends(
            pipe, unet=backend, vae=backend, text_encoders=backend, verify=True, progress=False
        ) as lent,
    ):
        assert seen == [True] * 6  # each is computed with once, to be compared with, and traced
        draw(lent, SCENES[0], num_inference_steps=1)
    assert kinds == {"Conv2d", "LayerNorm"}
    assert states() == before


def test_lower_precision_is_a_copy_that_shares_nothing():
    unet = load().unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    narrow = with_dtype(unet, torch.bfloat16)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    assert with_dtype(unet, torch.float32) is unet
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.zero_()
    for key, value in unet.state_dict().items():
        assert torch.equal(value, before[key])


class _Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.again = self.one
        self.listed = [self.one, (self.two,), {"three": self.one}]
        self.register_buffer("ids", torch.arange(3))
        self.lock = threading.Lock()
        self.other = types.SimpleNamespace(model=torch.nn.Linear(2, 2))  # as a hook may know one
        self.itself = {}
        self.itself["itself"] = self.itself
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.two(self.listed[0](x)) + self.again(x)

    def double(self, x):
        return 2 * type(self).forward(self, x)


def test_a_copy_has_its_own_layers_and_all_else_is_shared():
    module = _Tied()
    copied = detached(module)
    assert type(copied) is _Tied
    assert not set(copied.modules()) & set(module.modules())
    for (name, one), (_, two) in zip(
        module.named_parameters(), copied.named_parameters(), strict=True
    ):
        assert one.data_ptr() == two.data_ptr(), name
        assert (one.requires_grad, two.requires_grad) == (True, False)
    assert copied.two.weight is copied.one.weight
    assert copied.again is copied.one
    assert copied.listed == [copied.one, (copied.two,), {"three": copied.one}]
    assert copied.ids is module.ids
    assert copied.lock is module.lock
    assert copied.other is module.other
    assert copied.itself["itself"] is copied.itself
    assert copied.itself is not module.itself
    assert (module.training, copied.training, copied.one.training) == (True, False, False)
    copied.one.register_forward_hook(lambda *_: None)
    copied.register_buffer("scratch", torch.zeros(1))
    del copied.two
    assert not module.one._forward_hooks
    assert "scratch" not in module.state_dict()
    assert isinstance(module.two, torch.nn.Linear)


def test_a_cast_copy_keeps_what_is_tied():
    module = _Tied()
    cast = with_dtype(module, torch.bfloat16)
    assert cast.two.weight is cast.one.weight
    assert cast.one.weight.dtype == torch.bfloat16
    assert cast.ids is module.ids
    assert cast.training
    owned = with_dtype(module, torch.float32, own=True)
    assert torch.equal(owned.one.weight, module.one.weight)
    assert owned.one.weight.data_ptr() != module.one.weight.data_ptr()
    assert owned.ids is not module.ids


def _partly(module, x):
    return type(module).forward(module, x) + 1


@pytest.mark.parametrize(
    "put",
    [
        lambda module: setattr(module, "forward", module.double),
        lambda module: setattr(module, "forward", functools.partial(_partly, module)),
        lambda module: module.one.register_forward_hook(lambda _, __, y: y + 1),
        lambda module: parametrize.register_parametrization(module.one, "bias", torch.nn.Tanh()),
        lambda module: setattr(module, "two", torch.compile(module.two, backend="eager")),
        lambda module: module.one.compile(backend="eager"),
        lambda module: setattr(module, "one", torch.fx.symbolic_trace(module.one)),
        lambda module: setattr(module, "one", torch.jit.script(module.one)),
    ],
    ids=["method", "partial", "hook", "parametrized", "wrapped", "compiled", "fx", "script"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_was_put_into_a_module_computes_in_the_copy(put):
    torch.manual_seed(0)
    module, x = _Tied(), torch.randn(3, 4)
    put(module)
    with torch.no_grad():
        expected = module(x)
        copied = detached(module)
        assert torch.equal(copied(x), expected)
        assert all(part.training for part in module.modules())
    called = []
    for part in module.modules():
        if not isinstance(part, torch.jit.ScriptModule):
            part.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        copied(x)
    assert not called  # nothing leads back to the original


def weakened(pipe):
    """A pipeline of which a block was given a forward that knows the block as it is."""
    forward = pipe.unet.mid_block.forward

    def weaker(*args, **kwargs):
        return 0.5 * forward(*args, **kwargs)

    pipe.unet.mid_block.forward = weaker
    return pipe


@pytest.mark.slow
def test_a_forward_that_knows_the_original_is_converted():
    pipe, pictures = weakened(load()), []
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
    for unet in ("torch", F32):
        with ovtensor.split_backends(
            pipe, unet=unet, vae="torch", text_encoders="torch", progress=False
        ) as lent:
            pictures.append(draw(lent, SCENES[0], num_inference_steps=2))
    np.testing.assert_allclose(*map(np.int16, pictures), rtol=0, atol=1)


@pytest.mark.slow
def test_a_forward_that_knows_an_original_of_another_precision():
    pipe = weakened(load(torch.bfloat16))
    with (
        pytest.raises(ComponentError, match="torch could not compute unet from a small input"),
        ovtensor.split_backends(pipe, unet=F32, verify=True, progress=False),
    ):
        pass
