"""Weights that move to a file: memory is given back, values and behaviour stay."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ovtensor
from ovtensor.engine import weights
from ovtensor.errors import DatalessTensorError, InputError


class Tied(torch.nn.Module):
    """Shared, tied, sliced, strided, empty and 0-d weights of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(33, 65)
        self.second = torch.nn.Linear(33, 65)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(65)
        whole = torch.randn(10, 7)
        self.register_buffer("rows", whole[2:5])
        self.register_buffer("columns", whole[:, ::2])
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("narrow", torch.randn(5, dtype=torch.bfloat16))
        self.register_buffer("flags", torch.tensor([True, False, True]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x) + self.second(x)) * self.columns.sum()


def test_values_objects_ties_and_results_stay():
    module = Tied().eval()
    x = torch.randn(4, 33)
    before = module(x)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    strides = {name: tensor.stride() for name, tensor in tensors.items()}

    assert ovtensor.release_weights(module) > 0
    assert ovtensor.release_weights(module) == 0

    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert list(now) == list(tensors)
    for name, tensor in now.items():
        assert tensor is tensors[name]
        assert torch.equal(tensor, values[name])
        assert tensor.stride() == strides[name]
    assert module.second.weight is module.first.weight
    assert torch.equal(module(x), before)
    module.rows[0, 0] = 99  # two buffers are views of one storage and stay so
    assert module.columns[2, 0] == 99


