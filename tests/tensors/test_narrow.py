"""Formats that NumPy lacks, against ml_dtypes and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovtensor.tensors.dtypes import BY_NAME, TABLE
from ovtensor.tensors.narrow import decode, encode

ml_dtypes = pytest.importorskip("ml_dtypes")
FLOATS = [row for row in TABLE if row.native and not row.integral]


def _codes(element):
    return np.arange(1 << element.bits).astype(element.carrier)


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
def test_every_code_decodes_as_in_ml_dtypes(element):
    codes = _codes(element)
    ours, theirs = decode(codes, element), codes.view(getattr(ml_dtypes, element.native))
    np.testing.assert_array_equal(ours, theirs.astype(np.float32))
    numbers = ~np.isnan(ours)
    np.testing.assert_array_equal(
        np.signbit(ours)[numbers], np.signbit(theirs.astype(np.float32))[numbers]
    )


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
def test_every_value_encodes_to_its_own_code(element):
    codes = _codes(element)
    values = decode(codes, element)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(encode(values, element)[numbers], codes[numbers])


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
@pytest.mark.parametrize("width", [np.float32, np.float64])
def test_rounding_is_to_nearest_even(element, width):
    rng = np.random.default_rng(7)
    values = rng.standard_normal(50_000) * 10 ** rng.uniform(-12, 6, 50_000)
    grid = decode(_codes(element), element)
    grid = np.sort(grid[np.isfinite(grid)]).astype(np.float64)
    ties = (grid[1:] + grid[:-1]) / 2
    top = grid[-1] + (grid[-1] - grid[-2]) / 2  # half-way to what would come after the largest
    extremes = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, grid[-1] * 1.01, top, -top]
    with np.errstate(all="ignore"):
        values = np.concatenate([values, ties, extremes]).astype(width)
        if element.name == "float8_e8m0fnu":
            values = values[~(np.abs(values) < grid[0])]  # ml_dtypes makes NaN of those
        if element.layout and element.layout[3] == "finite":
            values = values[~np.isnan(values)]
        theirs = values.astype(getattr(ml_dtypes, element.native)).view(element.carrier)
    ours = encode(values, element)
    numbers = ~np.isnan(values)
    differ = numbers & (ours != theirs)
    # ml_dtypes rounds float64 twice on the way to bfloat16: where it differs we are nearer.
    assert element.name == "bfloat16" or not differ.any()
    assert differ.mean() < 1e-4
    nearer = np.abs(decode(ours[differ], element) - values[differ])
    farther = np.abs(decode(theirs[differ], element) - values[differ])
    assert (nearer < farther).all()
    assert np.isnan(decode(ours[~numbers], element)).all()


def test_bfloat16_is_rounded_once_from_float64():
    # The nearest float32 is a tie, which would go to even; the true value is on its other side.
    above_even = np.float64(1 + 2**-8) + 2**-40
    below_odd = np.float64(1 + 2**-7 + 2**-8) - 2**-40
    for sign in (1, -1):
        code = encode(sign * np.array([above_even, below_odd]), BY_NAME["bfloat16"])
        assert (decode(code, BY_NAME["bfloat16"]) == sign * (1 + 2**-7)).all()


def test_no_nan_becomes_a_number():
    """Not those whose payload would be rounded up or cut off."""
    patterns = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF, 0xFF800001], np.uint32)
    code = encode(patterns.view(np.float32), BY_NAME["bfloat16"])
    assert np.isnan(decode(code, BY_NAME["bfloat16"])).all()


def test_nf4_is_the_table_that_openvino_has():
    import openvino as ov
    from openvino import opset13 as ops

    codes = np.arange(16, dtype=np.uint8)
    packed = codes[::2] | (codes[1::2] << 4)
    constant = ops.constant(ov.Tensor(packed, ov.Shape([16]), ov.Type.nf4))
    model = ov.Model([ops.result(ops.convert(constant, "f32"))], [])
    theirs = ov.Core().compile_model(model, "CPU")([])[0]
    np.testing.assert_array_equal(decode(codes, BY_NAME["nf4"]), theirs)


def test_torch_and_we_agree_on_e8m0():
    values = np.array([1.5, 3, 6, 1e-40, 1, 2, 0.75, np.nan], np.float32)
    theirs = torch.from_numpy(values).to(torch.float8_e8m0fnu).view(torch.uint8)
    np.testing.assert_array_equal(encode(values, BY_NAME["float8_e8m0fnu"]), theirs)
