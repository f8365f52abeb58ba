"""No value that the source does not have: gaps of columns, masks, objects, tables of several types.

An integer is never rounded: it arrives whole, as a `numpy.ma.MaskedArray` where there are gaps, or
the conversion is refused.
"""

from __future__ import annotations

import decimal
import enum
import fractions

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ovtensor
from ovtensor.errors import ConversionError

BIG = 2**60 + 1  # no float64 has it
TO = {"numpy": ovtensor.to_numpy, "torch": ovtensor.to_torch, "openvino": ovtensor.to_openvino}


def values(out):
    """Write masked values as None."""
    return out.tolist()


def pandas_columns(pd):
    series = pd.Series
    return {
        "Int64": (series([BIG, None], dtype="Int64"), [BIG, None], np.int64),
        "UInt8": (series([200, None], dtype="UInt8"), [200, None], np.uint8),
        "boolean": (series([True, None], dtype="boolean"), [True, None], np.bool_),
        "Float32": (series([1.5, None], dtype="Float32"), [1.5, None], np.float32),
        "index": (pd.Index([BIG, None], dtype="Int64"), [BIG, None], np.int64),
        "array": (pd.array([BIG, None], dtype="Int64"), [BIG, None], np.int64),
        "no gaps": (series([BIG, 1], dtype="Int64"), [BIG, 1], np.int64),
        "own": (series([BIG, 1]), [BIG, 1], np.int64),
        "own floats": (series([1.5, 2]), [1.5, 2], np.float64),
        "sparse": (series(pd.arrays.SparseArray([0, BIG])), [0, BIG], np.int64),
        "categories": (series(pd.Categorical([BIG, 1])), [BIG, 1], np.int64),
        "range": (pd.RangeIndex(2), [0, 1], np.int64),
        "frame": (pd.DataFrame({"a": [BIG, 2], "b": [3, 4]}), [[BIG, 3], [2, 4]], np.int64),
        "mixed frame": (pd.DataFrame({"a": [1, 2], "b": [0.5, 1]}), [[1, 0.5], [2, 1]], np.float64),
        "frame with gaps": (
            pd.DataFrame({"a": series([BIG, None], dtype="Int64"), "b": [1, 2]}),
            [[BIG, 1], [None, 2]],
            np.int64,
        ),
        "twice one name": (
            pd.DataFrame([[BIG, 0.0]]).iloc[:, [0, 0]].set_axis(["a", "a"], axis=1),
            [[BIG, BIG]],
            np.int64,
        ),
    }


def refused_by_pandas(pd):
    return {
        "mixed frame": pd.DataFrame({"a": [BIG, 2], "b": [0.5, 1]}),
        "mixed frame with gaps": pd.DataFrame(
            {"a": pd.Series([BIG, None], dtype="Int64"), "b": [0.5, 1]}
        ),
        "objects": pd.Series([BIG, None], dtype=object),
        "objects with NaN": pd.Series([BIG, float("nan")], dtype=object),
        "categories": pd.Series(pd.Categorical([BIG, None, 3])),
        "text": pd.Series(["a", None]),
        "dates": pd.Series(pd.to_datetime(["2020"])),
        "zones": pd.Series(pd.to_datetime(["2020", None]).tz_localize("UTC")),
        "intervals": pd.Series(pd.interval_range(0, 2)),
        "text in a frame": pd.DataFrame({"a": [1], "b": ["c"]}),
        "several levels": pd.MultiIndex.from_tuples([(1, 2), (3, 4)]),
    }


def arrow_columns(pa):
    integers = pa.array([BIG, None])
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), integers)
    return {
        "int64": (integers, [BIG, None], np.int64),
        "int8": (pa.array([1, None], pa.int8()), [1, None], np.int8),
        "bool": (pa.array([True, None]), [True, None], np.bool_),
        "half": (pa.array([np.float16(1), None], pa.float16()), [1, None], np.float16),
        "double": (pa.array([1.5, None]), [1.5, None], np.float64),
        "no gaps": (pa.array([BIG, 1]), [BIG, 1], np.int64),
        "no gaps, bool": (pa.array([True, False]), [True, False], np.bool_),
        "slice": (pa.array([1, BIG, None])[1:], [BIG, None], np.int64),
        "dictionary": (integers.dictionary_encode(), [BIG, None], np.int64),
        "gaps of a dictionary": (dictionary, [BIG, None, BIG], np.int64),
        "chunks": (pa.chunked_array([[BIG, None], [1]]), [BIG, None, 1], np.int64),
        "no chunks": (pa.chunked_array([], pa.int32()), [], np.int32),
        "table": (
            pa.table({"a": [BIG, None], "b": [1, 2]}), [[BIG, 1], [None, 2]], np.int64,
        ),
        "batch": (
            pa.record_batch({"a": [BIG, None], "b": [1, 2]}), [[BIG, 1], [None, 2]], np.int64,
        ),
    }  # fmt: skip


