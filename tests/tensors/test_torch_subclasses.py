"""Tensor subclasses: unwrapped by their own methods, or an error that says how to teach one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import ovtensor
from ovtensor.errors import ConversionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
VALUES = torch.arange(12.0).reshape(3, 4) / 8


class Plain(torch.Tensor):
    pass


class Broken(torch.Tensor):
    """Like tv_tensors, MetaTensor and TensorImage: its own ``__torch_function__``, at its worst."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("not through here")

    def numpy(self, *args, **kwargs):
        raise RuntimeError("nor here")

    detach = numpy


class Stored(torch.Tensor):
    """Dispatches, and has a storage."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_subclass(cls, inner)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


class Wrapper(torch.Tensor):
    """Dispatches, has no storage, and wraps every result again."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def unwrapped(cls, inner):
        return inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = pytree.tree_map_only(cls, lambda x: cls.unwrapped(x.inner), args)
        return pytree.tree_map_only(torch.Tensor, cls, func(*args, **(kwargs or {})))


class Scaled(Wrapper):
    """Its inner tensor is not its values."""

    @classmethod
    def unwrapped(cls, inner):
        return inner * 2


class Dequantized(Wrapper):
    def dequantize(self):
        return self.inner * 4


class Stuck(Wrapper):
    def dequantize(self):
        return Stuck(self.inner)


class Failing(Wrapper):
    def to_dense(self):
        raise ValueError("no scale")


class AsTensor(Wrapper):
    """As PyG's EdgeIndex does it, whose ``to_dense`` gives something else than its values."""

    def as_tensor(self):
        return self.inner

    def to_dense(self):
        return torch.zeros(7)


