"""Who owns the memory: writes seen on the other side or not, sources kept alive, threads, modes."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ovtensor
from ovtensor.errors import ConversionError
from ovtensor.tensors.dtypes import TABLE

SOURCES = {
    "array": lambda a: a,
    "reversed array": lambda a: a[::-1],
    "tensor": torch.from_numpy,
    "parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a)),
    "transposed tensor": lambda a: torch.from_numpy(a).T,
    "openvino": lambda a: ov.Tensor(a, shared_memory=True),
}
TO = {"numpy": ovtensor.to_numpy, "torch": ovtensor.to_torch, "openvino": ovtensor.to_openvino}
CANNOT_SHARE = {
    ("reversed array", "torch"), ("reversed array", "openvino"), ("transposed tensor", "openvino"),
}  # fmt: skip


def view(x):
    """Look at a tensor's memory without the code under test."""
    if isinstance(x, torch.Tensor):
        return x.detach().numpy()
    return x.data if isinstance(x, ov.Tensor) else x


@pytest.mark.parametrize("copy", [None, True, False])
@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("source", SOURCES)
def test_writes_are_seen_exactly_where_memory_is_shared(source, to, copy):
    memory = np.zeros((3, 3), np.float32)
    x = SOURCES[source](memory)
    if copy is False and (source, to) in CANNOT_SHARE:
        with pytest.raises(ConversionError, match=r"copy=False.*drop copy=False"):
            TO[to](x, copy=copy)
        return
    out = TO[to](x, copy=copy)
    # Nobody can tell an infer request's openvino.Tensor from another: None copies them all.
    shares = copy is False or (
        copy is None and source != "openvino" and (source, to) not in CANNOT_SHARE
    )
    view(out)[...] = 7
    assert (memory == (7 if shares else 0)).all()
    memory[...] = 3
    assert (view(out) == (3 if shares else 7)).all()


@pytest.mark.parametrize("to", TO)
def test_read_only_memory_is_never_written_through(to):
    memory = np.zeros(3, np.float32)
    memory.setflags(write=False)
    out = TO[to](memory)
    if to == "numpy":
        assert not out.flags.writeable
        return
    view(out)[...] = 7
    assert (memory == 0).all()
    with pytest.raises(ConversionError, match="read-only"):
        TO[to](memory, copy=False)


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(3.0),
        lambda: torch.arange(3.0),
        lambda: torch.arange(6.0).reshape(2, 3).T,
        lambda: torch.arange(3.0).bfloat16(),
        lambda: torch.nn.Parameter(torch.arange(3.0)),
    ],
    ids=["array", "tensor", "transposed", "bfloat16", "parameter"],
)
def test_a_view_keeps_its_source_alive(make, to):
    x = make()
    storage = x if isinstance(x, np.ndarray) else x.untyped_storage()
    alive = weakref.ref(storage)
    wanted = ovtensor.to_numpy(x, copy=True)
    if to == "openvino" and wanted.ndim == 2:
        x = x.contiguous()
        alive = weakref.ref(x.untyped_storage())
    options = {"dtype": "native"} if to == "numpy" else {}
    out = TO[to](x, copy=False, **options)
    del x, storage
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(ovtensor.to_numpy(out), wanted)
    part = out[1:] if to != "openvino" else out.data[1:]
    del out
    gc.collect()
    assert alive() is not None
    del part
    gc.collect()
    assert alive() is None


def test_a_copy_lets_its_source_go():
    x = torch.arange(3.0)
    alive = weakref.ref(x.untyped_storage())
    out = ovtensor.to_numpy(x, copy=True)
    del x
    gc.collect()
    assert alive() is None
    assert out.tolist() == [0, 1, 2]


