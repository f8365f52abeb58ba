"""NumPy, SciPy, JAX and other libraries, Python numbers, and what is no tensor at all."""

from __future__ import annotations

import array
import collections
import ctypes
import fractions
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import ovtensor
from ovtensor.errors import (
    ConversionError,
    DatalessTensorError,
    InputError,
    MissingExtraError,
    OvtensorError,
)


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (np.arange(3.0).view(Sub), np.arange(3.0)),
        (np.array([[1, 2]]).view(np.matrix), np.array([[1, 2]])),
        (np.arange(3, dtype=">f4"), np.arange(3, dtype="f4")),
        (np.arange(3, dtype=">c8"), np.arange(3, dtype="c8")),
        (np.arange(6)[::-2], np.array([5, 3, 1])),
        (np.array([1, 2.5], dtype=object), np.array([1, 2.5])),
        (np.array([[True], [False]], dtype=object), np.array([[True], [False]])),
        (np.array([], dtype=object), np.array([])),
        (np.float16(1.5), np.array(1.5, np.float16)),
        (np.bool_(True), np.array(True)),
        (np.longdouble(2), np.array(2, np.longdouble)),
        (np.array(["a", "bc"]), np.array(["a", "bc"])),
        (3, np.array(3)),
        (True, np.array(True)),
        (1.5, np.array(1.5)),
        (2j, np.array(2j)),
        ([], np.array([])),
        ((1, 2), np.array([1, 2])),
        ([[1, 2], [3.5, 4]], np.array([[1, 2], [3.5, 4]])),
        ([1, True], np.array([1, 1])),
        ([2**64 - 1], np.array([2**64 - 1], np.uint64)),
        ([torch.ones(2), np.zeros(2, np.float32)], np.array([[1, 1], [0, 0]], np.float32)),
        ([torch.ones(2).bfloat16(), [2, 3]], np.array([[1, 1], [2, 3]], np.float64)),
        (b"\x01\x02", np.array([1, 2], np.uint8)),
        (bytearray(b"\x01"), np.array([1], np.uint8)),
        (memoryview(array.array("d", [1, 2])), np.array([1.0, 2.0])),
        (array.array("i", [1, 2]), np.array([1, 2], np.int32)),
        ((ctypes.c_float * 2)(1, 2), np.array([1, 2], np.float32)),
        (Image.new("RGB", (3, 2), (1, 2, 3)), np.tile(np.uint8([1, 2, 3]), (2, 3, 1))),
        (Image.new("1", (2, 2), 1), np.ones((2, 2), bool)),
    ],
    ids=lambda v: "memory" if isinstance(v, memoryview) else repr(v)[:30].replace("\n", " "),
)
def test_values(x, wanted):
    out = ovtensor.to_numpy(x)
    assert type(out) is np.ndarray
    assert out.dtype == wanted.dtype
    assert out.dtype.isnative
    np.testing.assert_array_equal(out, wanted)
    fresh = ovtensor.to_numpy(x, copy=True)
    assert fresh.flags.writeable
    assert not np.shares_memory(fresh, out)


class Odd:
    pass


class Sulky:
    """Speaks a protocol and then does not."""

    shape = (2,)
    dtype = "odd"

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ("text", "builtins.str is no tensor"),
        (None, "builtins.NoneType is no tensor"),
        (sys, "builtins.module is no tensor"),
        (Odd(), r"Odd is no tensor.*register_route"),
        (Odd, "builtins.type is no tensor"),
        ({"a": 1}, "builtins.dict is no tensor.*tree_to_numpy"),
        (fractions.Fraction(1, 2), "fractions.Fraction is no tensor"),
        ([1.0, "a"], "builtins.str is no tensor"),
        ([[1], [1, 2]], r"ragged.*\(1,\), \(2,\).*tree_to_numpy"),
        ([torch.ones(2), torch.ones(3)], "ragged"),
        ([2**63 + 1, -1], "would change values"),
        (2**70, "beyond 64 bits"),
        ([2**70], "beyond 64 bits"),
        ([2**60 + 1, 0.5], "int64 to float64 would change values"),
        (np.str_("a"), "numpy.str_ is a string"),
        (np.array(["a", 1], dtype=object), "object.*holds a builtins.str"),
        (np.array([2**70], dtype=object), "beyond 64 bits"),
        (np.array([1, None], dtype=object), "holds a builtins.NoneType"),
        (np.zeros(2, [("a", "f4")]), "no plain numbers.*field"),
        (np.zeros(2, "M8[D]"), "datetime64.*no plain numbers"),
        (np.array([b"a"]), "no plain numbers"),
        (Sulky(), r"Sulky \(shape \(2,\), dtype odd\).*not today.*register_route"),
    ],
    ids=lambda v: repr(v)[:30].replace("\n", " "),
)
def test_no_array(x, text):
    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match=text) as caught:
            convert(x)
        assert isinstance(caught.value, TypeError)
    assert ovtensor.describe(x).type


