"""What holds for every kind of object: what is promised before a conversion is kept by it."""

from __future__ import annotations

import array
import ctypes

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from PIL import Image

import ovtensor
from ovtensor.errors import ConversionError
from ovtensor.tensors.dtypes import BY_OPENVINO

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) / 8


class PlainTensor(torch.Tensor):
    pass


class SubArray(np.ndarray):
    pass


class GivesItsOwn:
    """Gives away the array that it works on, which owns its memory."""

    def __init__(self):
        self.values = VALUES.copy()

    def __array__(self, dtype=None, copy=None):
        return self.values


class Builds:
    """Gives a view of an array that it makes for the occasion."""

    def __array__(self, dtype=None, copy=None):
        return np.arange(12.0).reshape(3, 4)


def tensor():
    return torch.from_numpy(VALUES.copy())


def openvino(dtype):
    return ovtensor.to_openvino(np.arange(4), dtype=dtype)


def strict(need):
    return need("array_api_strict").asarray(VALUES)


def jax(need):
    return need("jax", "jax.numpy").asarray(VALUES)


def jax_bfloat16(need):
    return jax(need).astype("bfloat16")


def scipy(need):
    return need("scipy", "scipy.sparse").csr_matrix(VALUES)


def freed():
    x = torch.ones(3, 4)
    x.untyped_storage().resize_(4)
    return x


KINDS = {
    "tensor": tensor,
    "transposed": lambda: tensor().T,
    "expanded": lambda: tensor()[:1].expand(3, 4),
    "no dimension": lambda: torch.tensor(1.0),
    "bfloat16": lambda: tensor().bfloat16(),
    "float8": lambda: tensor().to(torch.float8_e5m2),
    "float4": lambda: torch.ones(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "complex32": lambda: torch.ones(2).to(torch.complex32),
    "conj": lambda: torch.tensor([1 + 2j]).conj(),
    "neg": lambda: torch.tensor([1 + 2j]).conj().imag,
    "zero tensor": lambda: torch._efficientzerotensor((2, 2)),
    "parameter": lambda: torch.nn.Parameter(tensor()),
    "bfloat16 parameter": lambda: torch.nn.Parameter(tensor().bfloat16()),
    "requires grad": lambda: tensor().requires_grad_() * 1,
    "subclass": lambda: tensor().as_subclass(PlainTensor),
    "sparse": lambda: tensor().to_sparse(),
    "mkldnn": lambda: tensor().to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(2)]),
    "masked tensor": lambda: torch.masked.masked_tensor(tensor(), tensor() > 0.5),
    "meta": lambda: torch.ones(2, device="meta"),
    "freed": freed,
    "array": VALUES.copy,
    "subclass of array": lambda: VALUES.copy().view(SubArray),
    "big-endian": lambda: VALUES.astype(">f4"),
    "read-only": lambda: np.frombuffer(VALUES.tobytes(), np.float32),
    "objects": lambda: np.array([1, 2.5], object),
    "scalar": lambda: np.float32(1),
    "masked array": lambda: np.ma.array(VALUES.copy(), mask=VALUES > 0.5),
    "array of bfloat16": lambda: VALUES.astype(ml_dtypes.bfloat16),
    "array of int4": lambda: np.array([1, -2]).astype(ml_dtypes.int4),
    "text": lambda: np.array(["a"]),
    "openvino f32": lambda: openvino("float32"),
    "openvino f16": lambda: openvino("float16"),
    "openvino bf16": lambda: openvino("bfloat16"),
    "openvino u8": lambda: openvino("uint8"),
    "openvino u4": lambda: openvino("uint4"),
    "openvino text": lambda: ov.Tensor(np.array(["a"])),
    "shown by openvino": lambda: openvino("float32").data,
    "constant": lambda: ops.constant(VALUES.copy()),
    "bfloat16 constant": lambda: ops.constant(openvino("bfloat16")),
    "u4 constant": lambda: ops.constant(openvino("uint4")),
    "port": lambda: ops.parameter([1], np.float32).output(0),
    "jax": jax,
    "bfloat16 of jax": jax_bfloat16,
    "array_api_strict": strict,
    "scipy": scipy,
    "picture": lambda: Image.new("L", (2, 2), 3),
    "bytes": lambda: b"ab",
    "bytearray": lambda: bytearray(b"ab"),
    "memoryview": lambda: memoryview(bytearray(b"ab")),
    "array.array": lambda: array.array("f", [1, 2]),
    "ctypes": lambda: (ctypes.c_int * 3)(1, 2, 3),
    "gives its own": GivesItsOwn,
    "builds": Builds,
    "number": lambda: 3,
    "list": lambda: [1, 2],
    "string": lambda: "a",
    "none": lambda: None,
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=KINDS)
def kind(request, need):
    make = KINDS[request.param]
    return request.param, make(need) if make in (jax, jax_bfloat16, strict, scipy) else make()


