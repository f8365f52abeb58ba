"""A new element type is a row: nothing else has to know it, and no library has to have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
import torch

import ovtensor
from ovtensor.errors import ConversionError

PROGRAM = Path(__file__).parent.parent / "support" / "new_rows.py"


def test_rows_that_no_library_has_break_nothing_and_are_refused_by_name():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all fine"


@pytest.mark.parametrize("to", [ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino])
@pytest.mark.parametrize("dtype", [None, "float32", "native"])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, dtype=torch.uint8).view(torch.bits8),
        torch.zeros(2, dtype=torch.uint3),
        torch.zeros(2, dtype=torch.int7),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", int)]),
        np.zeros(2, "S3"),
        *(np.zeros(2, getattr(ml_dtypes, n)) for n in ["bcomplex32"] if hasattr(ml_dtypes, n)),
    ],
    ids=lambda x: str(x.dtype),
)
def test_a_type_without_a_row_is_refused_by_name(x, dtype, to):
    with pytest.raises(ConversionError, match="dtype"):
        to(x, dtype=dtype)


@pytest.mark.parametrize(
    "x",
    [
        [np.array("a"), 1.0],
        [np.array(["a"]), np.array([1])],
        [np.array("a"), torch.tensor(1)],
        [ov.Tensor(np.array(["a"])), [1j]],
    ],
    ids=repr,
)
def test_text_beside_numbers_is_refused(x):
    with pytest.raises(ConversionError, match="text beside numbers"):
        ovtensor.to_numpy(x)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_zero_tensors_of_every_type_are_zeros_of_their_own():
    for dtype in (torch.complex32, torch.float32, torch.bfloat16, torch.float4_e2m1fn_x2):
        x = torch._efficientzerotensor((2, 2), dtype=dtype)
        assert not ovtensor.to_numpy(x).any()
        with pytest.raises(ConversionError, match="copy=False"):
            ovtensor.to_numpy(x, copy=False, dtype="native")