def refused_by_arrow(pa):
    return {
        "mixed table": pa.table({"a": [BIG, None], "b": [0.5, 1]}),
        "text": pa.array(["a", None]),
        "lists": pa.array([[BIG, None], [1, 2]]),
        "lists of one size": pa.array([[BIG, None], [1, 2]], pa.list_(pa.int64(), 2)),
        "decimals": pa.array([1, None], pa.decimal128(10)),
        "dates": pa.array([1, None], pa.date32()),
        "nothing": pa.array([None]),
        "structures": pa.array([{"a": BIG}, None]),
        "runs": pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([BIG, None])),
    }


def polars_columns(pl):
    return {
        "int64": (pl.Series([BIG, None]), [BIG, None], np.int64),
        "int8": (pl.Series([1, None], dtype=pl.Int8), [1, None], np.int8),
        "bool": (pl.Series([True, None]), [True, None], np.bool_),
        "double": (pl.Series([1.5, None]), [1.5, None], np.float64),
        "no gaps": (pl.Series([BIG, 1]), [BIG, 1], np.int64),
        "arrays": (pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)), [[1, 2]], np.int64),
        "frame": (pl.DataFrame({"a": [BIG, None], "b": [1, 2]}), [[BIG, 1], [None, 2]], np.int64),
    }


def refused_by_polars(pl):
    return {
        "mixed frame": pl.DataFrame({"a": [BIG, None], "b": [0.5, 1]}),
        "arrays": pl.Series([[BIG, None], [3, 4]], dtype=pl.Array(pl.Int64, 2)),
        "lists": pl.Series([[BIG, None], [3, 4]]),
        "decimals": pl.Series([1, None], dtype=pl.Decimal(10, 2)),
        "dates": pl.Series([1, None], dtype=pl.Date),
    }


COLUMNS = {
    "pandas": (pandas_columns, refused_by_pandas),
    "pyarrow": (arrow_columns, refused_by_arrow),
    "polars": (polars_columns, refused_by_polars),
}


@pytest.mark.parametrize("library", COLUMNS)
def test_gaps_of_columns_are_masked_and_integers_whole(library, need):
    for name, (x, wanted, dtype) in COLUMNS[library][0](need(library)).items():
        out = ovtensor.to_numpy(x)
        assert out.dtype == dtype, name
        assert values(out) == wanted, name
        has_gaps = "None" in str(wanted)
        assert type(out) is (np.ma.MaskedArray if has_gaps else np.ndarray), name
        assert ovtensor.describe(x).has_data
        fresh = ovtensor.to_numpy(x, copy=True)
        fresh[...] = 0
        assert values(ovtensor.to_numpy(x)) == wanted, name
        for to in (ovtensor.to_torch, ovtensor.to_openvino):
            if has_gaps:
                with pytest.raises(ConversionError, match=r"has a mask.*fill it first"):
                    to(x)
            else:
                assert ovtensor.to_numpy(to(x)).tolist() == wanted, name


@pytest.mark.parametrize("library", COLUMNS)
def test_columns_without_a_right_array_are_refused(library, need):
    for name, x in COLUMNS[library][1](need(library)).items():
        for to in TO.values():
            with pytest.raises(ConversionError):
                print(name, to(x))


def test_arrow_memory_without_gaps_is_shared(need):
    pa = need("pyarrow")
    x = pa.array(np.arange(5.0))
    first, second = (ovtensor.to_numpy(x, copy=False) for _ in range(2))
    assert first.ctypes.data == second.ctypes.data


