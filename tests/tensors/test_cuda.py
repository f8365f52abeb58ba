"""Memory of a CUDA device: its values leave by one copy, or stay where they are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError
from ovtensor.tensors.dtypes import BY_TORCH

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
]

VALUES = torch.arange(24.0).reshape(2, 3, 4) - 7


class PlainTensor(torch.Tensor):
    pass


class Breaks(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("no functions here")


def in_inference_mode(x):
    with torch.inference_mode():
        return x * 1


KINDS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T if x.ndim == 2 else x.permute(2, 0, 1),
    "strided": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(5, 3, 4),
    "no dimension": lambda x: x[1, 2, 3],
    "empty": lambda x: x[:0],
    "offset": lambda x: x[1:],
    "channels last": lambda x: x[None].contiguous(memory_format=torch.channels_last),
    "conj": lambda x: torch.complex(x, x + 1).conj(),
    "neg": lambda x: torch.complex(x, x + 1).conj().imag,
    "complex32": lambda x: torch.complex(x, x + 1).to(torch.complex32),
    "parameter": torch.nn.Parameter,
    "buffer": torch.nn.Buffer,
    "requires grad": lambda x: x.clone().requires_grad_() * 1,
    "inference mode": in_inference_mode,
    "coo": lambda x: x[0].to_sparse(),
    "csr": lambda x: x[0].to_sparse_csr(),
    "csc": lambda x: x[0].to_sparse_csc(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.5, 3, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "subclass": lambda x: x.as_subclass(PlainTensor),
    "breaks": lambda x: x.as_subclass(Breaks),
}


@pytest.fixture(params=KINDS)
def pair(request):
    """The same tensor on the CPU and on the device."""
    make = KINDS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(VALUES.clone()), make(VALUES.cuda())


def test_values_are_those_of_the_cpu(pair):
    here, there = pair
    expected = ovtensor.to_numpy(here)
    for copy in (None, True):
        out = ovtensor.to_numpy(there, copy=copy)
        assert type(out) is np.ndarray
        assert out.dtype == expected.dtype
        np.testing.assert_array_equal(out, expected)


def test_nothing_is_a_view(pair):
    _, there = pair
    for convert in (ovtensor.to_numpy, ovtensor.to_openvino):
        wanted = r"cuda:0.*(copy=False|has no complex64)"
        with pytest.raises(ConversionError, match=wanted):
            convert(there, copy=False)
    info = ovtensor.describe(there)
    assert info.has_data
    assert not info.zero_copy
    assert info.device == "cuda:0"


@pytest.mark.parametrize("name", BY_TORCH)
def test_every_element_type(name):
    dtype = getattr(torch, name)
    bits = torch.arange(256, dtype=torch.uint8)
    bits = bits[:2] if dtype is torch.bool else bits
    here = bits.view(dtype)
    there = bits.cuda().view(dtype)
    for target in (None, "native"):
        given, expected = (ovtensor.to_numpy(x, dtype=target) for x in (there, here))
        assert given.dtype == expected.dtype
        assert given.tobytes() == expected.tobytes()
    assert ovtensor.to_torch(there).dtype is dtype


def test_float4():
    bits = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    there = bits.cuda().view(torch.float4_e2m1fn_x2)
    expected = ovtensor.to_numpy(bits.view(torch.float4_e2m1fn_x2))
    np.testing.assert_array_equal(ovtensor.to_numpy(there), expected)


def test_to_torch_stays_on_the_device():
    x = VALUES.cuda()
    same = ovtensor.to_torch(x)
    assert same.data_ptr() == x.data_ptr()
    assert ovtensor.to_torch(x, copy=False).data_ptr() == x.data_ptr()
    other = ovtensor.to_torch(x, copy=True)
    assert other.device == x.device
    assert other.data_ptr() != x.data_ptr()
    back = ovtensor.to_torch(x, device="cpu")
    assert back.device.type == "cpu"
    assert torch.equal(back, VALUES)
    with pytest.raises(ConversionError, match="goes to device cpu"):
        ovtensor.to_torch(x, device="cpu", copy=False)
    with pytest.raises(ConversionError, match="goes to device cuda"):
        ovtensor.to_torch(VALUES, device="cuda", copy=False)
    assert ovtensor.to_torch(VALUES.numpy(), device="cuda").is_cuda
    assert ovtensor.to_torch(VALUES.numpy(), device="cuda:0", dtype="bfloat16").is_cuda


def test_to_openvino():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = VALUES.cuda().to(dtype)
        out = ovtensor.to_openvino(x)
        assert torch.equal(ovtensor.to_torch(out), x.cpu())


def test_a_tree_with_both():
    tree = {"here": VALUES, "there": [VALUES.cuda(), "text"]}
    out = ovtensor.tree_to_numpy(tree)
    np.testing.assert_array_equal(out["there"][0], VALUES)
    assert np.shares_memory(out["here"], VALUES.numpy())
    assert out["there"][1] == "text"


@pytest.mark.parametrize("left", [0, 8])
def test_freed_memory_is_never_read(left):
    x = VALUES.cuda()
    x.untyped_storage().resize_(left)
    with pytest.raises(DatalessTensorError, match="storage"):
        ovtensor.to_numpy(x)
    with pytest.raises(DatalessTensorError, match="storage"):
        ovtensor.to_torch(x)
    assert not ovtensor.describe(x).has_data


def synchronisations(call):
    """How often a call makes the CPU wait for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def test_the_copy_is_the_only_synchronisation():
    x = VALUES.cuda()
    alone = synchronisations(x.cpu)
    assert alone == 1
    for y in (x, x.bfloat16(), x.permute(2, 0, 1), torch.nn.Parameter(x), torch.complex(x, x)):
        assert synchronisations(lambda y=y: ovtensor.to_numpy(y)) == alone
        assert synchronisations(lambda y=y: ovtensor.to_openvino(y.real)) == alone
        assert synchronisations(lambda y=y: ovtensor.describe(y)) == 0
        assert synchronisations(lambda y=y: ovtensor.to_torch(y)) == 0
        assert synchronisations(lambda y=y: ovtensor.to_torch(y, copy=True)) == 0