ROUND_TRIP = [row for row in TABLE if row.torch and row.openvino]


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(ROUND_TRIP))
def test_round_trips_are_bit_exact(data, element):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    width = element.carrier.itemsize
    raw = data.draw(hnp.arrays(f"u{width}", shape))
    bits = np.asarray(raw % 2, bool) if element.name == "bool" else raw.view(element.carrier)
    x = torch.from_numpy(bits if element.in_numpy else bits.view(f"i{width}"))
    x = x if element.in_numpy else x.view(getattr(torch, element.torch))
    if data.draw(st.booleans()) and x.ndim:
        x = x.transpose(0, -1)
    y = ovtensor.to_torch(ovtensor.to_openvino(x))
    assert y.dtype is x.dtype
    assert y.shape == x.shape
    integer = getattr(torch, f"int{8 * width}")
    assert torch.equal(y.view(integer), x.view(integer))
    z = ovtensor.to_torch(ovtensor.to_numpy(x, dtype="native"))
    assert z.dtype is x.dtype
    assert torch.equal(z.view(integer), x.view(integer))


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(endianness="?"),
            hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
            hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)), st.just(np.dtype(bool)),
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    st.data(),
)  # fmt: skip
def test_arrays_of_any_stride_and_byte_order(x, data):
    if x.ndim:
        index = data.draw(hnp.basic_indices(x.shape, allow_ellipsis=True))
        x = np.asarray(x[index])
    out = ovtensor.to_numpy(x)
    assert out.dtype == x.dtype.newbyteorder("=")
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(ovtensor.to_numpy(ovtensor.to_torch(x)), x)
    if x.dtype.kind != "c":
        np.testing.assert_array_equal(ovtensor.to_numpy(ovtensor.to_openvino(x)), x)


class _DefaultDtype:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "meta device": lambda: torch.device("meta"),
    "default dtype": _DefaultDtype,
}


def results():
    x = torch.arange(6.0).reshape(2, 3)
    x.requires_grad_()
    for given_ in (x, x.detach().bfloat16(), x.detach().to_sparse(), x.detach().T, [1.5, 2]):
        yield ovtensor.to_numpy(given_)
        yield view(ovtensor.to_torch(ovtensor.to_numpy(given_)))
        yield view(ovtensor.to_openvino(ovtensor.to_numpy(given_)))


@pytest.mark.parametrize("mode", MODES)
def test_modes_change_nothing(mode):
    sources = [
        torch.arange(6.0).reshape(2, 3).requires_grad_(), torch.arange(3.0).bfloat16(),
        torch.eye(2).to_sparse(), torch.eye(3)[1:].T, [1.5, 2], np.ones(2),
    ]  # fmt: skip
    wanted = [ovtensor.to_numpy(x, copy=True) for x in sources]
    with MODES[mode]():
        for x, values in zip(sources, wanted, strict=True):
            out = ovtensor.to_numpy(x)
            assert out.dtype == values.dtype
            np.testing.assert_array_equal(out, values)
            tensor = ovtensor.to_torch(x)
            assert tensor.device.type == "cpu"
            np.testing.assert_array_equal(ovtensor.to_numpy(tensor), values)


def test_many_threads_get_the_same():
    wanted = [array.copy() for array in results()]
    wrong = []
    ready = threading.Barrier(6)

    def work():
        ready.wait()
        for _ in range(10):
            for array, values in zip(results(), wanted, strict=True):
                if array.dtype != values.dtype or not np.array_equal(array, values):
                    wrong.append(array)

    ovtensor.tensors.registry.forget_types()
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_to_torch_devices():
    x = np.ones(2, np.float32)
    assert ovtensor.to_torch(x, device="cpu").device.type == "cpu"
    meta = ovtensor.to_torch(x, device="meta")
    assert meta.device.type == "meta"
    with pytest.raises(ConversionError, match=r"goes to device meta.*drop copy=False"):
        ovtensor.to_torch(x, device="meta", copy=False)
    assert ovtensor.to_torch(torch.ones(2), dtype="float16").dtype is torch.float16
    assert ovtensor.to_torch(np.ones(2), dtype=torch.float8_e5m2).float().tolist() == [1, 1]


def test_the_input_is_left_as_it_was():
    x = torch.arange(4.0, requires_grad=True)
    y = x * 1
    y.retain_grad()
    before = (y._version, y.requires_grad, y.grad_fn, y.is_leaf, y.grad, y.stride(), y.data_ptr())
    for dtype in (None, "float16", "native"):
        ovtensor.to_numpy(y, dtype=dtype)
        ovtensor.to_openvino(y)
        ovtensor.to_torch(y)
    assert before == (
        y._version, y.requires_grad, y.grad_fn, y.is_leaf, y.grad, y.stride(), y.data_ptr(),
    )  # fmt: skip
