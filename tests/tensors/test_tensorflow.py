"""TensorFlow's and Keras's tensors."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow deprecates much of itself

VALUES = [[0.0, 1.5, -2.0], [0.5, 4.0, 6.0]]


@pytest.fixture
def tf(need):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return need("tensorflow")


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        ("float64", torch.float64),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float8_e5m2", torch.float8_e5m2),
        ("float8_e4m3fn", torch.float8_e4m3fn),
        ("complex64", torch.complex64),
    ],
)
@pytest.mark.parametrize("variable", [False, True], ids=["tensor", "variable"])
def test_floats(tf, name, carried, variable):
    x = tf.cast(tf.constant(VALUES), name)
    x = tf.Variable(x) if variable else x
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)
    assert ovtensor.to_torch(x).dtype is carried
    np.testing.assert_array_equal(ovtensor.to_numpy(ovtensor.to_torch(x)), VALUES)
    if name != "complex64":
        np.testing.assert_array_equal(ovtensor.to_numpy(ovtensor.to_openvino(x)), VALUES)
    assert ovtensor.describe(x).has_data


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        ("bool", "bool"),
        ("int8", "int8"),
        ("uint16", "uint16"),
        ("int32", "int32"),
        ("uint64", "uint64"),
        ("int4", "int8"),
        ("uint4", "uint8"),
    ],
)
def test_integers(tf, name, carried):
    x = tf.cast(tf.constant([0, 1, 7]), name)
    out = ovtensor.to_numpy(x)
    assert out.dtype == carried
    assert out.tolist() == ([False, True, True] if name == "bool" else [0, 1, 7])


def test_memory_is_shared_and_cannot_be_written(tf):
    x = tf.constant(VALUES)
    out = ovtensor.to_numpy(x, copy=False)
    assert not out.flags.writeable
    assert np.shares_memory(out, ovtensor.to_numpy(x))
    for convert in (ovtensor.to_torch, ovtensor.to_openvino):
        mine = ovtensor.to_numpy(convert(x), copy=False)
        mine[...] = 9
        np.testing.assert_array_equal(x.numpy(), VALUES)


@pytest.mark.parametrize("kind", ["string", "variant"])
def test_what_holds_no_numbers_is_refused_before_it_ends_the_process(tf, kind):
    x = tf.constant([["a", "b"]])
    if kind == "variant":
        x = tf.raw_ops.EmptyTensorList(
            element_shape=[2], max_num_elements=2, element_dtype=tf.float32
        )
    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match=f"{kind}.*holds no numbers"):
            convert(x)
    assert ovtensor.describe(x).library == "tensorflow"


def test_codes_without_their_range(tf):
    codes, low, high = tf.quantization.quantize(tf.constant(VALUES), -6.0, 6.0, tf.qint8)
    with pytest.raises(ConversionError, match=r"holds codes.*tf\.quantization\.dequantize"):
        ovtensor.to_numpy(codes)
    values = tf.quantization.dequantize(codes, low, high)
    np.testing.assert_allclose(ovtensor.to_numpy(values), VALUES, atol=0.024)  # half a step


def test_sparse_tensors_are_written_out(tf):
    x = tf.sparse.from_dense(VALUES)
    np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)


def test_symbolic_tensors(tf):
    seen = []

    @tf.autograph.experimental.do_not_convert
    def traced(x):
        seen.append(ovtensor.describe(x))
        with pytest.raises(DatalessTensorError, match=r"SymbolicTensor .*in a tf\.function"):
            ovtensor.to_numpy(x)
        return x + 1

    tf.function(traced)(tf.constant(VALUES))
    assert seen[0].shape == (2, 3)
    assert not seen[0].has_data
    with pytest.raises(DatalessTensorError, match=r"KerasTensor .*a model is built"):
        ovtensor.to_numpy(tf.keras.Input((3,)))


def test_values_under_a_tape(tf):
    x = tf.constant(VALUES)
    with tf.GradientTape() as tape:
        tape.watch(x)
        np.testing.assert_array_equal(ovtensor.to_numpy(x), VALUES)