def test_a_mask_behind_array_is_kept(need):
    da = need("dask", "dask.array")
    x = da.ma.masked_array([1, 2], mask=[0, 1])
    out = ovtensor.to_numpy(x)
    assert type(out) is np.ma.MaskedArray
    assert out.tolist() == [1, None]
    for to in (ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match="has a mask"):
            to(x)
    assert ovtensor.to_numpy(da.arange(3)).tolist() == [0, 1, 2]


def test_gaps_of_lazy_columns_are_masked(need):
    pd, dd = need("pandas"), need("dask", "dask.dataframe")
    column = pd.Series([BIG, None], dtype="Int64")
    lazy = dd.from_pandas(pd.DataFrame({"a": column, "b": column}), npartitions=1)
    assert ovtensor.to_numpy(lazy["a"]).tolist() == [BIG, None]
    assert ovtensor.to_numpy(lazy).tolist() == [[BIG, BIG], [None, None]]


class GivesMasked:
    """Speaks ``__array__`` alone, and what it gives is masked."""

    def __array__(self, dtype=None, copy=None):
        return np.ma.array([1, 2], mask=[0, 1], fill_value=7)


def test_a_mask_of_any_object_is_kept():
    out = ovtensor.to_numpy(GivesMasked())
    assert out.tolist() == [1, None]
    assert out.fill_value == 7
    assert ovtensor.to_numpy([GivesMasked(), [3, 4]]).tolist() == [[1, None], [3, 4]]
    with pytest.raises(ConversionError, match="has a mask"):
        ovtensor.to_torch(GivesMasked())


# --- what a copy of a masked array shares, and what its cast keeps


@pytest.mark.parametrize("dtype", [None, "native", "int64", "float32", "bfloat16"])
def test_a_copy_of_a_masked_array_shares_nothing(dtype):
    m = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    r = ovtensor.to_numpy(m, copy=True, dtype=dtype)
    assert not np.shares_memory(r.mask, m.mask)
    r[0] = np.ma.masked
    r[2] = 9
    assert m.tolist() == [1, None, 3]
    if dtype in ("float32", "bfloat16"):  # the cast alone makes new memory
        r = ovtensor.to_numpy(m, dtype=dtype)
        r[0] = np.ma.masked
        assert m.tolist() == [1, None, 3]


def test_a_view_of_a_masked_array_shares_both():
    m = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    r = ovtensor.to_numpy(m)
    assert np.shares_memory(r.data, m.data)
    r[0] = np.ma.masked
    r[2] = 9
    assert m.tolist() == [None, None, 9]


def test_big_endian_masked_arrays_share_nothing():
    m = np.ma.array(np.array([1, 2], ">i4"), mask=[0, 1])
    r = ovtensor.to_numpy(m)
    r[0] = np.ma.masked
    assert m.tolist() == [1, None]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(
    ("fill", "dtype", "kept"),
    [
        (None, None, 1e20), (None, "float32", 1e20), (7, None, 7), (7, "float16", 7),
        (7, "int8", 7), (np.nan, None, np.nan), (np.nan, "float32", np.nan), (0.5, None, 0.5),
        # what the type cannot hold gives way to NumPy's own
        (300, "int8", 63), (0.5, "int8", 63), (np.nan, "int64", 999999), (1e300, "float32", 1e20),
    ],
)  # fmt: skip
def test_fill_value_and_hard_mask_are_kept(fill, dtype, kept, hard):
    m = np.ma.array([1.0, 2.0], mask=[0, 1], fill_value=fill, hard_mask=hard)
    before = m._fill_value
    out = ovtensor.to_numpy(m, dtype=dtype)
    assert out.hardmask is hard
    np.testing.assert_allclose(float(out.fill_value), kept)
    assert m._fill_value is before


def test_hidden_values_block_no_cast():
    m = np.ma.array([1.0, np.nan, 300.5, 1e300], mask=[0, 1, 1, 1])
    for dtype in ("int8", "uint8", "float16", "bfloat16", "bool", "uint4", "float8_e4m3fn"):
        out = ovtensor.to_numpy(m, dtype=dtype)
        assert out.mask.tolist() == [False, True, True, True]
        assert float(out.data[0]) == 1
    with pytest.raises(ConversionError, match=r"would change values: 300\.5"):
        ovtensor.to_numpy(np.ma.array([1.0, 300.5, np.nan], mask=[0, 0, 1]), dtype="int8")
    complexes = np.ma.array([1, 2j], mask=[0, 1])
    assert ovtensor.to_numpy(complexes, dtype="float32").tolist() == [1, None]