def test_state_can_be_loaded_saved_moved_copied_and_trained(tmp_path):
    module, other = Tied(), Tied()
    ovtensor.release_weights(module)
    with torch.no_grad():
        other.first.weight.mul_(2)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.second.weight, other.first.weight)
    safetensors.torch.save_file(module.norm.state_dict(), tmp_path / "norm.safetensors")
    torch.save(module.norm.state_dict(), tmp_path / "norm.pt")
    assert (tmp_path / "norm.pt").stat().st_size < 5000  # its own tensors, not the whole file
    assert copy.deepcopy(module).to(torch.float64).first.weight.dtype == torch.float64
    module(torch.randn(4, 33)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert not torch.equal(module.first.weight, other.first.weight)


def test_what_is_written_is_safetensors(monkeypatch, tmp_path):
    kept = tmp_path / "kept.safetensors"
    write = weights._write

    def keep(*arguments):
        path = write(*arguments)
        kept.write_bytes(path.read_bytes())
        return path

    monkeypatch.setattr(weights, "_write", keep)
    module = torch.nn.Linear(5, 3)
    ovtensor.release_weights(module, folder=tmp_path)
    stored = safetensors.torch.load_file(kept)
    assert torch.equal(stored["weight"].view(torch.float32).view(3, 5), module.weight)
    assert torch.equal(stored["bias"].view(torch.float32), module.bias)


def test_the_file_goes_with_its_last_user(tmp_path):
    module = torch.nn.Linear(64, 64)
    ovtensor.release_weights(module, folder=tmp_path)
    if sys.platform != "win32":
        assert list(tmp_path.iterdir()) == []
    bias = module.bias
    expected = bias.detach().clone()
    (mapping,) = (m for m in map(weakref.ref, weights._MAPPINGS) if m().size() > 16384)
    del module
    gc.collect()
    assert torch.equal(bias, expected)  # the last user keeps it readable
    del bias
    gc.collect()
    assert mapping() is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_unlinked_while_mapped_goes_later(tmp_path, monkeypatch):
    """As on Windows: unmapped first, unlinked then."""
    unlink = Path.unlink

    def refuse_once(path, missing_ok=False):
        monkeypatch.setattr(Path, "unlink", unlink)
        raise PermissionError("mapped")

    monkeypatch.setattr(Path, "unlink", refuse_once)
    module = torch.nn.Linear(64, 64)
    ovtensor.release_weights(module, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    del module
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounting")
def test_anonymous_memory_falls_by_nine_tenths():
    def anonymous() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise AssertionError

    # From here on glibc keeps blocks of up to 31 MB in its heap, as in any process that has run
    # for a while, and a small one at the heap's end keeps it from shrinking by itself.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    module = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8)))
    end = torch.empty(2**18, dtype=torch.uint8)  # noqa: F841
    size = sum(p.nbytes for p in module.parameters())
    x = torch.randn(2, 2048)
    first = module(x).detach()
    before = anonymous()
    assert ovtensor.release_weights(module) == size
    gc.collect()
    assert before - anonymous() >= 0.9 * size
    assert torch.equal(module(x), first)


def test_a_disk_without_room_leaves_the_module_and_the_folder_as_they_were(tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of files on POSIX")
    module = torch.nn.Linear(256, 256)
    addresses = [p.data_ptr() for p in module.parameters()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OSError, match=r"requested|File too large"):
            ovtensor.release_weights(module, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.data_ptr() for p in module.parameters()] == addresses
    assert list(tmp_path.iterdir()) == []


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"takes a torch.nn.Module, not a Tensor"):
        ovtensor.release_weights(torch.ones(1))
    with pytest.raises(InputError, match="nowhere' does not exist"):
        ovtensor.release_weights(torch.nn.Linear(1, 1), folder=tmp_path / "nowhere")
    with pytest.raises(DatalessTensorError, match=r"weight, .* has no values to keep"):
        ovtensor.release_weights(torch.nn.Linear(1, 1, device="meta"))
    fake = torch.nn.Linear(2, 2)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake.weight = torch.nn.Parameter(mode.from_tensor(fake.weight))
    with pytest.raises(DatalessTensorError, match=r"weight, .* has no values to keep"):
        ovtensor.release_weights(fake)
    assert ovtensor.release_weights(torch.nn.Identity()) == 0


def test_adapters_are_loaded_released_fused_and_unloaded(need):
    need("peft")
    from diffusers import UNet2DConditionModel

    released = UNet2DConditionModel.from_pretrained(f"{ovtensor.tiny_sdxl_path()}/unet")
    eager = copy.deepcopy(released)
    generator = torch.Generator().manual_seed(0)
    adapter = {}
    for name, layer in eager.named_modules():
        if name.endswith("attn1.to_q"):
            adapter[f"{name}.lora_A.weight"] = torch.randn(4, layer.in_features)
            adapter[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 4)
    inputs = {
        "sample": torch.randn(1, 4, 16, 16, generator=generator),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(1, 77, 96, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 64, generator=generator),
            "time_ids": torch.full((1, 6), 128.0),
        },
    }

    def results(unet):
        with torch.no_grad():
            plain = unet(**inputs).sample
            unet.load_lora_adapter(dict(adapter), prefix=None, adapter_name="style")
            if unet is released:
                assert ovtensor.release_weights(unet) == sum(x.nbytes for x in adapter.values())
            adapted = unet(**inputs).sample
            unet.fuse_lora(lora_scale=0.5)
            fused = unet(**inputs).sample
            unet.unfuse_lora()
            unet.unload_lora()
            return plain, adapted, fused, unet(**inputs).sample

    assert ovtensor.release_weights(released) > 8_000_000
    expected = results(eager)
    assert not torch.allclose(expected[0], expected[1])
    for one, two in zip(results(released), expected, strict=True):
        assert torch.equal(one, two)


def test_conjugated_and_negated_views_keep_their_values():
    base = torch.tensor([1 + 2j, 3 - 4j])
    module = torch.nn.Module()
    for name, value in [("base", base), ("conj", base.conj()), ("neg", base.conj().imag)]:
        module.register_buffer(name, value)
    values = {name: ovtensor.to_numpy(value) for name, value in module.state_dict().items()}
    assert ovtensor.release_weights(module) == 16
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(ovtensor.to_numpy(value), values[name])
    module.base[0] = 5 + 6j  # they are views of one memory still
    assert module.conj[0] == 5 - 6j
    assert module.neg[0] == -6


def test_weights_that_other_processes_share_stay_shared():
    module = torch.nn.Linear(4, 4)
    module.weight.share_memory_()
    address = module.weight.data_ptr()
    assert ovtensor.release_weights(module) == module.bias.nbytes
    assert module.weight.is_shared()
    assert module.weight.data_ptr() == address