def test_masks_are_kept_and_only_they_give_masked_arrays():
    x = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])
    out = ovtensor.to_numpy(x, dtype="float16")
    assert type(out) is np.ma.MaskedArray
    assert out.dtype == np.float16
    assert out.mask.tolist() == [False, True, False]
    assert ovtensor.to_numpy([x, np.ones(3)]).mask.tolist() == [[False, True, False], [False] * 3]
    view = ovtensor.to_numpy(x, copy=False)
    view.data[0] = 9
    assert x[0] == 9
    for convert in (ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match=r"mask.*filled"):
            convert(x)


def test_scipy_sparse(need):
    sparse = need("scipy", "scipy.sparse")
    for make in (sparse.csr_matrix, sparse.coo_array, sparse.csc_array, sparse.bsr_matrix):
        out = ovtensor.to_numpy(make(np.eye(3, dtype=np.float32)))
        assert type(out) is np.ndarray
        np.testing.assert_array_equal(out, np.eye(3))


def test_jax(need):
    jnp = need("jax", "jax.numpy")
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(ovtensor.to_numpy(x), [[0, 1, 2], [3, 4, 5]])
    for dtype in (jnp.bfloat16, jnp.float8_e4m3fn, jnp.int4):
        y = x.astype(dtype)
        np.testing.assert_array_equal(ovtensor.to_numpy(y), x)
    assert ovtensor.to_torch(x.astype(jnp.bfloat16)).dtype is torch.bfloat16
    assert ovtensor.to_openvino(x.astype(jnp.bfloat16)).element_type.get_type_name() == "bf16"


@pytest.mark.parametrize("transform", ["jit", "vmap", "grad"])
def test_jax_tracers_have_no_values(need, transform):
    jax = need("jax")
    seen = []

    def traced(x):
        seen.append(ovtensor.describe(x))
        with pytest.raises(DatalessTensorError, match=r"Tracer .*while a function is traced"):
            ovtensor.to_numpy(x)
        return x.sum()

    getattr(jax, transform)(traced)(jax.numpy.ones(3))
    assert not seen[0].has_data
    assert seen[0].shape == (() if transform == "vmap" else (3,))


def test_jax_memory_that_was_given_away(need):
    x = need("jax", "jax.numpy").ones(3)
    assert ovtensor.describe(x).has_data
    x.delete()
    assert not ovtensor.describe(x).has_data
    with pytest.raises(DatalessTensorError, match="it was deleted, or donated"):
        ovtensor.to_numpy(x)


def test_sparse_jax(need):
    sparse = need("jax", "jax.experimental.sparse")
    x = np.array([[0, 1.5], [-2, 0]], np.float32)
    for form in (sparse.BCOO, sparse.BCSR):
        np.testing.assert_array_equal(ovtensor.to_numpy(form.fromdense(x)), x)


def test_array_api_strict(need):
    strict = need("array_api_strict")
    np.testing.assert_array_equal(ovtensor.to_numpy(strict.ones((2, 3))), np.ones((2, 3)))


def test_ml_dtypes_arrays(need):
    ml_dtypes = need("ml_dtypes")
    for name in ("bfloat16", "float8_e5m2", "float4_e2m1fn"):
        x = np.array([1, -2, 0.5]).astype(getattr(ml_dtypes, name))
        out = ovtensor.to_numpy(x)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, [1, -2, 0.5])
        assert np.shares_memory(ovtensor.to_numpy(x, dtype="native", copy=False), x)
    x = np.array([-3, 7]).astype(ml_dtypes.int4)
    assert ovtensor.to_numpy(x).dtype == np.int8
    assert ovtensor.to_numpy(x).tolist() == [-3, 7]
    native = ovtensor.to_numpy(ovtensor.to_numpy(x), dtype="int4")
    assert native.tobytes() == x.tobytes()
    assert ovtensor.to_numpy(ovtensor.to_openvino(x)).tolist() == [-3, 7]


class OnlyDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyInterface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


def test_fields_that_are_not_aligned():
    x = np.zeros(3, [("a", "u1"), ("b", "f4")])["b"]
    x[...] = [1, 2, 3]
    assert ovtensor.to_torch(x).tolist() == [1, 2, 3]
    with pytest.raises(ConversionError, match="not aligned to its elements"):
        ovtensor.to_torch(x, copy=False)


class OfObjects:
    """Gives an array of objects that are numbers, and of such that are none."""

    def __init__(self, *items):
        self.items = items

    def __array__(self, dtype=None, copy=None):
        return np.array(self.items, object)


def test_protocols_may_give_objects():
    assert ovtensor.to_numpy(OfObjects(1, 2.5)).tolist() == [1, 2.5]
    with pytest.raises(ConversionError, match=r"OfObjects gave no array.*holds a .*NoneType"):
        ovtensor.to_numpy(OfObjects(1, None))


@pytest.mark.parametrize("make", [OnlyDlpack, torch.from_numpy], ids=["dlpack", "torch"])
def test_views_through_protocols(make):
    source = np.arange(4.0)
    view = ovtensor.to_numpy(make(source), copy=False)
    source[0] = 9
    assert view[0] == 9


def test_cupy_is_asked_for_a_host_copy(monkeypatch):
    module = types.ModuleType("cupy")

    class Array:
        __module__ = "cupy"

        def get(self):
            return np.arange(3.0)

        def __array__(self, *args, **kwargs):
            raise TypeError("implicit conversion")

    module.ndarray = Array
    monkeypatch.setitem(sys.modules, "cupy", module)
    np.testing.assert_array_equal(ovtensor.to_numpy(Array()), [0, 1, 2])


def test_native_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    x = torch.ones(2).bfloat16()
    np.testing.assert_array_equal(ovtensor.to_numpy(x), [1, 1])
    with pytest.raises(ConversionError, match=r"ml_dtypes, which is not installed.*float32"):
        ovtensor.to_numpy(x, dtype="native")


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_a_missing_framework_says_how_to_install_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"to_{name} needs {name}.*pip install"):
        getattr(ovtensor, f"to_{name}")(np.ones(2))


class Explosive:
    @property
    def shape(self):
        raise ZeroDivisionError("boom")

    def __array__(self):
        raise ZeroDivisionError("boom")

    def __repr__(self):
        raise ZeroDivisionError("boom")


def test_describe_never_raises():
    from openvino import opset13 as ops

    odd = [
        None, "a", sys, Odd, Odd(), Explosive(), object(), 1, [1], [[1], [1, 2]], {}, b"", type,
        torch.nn.LazyLinear(2).weight, ops.parameter([-1, 2], np.float32), np.array([None]),
        collections.namedtuple("T", "a")(1), torch.Size([1]), torch.float32, lambda: 0,
    ]  # fmt: skip
    for x in odd:
        info = ovtensor.describe(x)
        assert isinstance(info, ovtensor.TensorInfo)
        assert info.type in str(info)
    with pytest.raises(ConversionError, match="Explosive"):
        ovtensor.to_numpy(Explosive())


def test_describe_tells_the_facts():
    info = ovtensor.describe(torch.ones(2, 3).bfloat16())
    assert (info.library, info.type, info.shape) == ("torch", "torch.Tensor", (2, 3))
    assert (info.dtype, info.device, info.route) == ("torch.bfloat16", "cpu", "torch")
    assert (info.has_data, info.zero_copy, info.owner) == (True, True, "caller")
    assert str(info) == "torch.Tensor (shape (2, 3), dtype torch.bfloat16, device cpu)"
    assert not ovtensor.describe(torch.tensor([1j]).conj()).zero_copy


def test_errors_have_one_root():
    assert issubclass(ConversionError, OvtensorError)
    assert issubclass(InputError, OvtensorError)