def test_hidden_objects_count_for_nothing():
    m = np.ma.array([1, None, "a"], mask=[0, 1, 1], dtype=object)
    assert ovtensor.to_numpy(m).tolist() == [1, None, None]
    with pytest.raises(ConversionError, match="holds a builtins"):
        ovtensor.to_numpy(np.ma.array([1, None], mask=[0, 0], dtype=object))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([None, "int64", "int32", "float64", "float32", "uint8", "bfloat16"]),
    st.sampled_from([None, True]),
)
def test_masked_integers_arrive_whole_or_not_at_all(items, dtype, copy):
    m = np.ma.array([value for value, _ in items], mask=[hidden for _, hidden in items])
    try:
        out = ovtensor.to_numpy(m, dtype=dtype, copy=copy)
    except ConversionError:
        assert dtype not in (None, "int64")
        return
    assert out.mask.tolist() == m.mask.tolist()
    shown = [value for value, hidden in items if not hidden]
    assert [int(value) for value in out.compressed().astype(object)] == shown


# --- numbers of several types: objects as lists


class Colour(enum.IntEnum):
    RED = 3


NUMBERS = [
    ([2**53 + 1, 0.5], None),
    ([2**53 + 1, 1j], None),
    ([2**63, -1], np.float64),
    ([2**63 + 1, -1], None),
    ([2**63 + 1, 0.5], None),
    ([2**64 - 1, 1], np.uint64),
    ([2**64, 1], None),
    ([2**24 + 1, np.float32(0.5)], np.float64),
    ([2**53 + 1, np.float32(0.5)], None),
    ([2**53 + 1, np.longdouble(0.5)], np.longdouble),
    ([np.int8(1), np.uint8(200)], np.int16),
    ([np.uint64(2**63 + 1), np.int64(-1)], None),
    ([True, 2, 0.5], np.float64),
    ([True, np.bool_(False)], np.bool_),
    ([Colour.RED, 1], np.int64),
    ([1, 2.0, 3j], np.complex128),
    ([decimal.Decimal(1)], None),
    ([fractions.Fraction(1, 2), 1], None),
    ([float("nan"), 1], np.float64),
]


@pytest.mark.parametrize(("items", "dtype"), NUMBERS, ids=repr)
def test_numbers_of_several_types_are_exact_or_refused(items, dtype):
    """Alike as a list, as a deep one and as an array of objects."""
    objects = np.empty(len(items), object)
    objects[:] = items
    is_number = not any(isinstance(i, decimal.Decimal | fractions.Fraction) for i in items)
    for x in (items, tuple(items), [items, items], objects, objects.reshape(1, -1)):
        if dtype is None or (dtype is np.longdouble and np.finfo(np.longdouble).nmant < 63):
            for to in TO.values():
                with pytest.raises(ConversionError):
                    to(x)
            continue
        out = ovtensor.to_numpy(x)
        assert out.dtype == dtype
        assert is_number
        for got, given_ in zip(out.reshape(-1), items, strict=False):
            assert got == given_ or got != got


def array_or_none(x):
    try:
        return ovtensor.to_numpy(x)
    except ConversionError:
        return None


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.integers(-(2**65), 2**65), st.booleans(), st.floats(allow_nan=False),
            st.complex_numbers(allow_nan=False, allow_infinity=False),
            st.integers(0, 255).map(np.uint8), st.floats(width=32, allow_nan=False).map(np.float32),
            st.integers(0, 2**64 - 1).map(np.uint64),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_every_number_arrives_as_it_was(items):
    objects = np.empty(len(items), object)
    objects[:] = items
    answers = [array_or_none(x) for x in (items, objects)]
    assert (answers[0] is None) is (answers[1] is None)
    if answers[0] is None:
        return
    assert answers[0].dtype == answers[1].dtype
    for out in answers:
        for got, given_ in zip(out.tolist(), items, strict=True):
            assert got == (given_.item() if isinstance(given_, np.generic) else given_)


def test_tensors_in_a_list_are_promoted_exactly():
    with pytest.raises(ConversionError, match="9007199254740993"):
        ovtensor.to_numpy([torch.tensor([2**53 + 1]), torch.tensor([0.5], dtype=torch.float64)])
