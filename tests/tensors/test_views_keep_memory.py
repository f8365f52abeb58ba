"""A view keeps memory, not the object that had it, whatever the owner does with its storage.

Swapping (``.data =``, ``module.to``), resizing and freeing storage of a tensor leave a view with
the old values, or are refused by the owner. Where nothing can hold the memory, a copy is given.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import mmap

import numpy as np
import openvino as ov
import pytest
import torch

import ovtensor
from ovtensor.errors import ConversionError
from ovtensor.tensors import registry


class PlainSubclass(torch.Tensor):
    pass


def parameter(dtype=torch.float32):
    return torch.nn.Linear(40, 25).to(dtype).weight


TENSORS = {
    "plain": lambda: torch.rand(1000),
    "slice": lambda: torch.rand(2000)[500:1500],
    "transposed": lambda: torch.rand(25, 40).T,
    "channels last": lambda: torch.rand(2, 3, 12, 14).to(memory_format=torch.channels_last),
    "every other": lambda: torch.rand(2000)[::2],
    "bfloat16": lambda: torch.rand(1000).bfloat16(),
    "float8": lambda: torch.rand(1000).to(torch.float8_e4m3fn),
    "complex": lambda: torch.rand(500, dtype=torch.complex64),
    "parameter": parameter,
    "bfloat16 parameter": lambda: parameter(torch.bfloat16),
    "result with a graph": lambda: torch.rand(1000, requires_grad=True) * 2,
    "subclass": lambda: torch.rand(1000).as_subclass(PlainSubclass),
    "of an array": lambda: torch.from_numpy(np.random.default_rng(1).random(1000)),
}
TO = {"numpy": ovtensor.to_numpy, "torch": ovtensor.to_torch, "openvino": ovtensor.to_openvino}


def module_of(x):
    module = torch.nn.Module()
    module.weight = x if isinstance(x, torch.nn.Parameter) else torch.nn.Parameter(x.detach())
    return module


def swapped(x):
    x.data = torch.zeros_like(x)


def moved_by_its_module(x):
    module_of(x).to(torch.float64)


def moved_as_future_versions_do(x):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module_of(x).to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def assigned_by_its_module(x):
    module_of(x).load_state_dict({"weight": torch.zeros_like(x)}, assign=True)


ACTIONS = {
    "data": swapped,
    "module.to": moved_by_its_module,
    "module.to by swapping": moved_as_future_versions_do,
    "load_state_dict": assigned_by_its_module,
    "set_": lambda x: x.detach().set_(torch.zeros(5, dtype=x.dtype)),
    "set_ itself": lambda x: x.set_(torch.zeros(5, dtype=x.dtype)),
    "resize_": lambda x: x.detach().resize_(100_000),
    "resize_ itself": lambda x: x.resize_(100_000),
    "storage.resize_(0)": lambda x: x.untyped_storage().resize_(0),
    "storage.resize_": lambda x: x.untyped_storage().resize_(1_000_000),
    "swap_tensors": lambda x: torch.utils.swap_tensors(x, torch.zeros(3)),
}


def values_of(out):
    """Read a result without the code under test, as bytes."""
    if isinstance(out, ov.Tensor):
        return out.data.tobytes()
    if isinstance(out, torch.Tensor):
        return out.contiguous().view(torch.uint8).numpy().tobytes()
    return out.tobytes()


def overwrite_freed_memory():
    return [torch.full((size,), 7.0) for size in (250, 500, 1000, 1008, 2000) for _ in range(20)]


def convert(to, x, **options):
    """Convert, if that is possible: a named error keeps the promise too."""
    if to == "numpy":
        options["dtype"] = "native"
    try:
        return TO[to](x, **options)
    except ConversionError:
        return None


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("source", TENSORS)
def test_a_tensor_whose_owner_changes_its_storage(source, to):
    refused = 0
    for action, first, copy in itertools.product(ACTIONS, (True, False), (None, False)):
        registry.forget_types()
        if not first:  # later calls may take a fast path
            ovtensor.to_numpy(TENSORS[source]())
        x = TENSORS[source]()
        out = convert(to, x, copy=copy)
        if out is None:
            refused += 1
            continue
        wanted = values_of(out)
        with contextlib.suppress(RuntimeError), torch.no_grad():
            ACTIONS[action](x)
        del x
        junk = overwrite_freed_memory()
        assert values_of(out) == wanted, (action, first, copy)
        del junk
    assert refused == 0 or source in ("transposed", "channels last", "every other", "complex")


BUFFERS = {
    "bytearray": (lambda: bytearray(b"ab" * 500), lambda x: x.extend(b"c" * 100_000)),
    "cleared bytearray": (lambda: bytearray(b"ab" * 500), lambda x: x.clear()),
    "array.array": (lambda: array.array("d", range(1000)), lambda x: x.extend(range(9999))),
    "popped array.array": (
        lambda: array.array("d", range(1000)),
        lambda x: x.__delitem__(slice(9)),
    ),
    "released memoryview": (lambda: memoryview(bytearray(1000)), lambda x: x.release()),
    "mmap": (lambda: mmap.mmap(-1, 4096), lambda x: x.close()),
    "ctypes": (
        lambda: (ctypes.c_double * 1000)(*range(1000)),
        lambda x: ctypes.resize(x, 1_000_000),
    ),
    "structure field": (
        lambda: (ctypes.c_uint8 * 1000)(*range(250)),
        lambda x: ctypes.resize(x, 1_000_000),
    ),
    "ndarray": (lambda: np.arange(1000.0), lambda x: x.resize(100_000)),
    "openvino": (
        lambda: ov.Tensor(ov.Type.f64, ov.Shape([1000])),
        lambda x: setattr(x, "shape", [100_000]),
    ),
    "openvino over an array": (
        lambda: ov.Tensor(np.arange(1000.0), shared_memory=True),
        lambda x: setattr(x, "shape", [100_000]),
    ),
}


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("source", BUFFERS)
def test_a_buffer_whose_owner_resizes_or_closes_it(source, to):
    make, action = BUFFERS[source]
    x = make()
    out = TO[to](x)
    wanted = values_of(out)
    with contextlib.suppress(BufferError, ValueError, RuntimeError):
        action(x)
    del x
    junk = overwrite_freed_memory()
    if not (source == "ndarray" and to == "numpy"):  # the array itself is its own view
        assert values_of(out) == wanted
    del junk


class Interface:
    """Tells an address of memory that it can let go of at any time."""

    def __init__(self):
        self.values = np.arange(1000.0)

    @property
    def __array_interface__(self):
        return self.values.__array_interface__


@pytest.mark.parametrize("to", TO)
def test_an_object_that_only_tells_an_address_is_copied(to):
    x = Interface()
    out = TO[to](x)
    x.values = None
    junk = overwrite_freed_memory()
    assert values_of(out) == np.arange(1000.0).tobytes()
    assert ovtensor.describe(Interface()).owner == "borrowed"
    del junk


@pytest.mark.parametrize("to", TO)
def test_jax_memory_that_is_deleted_or_donated(need, to):
    jax = need("jax")
    for let_go in (
        lambda x: x.delete(),
        lambda x: jax.jit(lambda y: y * 0, donate_argnums=0)(x).block_until_ready(),
    ):
        x = jax.numpy.arange(1000.0)
        out = TO[to](x)
        wanted = values_of(out)
        let_go(x)
        junk = overwrite_freed_memory()
        assert values_of(out) == wanted
        del junk


@pytest.mark.parametrize("offset", range(1, 16))
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "c8", "c16"])
def test_memory_that_is_not_aligned_is_copied(dtype, offset):
    values = np.arange(64).astype(dtype)
    memory = np.zeros(values.nbytes + 32, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :]
    x = memory[offset : offset + values.nbytes].view(dtype)
    x[...] = values
    tensor = ovtensor.to_torch(x)
    assert tensor.data_ptr() % values.itemsize == 0
    assert (tensor.data_ptr() == x.ctypes.data) is (offset % values.itemsize == 0)
    assert torch.equal(tensor * 2 + tensor, torch.from_numpy(values * 3))
    if values.dtype.kind != "c":
        assert ovtensor.to_openvino(x).data.ctypes.data % values.itemsize == 0
    if offset % values.itemsize:
        with pytest.raises(ConversionError, match=r"not aligned.*drop copy=False"):
            ovtensor.to_torch(x, copy=False)
    np.testing.assert_array_equal(ovtensor.to_numpy(x, copy=False), values)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("bfloat16", {}),
        ("bfloat16 parameter", {"dtype": "float32"}),
        ("float8", {"copy": True, "dtype": "native"}),
        ("parameter", {"copy": True}),
        ("subclass", {"dtype": "float16"}),
    ],
)
def test_a_copy_leaves_storage_resizable(source, options):
    """Offloading and sharding free the storage of weights, which a copy does not need."""
    x = TENSORS[source]()
    ovtensor.to_numpy(x, **options)
    assert x.untyped_storage().resizable()
    x.untyped_storage().resize_(0)


@pytest.mark.filterwarnings("ignore")
def test_what_comes_out_of_a_wrapper_is_held_too():
    x = torch.masked.masked_tensor(torch.arange(1000.0), torch.arange(1000) > 3)
    inner = x.get_data()
    out = ovtensor.to_numpy(x)
    wanted = out.tolist()
    with contextlib.suppress(RuntimeError):
        inner.untyped_storage().resize_(0)
    with contextlib.suppress(RuntimeError):
        x._masked_data.untyped_storage().resize_(0)
    junk = overwrite_freed_memory()
    assert out.tolist() == wanted
    del junk