def converts(x, **options):
    try:
        ovtensor.to_numpy(x, **options)
    except ConversionError:
        return False
    return True


def test_what_describe_says_comes_true(kind):
    _, x = kind
    info = ovtensor.describe(x)
    assert info.has_data is converts(x)
    assert info.zero_copy is converts(x, copy=False, dtype="native")
    assert (info.reason is None) is info.has_data


def test_arrays_are_bare_and_native(kind):
    name, x = kind
    if converts(x):
        out = ovtensor.to_numpy(x)
        assert type(out) is (np.ma.MaskedArray if name.startswith("masked") else np.ndarray)
        assert out.dtype.isnative


def test_a_copy_is_never_shared(kind):
    _, x = kind
    if not converts(x):
        return
    out = ovtensor.to_numpy(x, copy=True)
    before = out.copy()
    assert out.flags.writeable
    out[...] = "b" if out.dtype.kind == "U" else 99
    np.testing.assert_array_equal(ovtensor.to_numpy(x), before)


def test_a_view_is_always_shared(kind):
    """Two views of the same memory can only both be of the source."""
    _, x = kind
    if converts(x, copy=False, dtype="native"):
        first, second = (ovtensor.to_numpy(x, copy=False, dtype="native") for _ in range(2))
        assert first.ctypes.data == second.ctypes.data


def of_no_dimension():
    """Make one of each kind whose values have no dimension."""
    one = torch.tensor(1.0)
    yield from (one, torch.nn.Parameter(one), one.to_sparse(), torch._efficientzerotensor(()))
    yield from (one.to(dtype) for dtype in (torch.bfloat16, torch.float8_e5m2, torch.complex32))
    yield from (torch.tensor(1 + 2j).conj(), torch.tensor(1 + 2j).conj().imag)
    yield torch.quantize_per_tensor(one, 1, 0, torch.quint8)
    yield from (np.float32(1), np.array(1, ">i4"), np.array(1, object))
    yield from (np.ma.masked, np.ma.array(1, mask=False))
    yield from (np.array(1).astype(dtype) for dtype in (ml_dtypes.bfloat16, ml_dtypes.int4))
    for name in set(BY_OPENVINO) - {"string"}:
        yield ov.Tensor(getattr(ov.Type, name), ov.Shape([]))
    yield from (ops.constant(np.float32(1)), ctypes.c_int(1), 1, 1.5, True, 2j)


@pytest.mark.parametrize("copy", [None, True])
@pytest.mark.parametrize("dtype", [None, "native", "float32", "int4", "bfloat16", "u1", "c8"])
def test_values_of_no_dimension_come_as_arrays(dtype, copy):
    """NumPy makes a scalar of an array of no dimension with every operation on it."""
    for x in of_no_dimension():
        try:
            out = ovtensor.to_numpy(x, dtype=dtype, copy=copy, casting="unsafe")
        except ConversionError:
            assert dtype == "native"
            continue
        assert isinstance(out, np.ndarray), x
        assert out.shape == ()
        if np.ma.isMaskedArray(x):
            continue
        tensor = ovtensor.to_torch(x, copy=copy)
        assert tensor.shape == ()
        if not tensor.is_complex():
            assert ovtensor.to_openvino(x, copy=copy).shape == ov.Shape([])
