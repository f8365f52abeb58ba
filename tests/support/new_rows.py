"""Try every conversion with rows in the table of element types that no library has a type for.

Run as a program: the table is read when the conversions are first imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
import torch

import ovtensor
from ovtensor.errors import ConversionError, OvtensorError

ROWS = """
    ElementType("float6_x", 6, None, "float6_x", "f6e2m3x", "float6_x", layout=(2, 3, 1, "finite")),
    ElementType("float5_y", 5, None, "float5_y", "f5y", "float5_y"),
    ElementType("float16_y", 16, None, "float16_y", "f16y", "float16_y", layout=(6, 9, 31, "ieee")),
    ElementType("int3_z", 3, None, "int3_z", "i3", "int3_z", "int8", True),
    ElementType("int5_z", 5, None, "int5_z", "i5", "int5_z", "int8", True),
    ElementType("uint24_w", 24, None, "uint24_w", "u24", "uint24_w", "uint32", True),
    # names that the libraries do have, of something else
    ElementType("float8_v", 8, None, "sin", "merge", "finfo", layout=(4, 3, 9, "fn")),
"""
NEW = ("float6_x", "float5_y", "float16_y", "int3_z", "int5_z", "uint24_w", "float8_v")
TO = {"to_numpy": "ml_dtypes", "to_torch": "PyTorch", "to_openvino": "OpenVINO"}
VALUES = [0.0, 1.0, 2.0, 3.0]


def load_table_with_new_rows() -> None:
    """Load the table's own module with more rows in it, before anything else can."""
    name = "ovtensor.tensors.dtypes"
    path = Path(ovtensor.__file__).parent / "tensors" / "dtypes.py"
    before, table, after = path.read_text(encoding="utf-8").partition("TABLE: tuple[")
    rows, end, rest = after.partition("\n)\n")
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    exec(compile(before + table + rows + ROWS + end + rest, path, "exec"), module.__dict__)


def sources() -> list:
    """Objects of every library with the same values."""
    array = np.array(VALUES, np.float32)
    tensor = torch.tensor(VALUES)
    return [
        array, array.astype(object), array.astype(ml_dtypes.int4), VALUES, [array, tensor],
        tensor, tensor.bfloat16(), tensor.to(torch.float8_e5m2), tensor.to_sparse(),
        ov.Tensor(array.copy()), ovtensor.to_openvino(array, dtype="uint4"), ov.op.Constant(array),
    ]  # fmt: skip


def check_that_every_conversion_still_works(names: list[str]) -> None:
    """What has a right answer has it still; all else is an error of this library's."""
    for x in sources():
        assert ovtensor.to_numpy(x).ravel()[:4].tolist() == VALUES
        for to in TO:
            getattr(ovtensor, to)(x)
            for dtype in names:
                for casting in ("same_value", "unsafe"):
                    with contextlib.suppress(OvtensorError):
                        getattr(ovtensor, to)(x, dtype=dtype, casting=casting)


def check_that_what_no_library_has_is_refused_by_name() -> None:
    """The error names the type, and the library that lacks it."""
    for name in NEW:
        for to, library in TO.items():
            lacking = f"{name}.*({library}|layout)|{library}.*{name}"
            with pytest.raises(ConversionError, match=lacking):
                getattr(ovtensor, to)(np.ones(2), dtype=name)


def check_that_values_of_the_new_types_are_right(by_name: dict) -> None:
    """Encoding, decoding and packing take what they need from the row."""
    from ovtensor.tensors.cast import recode, widen
    from ovtensor.tensors.packed import pack, unpack

    single = by_name["float32"]
    for name, values in {
        "float6_x": [0.125, -7.5, 1.0], "float16_y": [1.5, -(2.0**30), float("inf")],
        "int3_z": [-4, 3, 0], "int5_z": [-16, 15, 1], "uint24_w": [0, 2**24 - 1],
        "float8_v": [1.75, -0.5],
    }.items():  # fmt: skip
        bits = recode(np.array(values, "f4"), single, by_name[name], "same_value")
        assert bits.dtype == by_name[name].carrier
        assert widen(bits, by_name[name]).tolist() == values
        if name in ("float6_x", "int3_z"):
            assert (unpack(pack(bits, by_name[name]), bits.shape, by_name[name]) == bits).all()
    # of this one nothing but the number of bits is known
    five = by_name["float5_y"]
    for refused in (
        lambda: recode(np.ones(2, "f4"), single, five, "unsafe"),
        lambda: widen(np.ones(2, "u1"), five),
        lambda: pack(np.ones(2, "u1"), five),
        lambda: unpack(np.ones(2, "u1"), (2,), five),
    ):
        with pytest.raises(ConversionError, match="float5_y"):
            refused()


if __name__ == "__main__":
    load_table_with_new_rows()
    from ovtensor.tensors.dtypes import BY_NAME

    assert set(NEW) <= set(BY_NAME)
    check_that_every_conversion_still_works([*BY_NAME, "native", "f6e2m3x", "torch.float6_x"])
    check_that_what_no_library_has_is_refused_by_name()
    check_that_values_of_the_new_types_are_right(BY_NAME)
    print("all fine")
