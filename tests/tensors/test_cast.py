"""Casts keep values or say which one they would change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ovtensor
from ovtensor.errors import ConversionError, InputError
from ovtensor.tensors.dtypes import BY_NAME, native_dtype

BAD = [
    ([70000.0], "float16", "70000"),
    ([1e300], "float32", "1e+300"),
    ([1e300], "bfloat16", "1e+300"),
    ([500.0], "float8_e4m3fn", "500"),
    ([np.inf], "float8_e4m3fn", "inf"),
    ([0.5], "int32", "0.5"),
    ([np.nan], "int64", "nan"),
    ([np.inf], "uint8", "inf"),
    ([np.nan], "float4_e2m1fn", "nan"),
    ([2.0**63], "int64", "9.2"),
    ([2.0], "bool", "2.0"),
    ([-1.0], "uint8", "-1"),
    ([-1], "uint64", "-1"),
    ([300], "uint8", "300"),
    ([16], "uint4", "16"),
    ([8], "int4", "8"),
    ([2**53 + 1], "float64", "9007199254740993"),
    ([2**63 - 1], "float64", "9223372036854775807"),
    ([2049], "float16", "2049"),
    ([257], "bfloat16", "257"),
    ([1j], "float32", "imaginary"),
    ([2**53 + 1], "complex128", "9007199254740993"),
]


@pytest.mark.parametrize(("values", "dtype", "named"), BAD, ids=lambda v: str(v)[:20])
def test_a_changed_value_is_named(values, dtype, named):
    with pytest.raises(ConversionError, match=r"would change values.*casting='unsafe'") as caught:
        ovtensor.to_numpy(np.array(values), dtype=dtype)
    assert named in str(caught.value)
    out = ovtensor.to_numpy(np.array(values), dtype=dtype, casting="unsafe")
    assert out.dtype.name == np.dtype(native_dtype(BY_NAME[dtype])).name


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1.1]), "float16"),
        (np.array([1.1]), "bfloat16"),
        (np.array([1e-30]), "float16"),
        (np.array([np.inf, np.nan]), "float16"),
        (np.array([2**53]), "float64"),
        (np.array([3.0, -2.0]), "int8"),
        (np.array([0.0, 1.0]), "bool"),
        (np.array([256]), "bfloat16"),
        (np.array([1 + 0j]), "float32"),
        (np.array([True]), "float8_e5m2"),
        (np.array([2**64 - 1], np.uint64), "uint64"),
    ],
    ids=str,
)
def test_rounding_between_floats_and_exact_casts_pass(values, dtype):
    import ml_dtypes

    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    out = ovtensor.to_numpy(values, dtype=dtype)
    assert out.dtype == wanted
    np.testing.assert_array_equal(out, values.real.astype(wanted))


@settings(deadline=None, max_examples=150)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["float16", "float32", "float64", "bfloat16", "int8", "uint32", "uint64"]),
)
def test_integers_arrive_whole_or_not_at_all(value, dtype):
    try:
        out = ovtensor.to_numpy(np.array([value]), dtype=dtype)
    except ConversionError:
        import ml_dtypes

        wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
        if wanted.kind in "iu":
            assert not np.iinfo(wanted).min <= value <= np.iinfo(wanted).max
        else:
            with np.errstate(over="ignore"):
                rounded = float(np.array([value]).astype(wanted)[0])
            assert rounded in (np.inf, -np.inf) or int(rounded) != value
    else:
        assert int(float(out[0]) if out.dtype.kind not in "iu" else out[0]) == value


def test_integers_are_rounded_once():
    # a float32 on the way would make a tie of it, which goes down
    out = ovtensor.to_numpy(np.array([2**24 + 2**16 + 1]), dtype="bfloat16", casting="unsafe")
    assert out.astype(np.float64)[0] == 2**24 + 2**17


def test_an_unknown_rule_is_refused():
    x = torch.ones(1)
    ovtensor.to_numpy(x)  # from the second call on there is a fast path, which casts nothing
    with pytest.raises(InputError, match=r"casting='safe'.*same_value"):
        ovtensor.to_numpy(np.ones(1), dtype="float16", casting="safe")
    with pytest.raises(InputError, match=r"casting='safe'.*same_value"):
        ovtensor.to_numpy(x, casting="safe")


def test_dtypes_in_any_librarys_words():
    import openvino as ov

    for dtype in ("float16", np.float16, np.dtype(">f2"), torch.float16, ov.Type.f16):
        out = ovtensor.to_numpy(np.ones(2), dtype=dtype)
        assert out.dtype == np.float16
        assert out.dtype.isnative
    with pytest.raises(ConversionError, match=r"dtype='float7'.*no element type"):
        ovtensor.to_numpy(np.ones(2), dtype="float7")


def test_text_is_no_number():
    with pytest.raises(ConversionError, match="not both numbers"):
        ovtensor.to_numpy(np.array(["1"]), dtype="float32")
