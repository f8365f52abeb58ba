"""Gated activations are converted as two layers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU

from engine_graphs import kinds
from ovtensor.engine import convert
from ovtensor.engine.passes.gated import SplitGates
from ovtensor.pipelines.kinds.unet2d import unet_graph
from sdxl_scenes import load


def split_gates(module: torch.nn.Module) -> None:
    SplitGates("f32").on_module(module, Path())


@pytest.mark.parametrize("bias", [True, False])
def test_the_halves_compute_what_the_whole_does(bias):
    torch.manual_seed(0)
    module = torch.nn.Sequential(GEGLU(12, 20, bias=bias), torch.nn.Linear(20, 3))
    x, weight = torch.randn(5, 7, 12), module[0].proj.weight
    with torch.no_grad():
        expected = module(x)
        split_gates(module)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=2e-7)
    value, gate = module[0].value, module[0].gate
    assert value.weight.data_ptr() == weight.data_ptr()
    assert gate.weight.data_ptr() == weight[20:].data_ptr()
    assert all(parameter is not weight for parameter in module.parameters())


def test_a_class_of_its_own_is_converted_as_it_is():
    class Other(GEGLU):
        pass

    module = torch.nn.Sequential(Other(4, 4), GEGLU(4, 4))
    module[1].proj = torch.nn.Sequential(module[1].proj)
    split_gates(module)
    assert [type(part) for part in module] == [Other, GEGLU]


def test_what_was_altered_is_converted_as_it_is():
    """As offloading does, and the older kind of weight norm."""
    own, hooked, before = GEGLU(4, 4), GEGLU(4, 4), GEGLU(4, 4)
    own.forward = own.proj.forward
    hooked.proj.register_forward_hook(lambda module, given, result: -result)
    before.proj.register_forward_pre_hook(lambda module, given: None)
    for module in (own, hooked, before):
        split_gates(module)
        assert type(module) is GEGLU


def test_a_layer_that_has_two_places_stays_one():
    part = GEGLU(4, 4)
    module = torch.nn.ModuleList([part, part])
    split_gates(module)
    assert module[0] is module[1]
    assert len(list(module.parameters())) == 4


@pytest.mark.slow
def test_nothing_is_split_in_a_converted_unet():
    unet = copy.deepcopy(load().unet)
    assert any(type(part) is GEGLU for part in unet.modules())
    split_gates(unet)
    found = kinds(convert.convert(unet_graph("unet", unet)))
    assert "Gelu" in found
    assert not found & {"Split", "VariadicSplit", "Chunk"}