class Silent(torch.Tensor):
    """No operator works, no inner tensor shows."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (2, 3), dtype=torch.float16)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(str(func))


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (torch.nn.Parameter, 1),
        (torch.nn.Buffer, 1),
        (lambda x: x.as_subclass(Plain), 1),
        (lambda x: x.as_subclass(Broken), 1),
        (Stored, 1),
        (Wrapper, 1),
        (AsTensor, 1),
        (Dequantized, 4),
        (lambda x: torch.nn.Parameter(Wrapper(x)), 1),
        (lambda x: Dequantized(Wrapper(x)), 4),
    ],
    ids=["Parameter", "Buffer", "Plain", "Broken", "Stored", "Wrapper", "AsTensor",
         "Dequantized", "Parameter of Wrapper", "wrapped twice"],
)  # fmt: skip
def test_values_come_out(make, factor):
    x = make(VALUES.clone())
    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        out = ovtensor.to_numpy(convert(x))
        assert type(out) is np.ndarray
        np.testing.assert_array_equal(out, VALUES * factor)
    assert type(ovtensor.to_torch(x)) is torch.Tensor
    fresh = ovtensor.to_numpy(x, copy=True)
    fresh[...] = -1
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES * factor)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Silent, r"Silent has no known way.*register_route\('.*\.Silent'"),
        (lambda: Scaled(VALUES), "Scaled has no known way"),
        (lambda: Stuck(VALUES), r"dequantize\(\) gave the same type back; teach"),
        (lambda: Failing(VALUES), r"to_dense\(\) failed: no scale; teach"),
    ],
    ids=["Silent", "Scaled", "Stuck", "Failing"],
)
def test_no_guess_is_made(make, text):
    with pytest.raises(ConversionError, match=text):
        ovtensor.to_numpy(make())


def test_what_unwrapping_gives_is_no_view():
    for x in (Dequantized(VALUES), Wrapper(VALUES.clone())):
        with pytest.raises(ConversionError, match=r"copy=False.*not known to be shared"):
            ovtensor.to_numpy(x, copy=False)
        assert not ovtensor.describe(x).zero_copy


def test_two_sets_of_values():
    from torch.testing._internal.two_tensor import TwoTensor

    with pytest.raises(ConversionError, match="wraps 2 tensors"):
        ovtensor.to_numpy(TwoTensor(VALUES, VALUES + 1))


def test_plain_subclasses_share_memory():
    x = VALUES.clone().as_subclass(Broken)
    with torch._C.DisableTorchFunction():
        address = x.data_ptr()
    assert ovtensor.to_numpy(x, copy=False).ctypes.data == address


def test_masked_tensors_keep_their_mask():
    from torch.masked import masked_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = masked_tensor(VALUES, VALUES > 0.5)
    out = ovtensor.to_numpy(x)
    assert isinstance(out, np.ma.MaskedArray)
    np.testing.assert_array_equal(out.mask, (VALUES <= 0.5).numpy())
    np.testing.assert_array_equal(out.compressed(), VALUES[VALUES > 0.5])
    for convert in (ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match=r"mask.*filled"):
            convert(x)


@pytest.fixture
def mesh(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import init_device_mesh

    store = f"file:///{(tmp_path / 'store').as_posix().lstrip('/')}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors(mesh):
    from torch.distributed._functional_collectives import all_reduce
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for placement in (Shard(0), Replicate()):
        x = distribute_tensor(VALUES, mesh, [placement])
        np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)
        ovtensor.to_numpy(x, copy=True)[...] = -1
        assert torch.equal(x.to_local(), VALUES)
    pending = all_reduce(VALUES.clone(), "sum", mesh)
    np.testing.assert_array_equal(ovtensor.to_numpy(pending), VALUES)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore")
def test_no_collective_is_started_for_a_shard():
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        x = DTensor.from_local(VALUES, mesh, [Shard(0)], run_check=False)
        with pytest.raises(ConversionError, match=r"shape \(6, 4\).*full_tensor\(\) on every rank"):
            ovtensor.to_numpy(x)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_weights(need, config):
    quantization = need("torchao", "torchao.quantization")
    layer = torch.nn.Linear(32, 16)
    original = layer.weight.detach().clone()
    quantization.quantize_(layer, getattr(quantization, config)())
    out = ovtensor.to_numpy(layer.weight)
    np.testing.assert_array_equal(out, layer.weight.dequantize().detach())
    assert 0 < np.abs(out - original.numpy()).max() < 0.02


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "BF16", "F16"])
def test_gguf_weights(need, kind):
    gguf = need("gguf")
    from diffusers.quantizers.gguf.utils import GGUFParameter

    quantization = gguf.GGMLQuantizationType[kind]
    codes = gguf.quants.quantize(np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64),
                                 quantization)  # fmt: skip
    x = GGUFParameter(torch.from_numpy(codes.copy()), quant_type=quantization)
    out = ovtensor.to_numpy(x)
    assert out.shape == (4, 64)
    np.testing.assert_array_equal(out, gguf.quants.dequantize(codes, quantization))
    x.quant_type = None
    with pytest.raises(ConversionError, match="quantization type is gone"):
        ovtensor.to_numpy(x)


@pytest.mark.filterwarnings("ignore")
def test_memory_mapped_tensors(need):
    tensordict = need("tensordict")
    x = tensordict.MemoryMappedTensor.from_tensor(VALUES)
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_four_bit_weights(need, kind):
    bnb = need("bitsandbytes")
    x = bnb.nn.Params4bit(
        torch.linspace(-1, 1, 128 * 64).reshape(64, 128), requires_grad=False, quant_type=kind
    )
    original = ovtensor.to_numpy(x, copy=True)
    np.testing.assert_array_equal(original, torch.linspace(-1, 1, 128 * 64).reshape(64, 128))
    assert not x.bnb_quantized  # which its own .cpu() would have done, in place
    packed = x.to("cpu")
    assert packed.dtype is torch.uint8
    out = ovtensor.to_numpy(packed)
    assert out.shape == (64, 128)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(
        out, bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
    )
    assert 0 < np.abs(out - original).max() < 0.2
    packed.quant_state = None
    with pytest.raises(ConversionError, match=r"Params4bit.*scale is gone"):
        ovtensor.to_numpy(packed)


@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_eight_bit_weights(need):
    bnb = need("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    original = ovtensor.to_numpy(layer.weight, copy=True)
    np.testing.assert_array_equal(original, layer.weight.data)
    assert layer.weight.SCB is None  # not quantized by being read
    layer = layer.to("cpu")
    assert layer.weight.dtype is torch.int8
    out = ovtensor.to_numpy(layer.weight)
    wanted = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    np.testing.assert_array_equal(out, wanted)
    assert 0 < np.abs(out - original).max() < 1e-3
    layer(torch.ones(1, 128))  # takes the scale out of the weight
    with pytest.raises(ConversionError, match=r"Int8Params.*scale is gone.*state\.SCB"):
        ovtensor.to_numpy(layer.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qint8", "qfloat8"])  # for the narrower it compiles C++ first
def test_quanto_weights(need, kind):
    quanto = need("optimum-quanto", "optimum.quanto")
    model = torch.nn.Sequential(torch.nn.Linear(128, 64))
    original = model[0].weight.detach().numpy().copy()
    quanto.quantize(model, weights=getattr(quanto, kind))
    np.testing.assert_array_equal(ovtensor.to_numpy(model[0].weight), original)
    quanto.freeze(model)
    assert type(model[0].weight).__module__.startswith("optimum.quanto")
    out = ovtensor.to_numpy(model[0].weight)
    np.testing.assert_array_equal(out, model[0].weight.dequantize().detach())
    assert 0 < np.abs(out - original).max() < 0.05


@pytest.mark.filterwarnings("ignore")
def test_meta_tensors_of_monai_share_memory(need):
    x = need("monai", "monai.data").MetaTensor(VALUES.clone())
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)
    assert ovtensor.to_numpy(x, copy=False).ctypes.data == x.data_ptr()
    assert type(ovtensor.to_torch(x)) is torch.Tensor


@pytest.mark.filterwarnings("ignore")
def test_edges_of_torch_geometric(need):
    geometric = need("torch_geometric")
    edges = [[0, 1, 1, 2], [1, 0, 2, 1]]
    x = geometric.EdgeIndex(edges, sparse_size=(3, 3), sort_order="row")
    np.testing.assert_array_equal(ovtensor.to_numpy(x), edges)
    assert type(ovtensor.to_torch(x)) is torch.Tensor
    index = geometric.Index([0, 1, 1, 2], dim_size=3, is_sorted=True)
    np.testing.assert_array_equal(ovtensor.to_numpy(index), [0, 1, 1, 2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "name"),
    [("torchvision.tv_tensors", "Image"), ("fastai.torch_core", "TensorImage")],
)
def test_packages_that_bring_another_torch(need, module, name):
    """Both pull a torchvision of the CUDA build, which breaks next to a CPU torch."""
    x = getattr(need(module), name)(torch.ones(3, 2, 2))
    np.testing.assert_array_equal(ovtensor.to_numpy(x), np.ones((3, 2, 2)))
