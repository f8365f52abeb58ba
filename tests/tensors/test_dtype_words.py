"""What a word for a dtype means: OpenVINO's own words first, then those of all the libraries."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ovtensor
from ovtensor.errors import ConversionError
from ovtensor.tensors.dtypes import BY_NAME, BY_OPENVINO, TABLE, element_of, native_dtype

TO = {"numpy": ovtensor.to_numpy, "torch": ovtensor.to_torch, "openvino": ovtensor.to_openvino}


@pytest.mark.parametrize("word", BY_OPENVINO)
def test_words_of_openvino_mean_what_openvino_means(word):
    if word == "string":
        assert ovtensor.to_openvino(np.array(["a"]), dtype=word).element_type == ov.Type.string
        return
    ones = np.ones(4, np.float32)
    element = getattr(ov.Type, word)
    out = ovtensor.to_openvino(ones, dtype=word)
    assert out.element_type == element
    assert element_of(word) is element_of(element)
    if BY_OPENVINO[word].native or BY_OPENVINO[word].numpy:
        assert ovtensor.to_numpy(ones, dtype=word).dtype == native_dtype(BY_OPENVINO[word])


def test_words_that_clash_with_numpys_codes():
    """Where NumPy counts bytes and OpenVINO bits, OpenVINO's meaning holds."""
    x = np.array([1, 3])
    assert ovtensor.to_openvino(x, dtype="u8").element_type == ov.Type.u8
    assert ovtensor.to_numpy(x, dtype="u8").dtype == np.uint8
    assert ovtensor.to_numpy(x, dtype="i8").dtype == np.int8
    assert ovtensor.to_numpy(x, dtype="f16").dtype == np.float16
    assert ovtensor.to_torch(x, dtype="f16").dtype == torch.float16
    assert ovtensor.to_numpy(x, dtype="u4").dtype == ml_dtypes.uint4
    with pytest.raises(ConversionError, match="int64 to int4 would change values: 1000"):
        ovtensor.to_numpy(np.array([1000]), dtype="i4")


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        (">u8", np.uint64), ("<i4", np.int32), ("=u4", np.uint32), ("|u1", np.uint8),
        ("f2", np.float16), ("f4", np.float32), ("f8", np.float64), ("i2", np.int16),
        ("c8", np.complex64), ("c16", np.complex128), ("e", np.float16), ("?", np.bool_),
        ("half", np.float16), ("single", np.float32), ("double", np.float64), ("bool", np.bool_),
        (np.dtype("u8"), np.uint64), (np.dtype("i4"), np.int32), (np.dtype(">f4"), np.float32),
        (float, np.float64), (int, np.int_), (bool, np.bool_), (np.uint64, np.uint64),
        ("uint64", np.uint64), ("int32", np.int32), ("torch.float16", np.float16),
        (torch.half, np.float16), (torch.bfloat16, ml_dtypes.bfloat16), ("int4", ml_dtypes.int4),
    ],
    ids=repr,
)  # fmt: skip
def test_words_that_do_not_clash_mean_what_their_library_means(word, wanted):
    out = ovtensor.to_numpy(np.array([0, 1]), dtype=word)
    assert out.dtype == wanted
    assert out.dtype.isnative


def test_types_of_other_libraries_are_words_too(need):
    numpy_of_jax, strict = need("jax", "jax.numpy"), need("array_api_strict")
    words = [numpy_of_jax.bfloat16, numpy_of_jax.float32, strict.float32, strict.int8]
    wanted = ["bfloat16", "float32", "float32", "int8"]
    assert [element_of(word).name for word in words] == wanted


def test_types_of_tensorflow_are_words_too(need):
    tf = need("tensorflow")
    assert element_of(tf.bfloat16) is BY_NAME["bfloat16"]
    assert element_of(tf.float16) is BY_NAME["float16"]
    for dtype in (tf.qint8, tf.string, tf.resource):
        with pytest.raises(ConversionError, match="no element type"):
            element_of(dtype)


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize(
    "word",
    [
        "float7", "", " ", "i4,i4", "(2,2)f4", "O", "S5", "V4", "M8[s]", "torch.foo", "torch.",
        ov.Type.dynamic, object, bytes, [], {}, 5, torch.Tensor, torch.uint3, torch.qint8,
        [("a", "nonsense")], {"names": ["a"], "formats": ["i4"], "offsets": [-1]}, NotImplemented,
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_element_type_is_refused_by_name(word, to):
    with pytest.raises(ConversionError, match=r"dtype=.*no element type.*give one of"):
        TO[to](np.ones(2), dtype=word)


WORDS = st.one_of(
    st.text(max_size=6),
    st.from_regex(r"[<>=|]?[a-zA-Z?]\d{0,3}", fullmatch=True),
    st.sampled_from([row.name for row in TABLE]),
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of codes that NumPy is to drop
@settings(deadline=None, max_examples=300)
@given(WORDS, st.sampled_from(sorted(TO)))
def test_any_word_is_obeyed_or_refused(word, to):
    try:
        out = TO[to](np.array([1, 0]), dtype=word)
    except ConversionError:
        return
    if to == "numpy" and word in BY_OPENVINO:
        assert out.dtype == native_dtype(BY_OPENVINO[word])
