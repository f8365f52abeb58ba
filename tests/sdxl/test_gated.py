"""Gated activations are converted as two layers, and modules are as before."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.activations import GEGLU

from ovtensor.sdxl import graphs, ir
from ovtensor.sdxl.gated import gates_apart
from sdxl_scenes import load


@pytest.mark.parametrize("bias", [True, False])
def test_the_halves_compute_what_the_whole_does(bias):
    torch.manual_seed(0)
    module = torch.nn.Sequential(GEGLU(12, 20, bias=bias), torch.nn.Linear(20, 3))
    x, names = torch.randn(5, 7, 12), list(module.state_dict())
    with torch.no_grad():
        expected = module(x)
        with gates_apart(module) as made:
            computed = module(x)
            assert list(module.state_dict()) == names
        assert torch.equal(module(x), expected)
    torch.testing.assert_close(computed, expected, rtol=0, atol=2e-7)
    value, gate = made
    assert value.weight.data_ptr() == module[0].proj.weight.data_ptr()
    assert gate.weight.data_ptr() == module[0].proj.weight[20:].data_ptr()
    assert "forward" not in vars(module[0])


def test_a_class_of_its_own_is_converted_as_it_is():
    class Other(GEGLU):
        pass

    module = torch.nn.Sequential(Other(4, 4), GEGLU(4, 4))
    module[1].proj = torch.nn.Sequential(module[1].proj)
    with gates_apart(module) as made:
        assert not made
        assert all("forward" not in vars(part) for part in module)


def test_what_somebody_altered_is_converted_as_it_is():
    """As offloading does, and the older kind of weight norm."""
    own, hooked, before = GEGLU(4, 4), GEGLU(4, 4), GEGLU(4, 4)
    own.forward = forward = own.proj.forward
    hooked.proj.register_forward_hook(lambda module, given, result: -result)
    before.proj.register_forward_pre_hook(lambda module, given: None)
    for module in (own, hooked, before):
        with gates_apart(module) as made:
            assert not made
    assert own.forward == forward


def test_modules_are_restored_after_a_failure():
    module = GEGLU(4, 4)
    with pytest.raises(ZeroDivisionError), gates_apart(module):
        raise ZeroDivisionError
    assert "forward" not in vars(module)


def test_nothing_is_split_in_a_converted_unet():
    unet = load().unet
    assert any(type(part) is GEGLU for part in unet.modules())
    kinds = {op.get_type_name() for op in ir.convert(graphs.unet_graph(unet)).get_ops()}
    assert "Gelu" in kinds
    assert not kinds & {"Split", "VariadicSplit", "Chunk"}
