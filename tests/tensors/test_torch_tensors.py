"""Plain PyTorch tensors: kind x dtype x layout x copy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import ovtensor
from ovtensor.errors import ConversionError

NUMPY_TYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.float16, torch.float32, torch.float64, torch.complex64,
    torch.complex128,
]  # fmt: skip
NARROW_TYPES = [
    torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2),
    "strided": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
    "channels_last": lambda x: x[None].contiguous(memory_format=torch.channels_last),
    "offset": lambda x: x[1:],
    "no_dimension": lambda x: x[1, 2, 3],
    "empty": lambda x: x[:0],
}


def source(dtype):
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) % 7 + 1
    return values.to(torch.int64).to(dtype) if dtype in NUMPY_TYPES else values.to(dtype)


def expected(x):
    return np.array(x.to(torch.float32).tolist() if x.dtype in NARROW_TYPES else x.tolist())


@pytest.mark.parametrize("copy", [None, True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NUMPY_TYPES, ids=str)
def test_types_that_numpy_has(dtype, layout, copy):
    x = LAYOUTS[layout](source(dtype))
    before = x.clone(), x._version
    if copy is False and x.numel() == 0:
        return  # covered by test_empty_tensors_share_nothing
    out = ovtensor.to_numpy(x, copy=copy)
    assert type(out) is np.ndarray
    assert out.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert out.shape == tuple(x.shape)
    np.testing.assert_array_equal(out, expected(x).reshape(x.shape))
    shares = x.numel() > 0 and out.__array_interface__["data"][0] == x.data_ptr()
    assert shares is (not copy and x.numel() > 0)
    assert x._version == before[1]
    assert torch.equal(x, before[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NARROW_TYPES, ids=str)
def test_types_that_numpy_lacks(dtype, layout):
    x = (
        LAYOUTS[layout](source(torch.float32)).to(dtype)
        if layout == "channels_last"
        else (LAYOUTS[layout](source(dtype)))
    )
    out = ovtensor.to_numpy(x)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, expected(x).reshape(x.shape))
    if x.numel() == 0:
        return
    native = ovtensor.to_numpy(x, dtype="native", copy=False)
    assert native.dtype.name == str(dtype).removeprefix("torch.")
    assert native.__array_interface__["data"][0] == x.data_ptr()
    np.testing.assert_array_equal(native.astype(np.float32), out)
    with pytest.raises(ConversionError, match=r"copy=False forbids it.*dtype='native'"):
        ovtensor.to_numpy(x, copy=False)


@pytest.mark.parametrize("dtype", NARROW_TYPES, ids=str)
def test_every_bit_pattern_of_narrow_types(dtype):
    bits = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int32)
    x = bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    np.testing.assert_array_equal(ovtensor.to_numpy(x), x.float().numpy())


def test_float4_pairs_are_unpacked():
    x = torch.tensor([[0x10, 0x32], [0x54, 0xF6]], dtype=torch.uint8)
    x = x.view(torch.float4_e2m1fn_x2)
    wanted = [[0, 0.5, 1, 1.5], [2, 3, 4, -6]]
    np.testing.assert_array_equal(ovtensor.to_numpy(x), np.float32(wanted))
    native = ovtensor.to_numpy(x, dtype="native")
    assert native.dtype.name == "float4_e2m1fn"
    np.testing.assert_array_equal(native.astype(np.float32), wanted)
    with pytest.raises(ConversionError, match=r"copy=False.*made by the conversion itself"):
        ovtensor.to_numpy(x, dtype="native", copy=False)  # ml_dtypes spends a byte on each
    transposed = x.T
    np.testing.assert_array_equal(ovtensor.to_numpy(transposed), [[0, 0.5, 2, 3], [1, 1.5, 4, -6]])
    np.testing.assert_array_equal(ovtensor.to_numpy(x[:1]), wanted[:1])
    packed = ovtensor.to_openvino(x)
    assert packed.element_type.get_type_name() == "f4e2m1"
    np.testing.assert_array_equal(ovtensor.to_numpy(packed), wanted)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex32_becomes_complex64():
    x = torch.tensor([1 + 2j, -3 + 0.5j]).to(torch.complex32)
    for given, wanted in ((x, [1 + 2j, -3 + 0.5j]), (x.conj(), [1 - 2j, -3 - 0.5j])):
        out = ovtensor.to_numpy(given)
        assert out.dtype == np.complex64
        np.testing.assert_array_equal(out, wanted)


def test_flags_on_top_of_memory():
    z = torch.tensor([1 + 2j, 3 - 4j])
    np.testing.assert_array_equal(ovtensor.to_numpy(z.conj()), [1 - 2j, 3 + 4j])
    negative = z.conj().imag
    assert negative.is_neg()
    np.testing.assert_array_equal(ovtensor.to_numpy(negative), [-2, 4])
    np.testing.assert_array_equal(
        ovtensor.to_numpy(torch._neg_view(torch.tensor([1.5, -2]).bfloat16())), [-1.5, 2]
    )
    np.testing.assert_array_equal(ovtensor.to_numpy(torch._efficientzerotensor((2, 3))), 0)
    with pytest.raises(ConversionError, match="copy=False"):
        ovtensor.to_numpy(negative, copy=False)


def test_gradients_and_inference_mode():
    x = torch.ones(2, 3, requires_grad=True)
    y = x * 2
    np.testing.assert_array_equal(ovtensor.to_numpy(y), 2)
    assert ovtensor.to_numpy(x, copy=False).ctypes.data == x.data_ptr()
    assert (x.requires_grad, y.grad_fn is not None) == (True, True)
    y.sum().backward()
    np.testing.assert_array_equal(ovtensor.to_numpy(x.grad), 2)
    with torch.inference_mode():
        inference = torch.ones(2) + 1
    np.testing.assert_array_equal(ovtensor.to_numpy(inference), 2)


def test_quantized_tensors_are_dequantized():
    x = torch.tensor([[-1.0, 0.0], [1.0, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(x, 0.5, 1, torch.qint8)
        channel = torch.quantize_per_channel(
            x, torch.tensor([0.5, 1.0]), torch.tensor([0, 0]), 0, torch.quint8
        )
    np.testing.assert_array_equal(ovtensor.to_numpy(tensor), x)
    np.testing.assert_array_equal(ovtensor.to_numpy(channel), x.clamp(min=0))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to_sparse_csc(),
        lambda x: x.to_sparse_bsr((2, 2)),
        lambda x: x.to_sparse_bsc((2, 2)),
        lambda x: x.to_mkldnn(),
        lambda x: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 4)),
    ],
    ids=["coo", "csr", "csc", "bsr", "bsc", "mkldnn", "uncoalesced"],
)
def test_other_layouts_become_dense(make):
    x = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 3.0, 0.0]])
    given = make(x)
    layout = given.layout
    given.requires_grad_(layout is not torch._mkldnn)
    out = ovtensor.to_numpy(given)
    np.testing.assert_array_equal(out, given.detach().to_dense().numpy())
    assert given.layout is layout
    assert ovtensor.to_torch(given).layout is torch.strided
    assert not ovtensor.to_torch(given).requires_grad


def test_nested_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layout in (torch.strided, torch.jagged):
            equal = torch.nested.nested_tensor([torch.ones(2), torch.zeros(2)], layout=layout)
            np.testing.assert_array_equal(ovtensor.to_numpy(equal), [[1, 1], [0, 0]])
            ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
            with pytest.raises(ConversionError, match=r"ragged.*unbind\(\)"):
                ovtensor.to_numpy(ragged)


SHELLS = [f"{sign}int{bits}" for sign in ("u", "") for bits in range(1, 8)]


@pytest.mark.parametrize("name", [*SHELLS, "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"])
def test_types_that_torch_gives_no_meaning(name):
    """They have memory, but whether elements are packed in it is up to who made them."""
    x = torch.arange(4, dtype=torch.uint8).view(getattr(torch, name))
    with pytest.raises(RuntimeError):
        x[0].item()
    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match=rf"dtype torch.{name}.*view\(torch.uint8\)"):
            convert(x)
    np.testing.assert_array_equal(ovtensor.to_numpy(x.view(torch.uint8)), [0, 1, 2, 3])


def test_empty_tensors_share_nothing():
    assert ovtensor.to_numpy(torch.zeros(0, 3)).shape == (0, 3)
    assert ovtensor.to_torch(torch.zeros(0, 3, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize("index", range(4))
def test_the_private_interfaces_that_are_built_on_are_still_there(index):
    """If this fails, look at ``routes/torch_data.py`` first."""
    from torch._C import _functorch

    x = torch.ones(2)
    keys = torch._C._dispatch_keys(x)
    answers = [
        not keys.has(torch._C.DispatchKey.Python) and not keys.has(torch._C.DispatchKey.ZeroTensor),
        not _functorch.is_batchedtensor(x) and not _functorch.is_gradtrackingtensor(x),
        _functorch.peek_interpreter_stack() is None and torch._C._len_torch_dispatch_stack() == 0,
        torch._C._len_torch_function_stack() == 0 and torch._C._is_tracing() is False,
    ]
    assert answers[index]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_no_dimension_gives_an_array_and_no_scalar():
    z = torch.tensor(1 + 2j)
    narrow = [torch.tensor(2.0).to(dtype) for dtype in NARROW_TYPES]
    for x in (z.conj(), z.conj().imag, z.to(torch.complex32).conj(), *narrow):
        out = ovtensor.to_numpy(x)
        assert type(out) is np.ndarray
        assert out.shape == ()
    for dtype in ("uint4", "int4", "bfloat16", "float8_e5m2"):
        assert type(ovtensor.to_numpy(np.array(2), dtype=dtype)) is np.ndarray
