"""Faults that were found from outside, one small input each, with what is right instead.

Most were met by others before; the thread is where they told it. Each stands for a kind, whose
other members are tested in the module that is named.

=============================================  ==================================  ================
kind                                           met before in                       its kind in
=============================================  ==================================  ================
a view keeps the memory, not the object        openvino PR 26209, pytorch#51849    views_keep_memory
gaps and big integers of columns               pandas#30268, arrow#26199           columns_and_masks
masks behind ``__array__``                     numpy#18675                         columns_and_masks
OpenVINO's words for dtypes                                                        dtype_words
what a copy of a masked array shares                                               columns_and_masks
batches of a data loader                                                           tree
arrays of objects are exact, as lists are                                          columns_and_masks
unaligned memory is copied for PyTorch                                             views_keep_memory
active modes change nothing                                                        modes
protocols of an instance                                                           refusals
values of no dimension come as arrays                                              every_kind
wrappers over nothing                                                              modes
no raw error                                                                       refusals
ranges, NF4, ``zero_copy``, advice                                                 refusals
=============================================  ==================================  ================
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import openvino as ov
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError, OvtensorError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_its_module_moves(dtype):
    linear = torch.nn.Linear(512, 512, dtype=dtype)
    wanted = linear.weight.detach().clone()
    seen = ovtensor.to_openvino(linear.weight)
    linear.to(torch.float64)
    assert torch.equal(ovtensor.to_torch(seen), wanted)


def test_a_column_with_a_gap_and_a_big_integer(need):
    pd = need("pandas")
    out = ovtensor.to_numpy(pd.Series([2**60 + 1, None], dtype="Int64"))
    assert type(out) is np.ma.MaskedArray
    assert out.dtype == np.int64
    assert out.tolist() == [2**60 + 1, None]
    with pytest.raises(ConversionError, match="1152921504606846977"):
        ovtensor.to_numpy(pd.DataFrame({"a": [2**60 + 1], "b": [0.5]}))


def test_a_mask_that_dask_computes(need):
    da = need("dask", "dask.array")
    out = ovtensor.to_numpy(da.ma.masked_array([1, 2], mask=[0, 1]))
    assert out.tolist() == [1, None]


def test_u8_has_eight_bits_and_f16_sixteen():
    assert ovtensor.to_openvino([1, 2], dtype="u8").element_type == ov.Type.u8
    assert ovtensor.to_numpy([1, 2], dtype="f16").dtype == np.float16


def test_a_copy_of_a_masked_array_has_a_mask_of_its_own():
    m = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    r = ovtensor.to_numpy(m, copy=True)
    r[0] = np.ma.masked
    assert m.mask.tolist() == [False, True, False]


def test_a_batch_with_a_caption_and_a_date():
    when = dt.date(2026, 1, 1)
    batch = {"pixel_values": np.ones(2), "caption": np.array(["a cat"]), "when": when}
    out = ovtensor.tree_to_torch(batch)
    assert isinstance(out["pixel_values"], torch.Tensor)
    assert out["caption"] is batch["caption"]
    assert out["when"] is when


def test_an_integer_beside_a_float_among_objects():
    with pytest.raises(ConversionError, match="9007199254740993"):
        ovtensor.to_numpy(np.array([2**53 + 1, 0.5], object))


def test_unaligned_complex_numbers_can_be_computed_with():
    memory = np.zeros(33 * 16, np.uint8)
    start = 8 - memory.ctypes.data % 16
    x = memory[start : start + 512].view(np.complex128)
    assert (ovtensor.to_torch(x) + 1).sum() == 32


def test_a_fake_mode_and_a_counting_one():
    with FakeTensorMode():
        out = ovtensor.to_torch(np.ones(2))
    assert out.numpy().tolist() == [1, 1]
    sparse = torch.eye(2).to_sparse()
    with FlopCounterMode(display=False):
        assert ovtensor.to_numpy(sparse).tolist() == [[1, 0], [0, 1]]


def test_an_interface_that_only_the_instance_has():
    class Late:
        def __init__(self, array):
            self.array = array
            self.__array_interface__ = array.__array_interface__

    assert ovtensor.to_numpy(Late(np.arange(3))).tolist() == [0, 1, 2]


def test_four_bits_of_no_dimension():
    x = ov.Tensor(ov.Type.i4, ov.Shape([]))
    x.data.view(np.uint8)[...] = 0x0B
    out = ovtensor.to_numpy(x)
    assert type(out) is np.ndarray
    assert out == -5


def test_a_wrapper_over_a_functional_tensor():
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            inner = (torch._to_functional_tensor(a.inner) if type(a) is cls else a for a in args)
            return func(*inner, **(kwargs or {}))

    with pytest.raises(DatalessTensorError, match="functional"):
        ovtensor.to_numpy(Wrapper(torch.ones(3)))


def test_a_list_that_contains_itself():
    x = []
    x.append(x)
    with pytest.raises(OvtensorError, match="contains itself"):
        ovtensor.to_numpy(x)


def test_a_range_and_advice_for_none():
    assert ovtensor.to_numpy(range(5)).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConversionError) as caught:
        ovtensor.to_numpy(None)
    assert "tree" not in str(caught.value)