def test_work_of_the_current_stream_is_waited_for():
    x = torch.randn(2048, 2048, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    x /= 64
    with torch.cuda.stream(torch.cuda.Stream()):
        y = x
        for _ in range(50):
            y = (y @ x).tanh()
        out = ovtensor.to_numpy(y)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(out, y.cpu())


def test_a_captured_graph_refuses_and_goes_on():
    x = VALUES.cuda()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(Exception, match="captur"), torch.cuda.graph(graph):  # noqa: PT012
        y = x + 1
        ovtensor.to_numpy(y)
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)


def test_pinned_memory_is_memory_of_the_cpu():
    x = VALUES.pin_memory()
    assert np.shares_memory(ovtensor.to_numpy(x, copy=False), x.numpy())


def test_the_input_is_left_as_it_was():
    x = VALUES.cuda().requires_grad_()
    y = x * 1
    before = (y._version, y.requires_grad, y.grad_fn, y.stride(), y.data_ptr())
    for convert in (ovtensor.to_numpy, ovtensor.to_openvino, ovtensor.to_torch):
        convert(y)
    assert before == (y._version, y.requires_grad, y.grad_fn, y.stride(), y.data_ptr())
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_fake_tensor_of_the_device_has_no_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode().from_tensor(VALUES.cuda())
    with pytest.raises(DatalessTensorError, match="release_weights"):
        ovtensor.to_numpy(fake)
    assert not ovtensor.describe(fake).has_data


def test_a_real_tensor_under_a_fake_mode_keeps_its_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = VALUES.cuda()
    with FakeTensorMode():
        np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "complex64"])
def test_cupy(dtype):
    cupy = pytest.importorskip("cupy")
    expected = VALUES.numpy().astype(dtype)
    x = cupy.asarray(expected)
    for source, values in ((x, expected), (x[:, ::2].T, expected[:, ::2].T), (x[0, 0, 0], None)):
        out = ovtensor.to_numpy(source)
        assert type(out) is np.ndarray
        np.testing.assert_array_equal(out, expected[0, 0, 0] if values is None else values)
        np.testing.assert_array_equal(ovtensor.to_torch(source), source.get())
        if dtype != "complex64":
            np.testing.assert_array_equal(ovtensor.to_openvino(source).data, source.get())
    with pytest.raises(ConversionError, match="copy=False"):
        ovtensor.to_numpy(x, copy=False)
    info = ovtensor.describe(x)
    assert info.library == "cupy"
    assert info.shape == (2, 3, 4)
    assert info.has_data
    assert not info.zero_copy


def test_jax_on_the_device(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this jax has no GPU")
    for dtype in ("float32", "bfloat16", "int32", "float8_e5m2"):
        x = jax.numpy.asarray(VALUES.numpy()).astype(dtype)
        out = ovtensor.to_numpy(x)
        np.testing.assert_array_equal(out, np.asarray(x).astype(out.dtype))
        assert ovtensor.to_torch(x).dtype is getattr(torch, dtype)
        with pytest.raises(ConversionError, match="copy=False"):
            ovtensor.to_numpy(x, copy=False)
        assert ovtensor.describe(x).has_data


def test_numba_on_the_device():
    cuda = pytest.importorskip("numba.cuda")
    x = cuda.to_device(VALUES.numpy())
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)
    np.testing.assert_array_equal(ovtensor.to_torch(x), VALUES)


def test_torchvision_on_the_device():
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    x = tv_tensors.Image(VALUES.cuda())
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)
    assert type(ovtensor.to_torch(x)) is torch.Tensor


def test_release_weights_leaves_them_on_the_device():
    module = torch.nn.Linear(64, 64).cuda()
    before = module.weight.data_ptr()
    assert ovtensor.release_weights(module) == 0
    assert module.weight.data_ptr() == before


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_postprocess_as_diffusers_does_it(dtype, output_type):
    image_processor = pytest.importorskip("diffusers.image_processor")
    from ovtensor.diffusers import VaeImageProcessor

    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(2, 3, 64, 48, device="cuda", generator=generator).to(dtype)
    expected = image_processor.VaeImageProcessor().postprocess(x, output_type=output_type)
    given = VaeImageProcessor().postprocess(x, output_type=output_type)
    assert type(given) is type(expected)
    for one, other in zip(given, expected, strict=True):
        if output_type in ("pt", "latent"):
            assert one.device == other.device
            assert torch.equal(one, other)
        else:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_broken_picture_of_the_device_is_named():
    pytest.importorskip("diffusers")
    from ovtensor.diffusers import VaeImageProcessor
    from ovtensor.errors import NonFiniteError

    x = torch.zeros(2, 3, 8, 8, device="cuda", dtype=torch.float16)
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of"):
        VaeImageProcessor().postprocess(x)


def test_preprocess_as_diffusers_does_it():
    image_processor = pytest.importorskip("diffusers.image_processor")
    from ovtensor.diffusers import VaeImageProcessor

    x = torch.rand(2, 3, 64, 48, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    expected = image_processor.VaeImageProcessor().preprocess(x)
    given = VaeImageProcessor().preprocess(x)
    assert given.device == expected.device
    assert torch.equal(given, expected)
