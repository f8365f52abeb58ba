"""Tensors without values, and real ones that other means read as garbage."""

from __future__ import annotations

import itertools
import sys
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError

WHOLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def functional(x):
    with FunctionalTensorMode():
        return FunctionalTensor.to_functional(x)


def freed(count, left, begin=0, step=1):
    x = torch.rand(count)[begin::step]
    x.untyped_storage().resize_(left)
    return x


DATALESS = {
    "fake": (
        lambda: FakeTensorMode(allow_non_fake_inputs=True).from_tensor(torch.ones(2)),
        r"FakeTensor.*\(2,\).*float32.*weights were replaced.*ovtensor\.release_weights",
    ),
    "meta": (lambda: torch.ones(2, device="meta"), "device meta.*keeps shapes and no values"),
    "functional": (lambda: torch._to_functional_tensor(torch.ones(2)), "functional tensor"),
    "functional in Python": (lambda: functional(torch.ones(2)), "functional tensor"),
    "lazy parameter": (lambda: torch.nn.LazyLinear(2).weight, "never initialized"),
    "lazy buffer": (torch.nn.parameter.UninitializedBuffer, "never initialized"),
    "freed": (lambda: freed(10, 0), r"freed or shrunk \(0 of 40 bytes"),
    "half freed": (lambda: freed(10, 16), r"16 of 40 bytes"),
    "half freed, offset": (lambda: freed(10, 20, 5), r"20 of 40 bytes"),
    "half freed, strided": (lambda: freed(10, 20, 0, 2), r"20 of 36 bytes"),
    "freed parameter": (lambda: torch.nn.Parameter(freed(4, 0)), "0 of 16 bytes"),
    "freed bfloat16": (lambda: freed(4, 6).view(torch.bfloat16), "6 of 16 bytes"),
}


@pytest.mark.parametrize("convert", ["to_numpy", "to_torch", "to_openvino"])
@pytest.mark.parametrize("kind", DATALESS)
def test_no_values_is_an_error_that_says_why(kind, convert):
    make, text = DATALESS[kind]
    x = make()
    with pytest.raises(DatalessTensorError, match=text):
        getattr(ovtensor, convert)(x)
    info = ovtensor.describe(x)
    assert not info.has_data
    assert not info.zero_copy
    assert info.reason


def test_a_fake_inside_a_wrapper():
    from torch.testing._internal.two_tensor import TwoTensor

    mode = FakeTensorMode()
    x = TwoTensor(mode.from_tensor(torch.ones(2)), mode.from_tensor(torch.ones(2)))
    with pytest.raises(DatalessTensorError, match="FakeTensor"):
        ovtensor.to_numpy(x)


def test_real_tensors_under_a_fake_mode_keep_their_values():
    x = torch.arange(6.0).reshape(2, 3)
    conjugate = torch.tensor([1 + 2j]).conj()
    sparse = x.to_sparse()
    narrow = x.bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        np.testing.assert_array_equal(ovtensor.to_numpy(x), [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(ovtensor.to_numpy(conjugate), [1 - 2j])
        wide = ovtensor.to_numpy(narrow)
        np.testing.assert_array_equal(ovtensor.to_numpy(sparse), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(wide, x)


def summed(function):
    return lambda x: (function(x) * x).sum()


TRANSFORMS = {
    "vmap": lambda f: lambda x: torch.func.vmap(f)(x.expand(2, *x.shape)),
    "grad": lambda f: torch.func.grad(summed(f)),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[0],
    "functionalize": torch.func.functionalize,
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("outer", "inner"),
    sorted({*itertools.product(TRANSFORMS, ["", *TRANSFORMS])} - {("functionalize",) * 2}),
)
def test_inside_functorch(outer, inner):
    captured = torch.arange(6.0).reshape(2, 3)
    sources = [captured, torch.nn.Parameter(captured.clone()), captured.T]
    sparse = captured.to_sparse()
    seen = []

    def function(x):
        for dataless in (x, x * 2):
            with pytest.raises(DatalessTensorError, match=r"vmap|torch\.func|functional"):
                ovtensor.to_numpy(dataless)
        for source in (*sources, sparse, WHOLE):
            wanted = WHOLE.T if source is sources[2] else WHOLE
            np.testing.assert_array_equal(ovtensor.to_numpy(source), wanted)
            seen.append((ovtensor.to_torch(source), wanted))
        return x * 2

    transformed = TRANSFORMS[outer](TRANSFORMS[inner](function) if inner else function)
    transformed(torch.ones(3))
    assert seen
    for tensor, wanted in seen:
        np.testing.assert_array_equal(tensor.numpy(), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_escaped_from_functorch(transform):
    """Derivatives wrap values, which are there afterwards; the others stand for something else."""
    escaped = []

    def function(x):
        escaped.extend((x, x * 2))
        return x * 2

    TRANSFORMS[transform](function)(torch.arange(3.0))
    for factor, x in zip((1, 2), escaped, strict=True):
        if transform not in ("vmap", "functionalize"):
            np.testing.assert_array_equal(ovtensor.to_numpy(x), np.arange(3.0) * factor)
            assert ovtensor.describe(x).has_data
        else:
            with pytest.raises(DatalessTensorError, match=r"vmap|functional"):
                ovtensor.to_numpy(x)
            assert not ovtensor.describe(x).has_data


class Liar(TorchDispatchMode):
    """A mode may answer anything."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out + 1 if func is torch.ops.aten.detach.default else out


def test_other_modes_are_not_asked():
    x = torch.arange(6.0).reshape(2, 3)
    sparse = x.to_sparse()
    with Liar():
        for source in (x, torch.nn.Parameter(x), x.view(2, 3), sparse):
            np.testing.assert_array_equal(ovtensor.to_numpy(source), WHOLE)


def traced(x):
    return x + ovtensor.to_numpy(x * 2).sum()


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_inside_make_fx(mode, pre_dispatch):
    with pytest.raises(DatalessTensorError, match="trace"):
        make_fx(traced, tracing_mode=mode, pre_dispatch=pre_dispatch)(torch.ones(3))


def test_a_trace_in_another_thread_is_not_ours():
    x = torch.arange(6.0).reshape(2, 3)
    seen = []

    def function(y):
        thread = threading.Thread(target=lambda: seen.append(ovtensor.to_numpy(x)))
        thread.start()
        thread.join()
        return y + 1

    make_fx(function, pre_dispatch=True)(torch.ones(3))
    np.testing.assert_array_equal(seen[0], WHOLE)


def test_inside_symbolic_trace():
    with pytest.raises(DatalessTensorError, match=r"Proxy has no values: it stands for some"):
        torch.fx.symbolic_trace(traced)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inside_jit_trace():
    with pytest.raises(DatalessTensorError, match="trace"):
        torch.jit.trace(traced, (torch.ones(3),))


class Module(torch.nn.Module):
    def forward(self, x):
        return traced(x)


def test_inside_export():
    with pytest.raises(DatalessTensorError, match="trace"):
        torch.export.export(Module(), (torch.ones(3),))


def test_inside_strict_export_torch_wraps_our_error():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="DatalessTensorError"):
        torch.export.export(Module(), (torch.ones(3),), strict=True)


def test_inside_compile_the_traced_code_sees_the_error():
    @torch.compile(backend="eager", fullgraph=True)
    def function(x):
        try:
            ovtensor.to_numpy(x)
        except DatalessTensorError:
            return x + 1
        return x

    np.testing.assert_array_equal(function(torch.ones(2)), [2, 2])


def test_compile_without_fullgraph_falls_back_to_true_values():
    @torch.compile(backend="eager")
    def function(x):
        y = x * 2
        return y + 1, ovtensor.to_numpy(y), ovtensor.to_numpy(y.bfloat16().t())

    _, plain, slow = function(torch.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(plain, [[0, 2, 4], [6, 8, 10]])
    np.testing.assert_array_equal(slow, plain.T)


BIT_PATTERNS = torch.tensor([[0.0, 1.5, -2.0, 3e5], [torch.nan, torch.inf, -0.0, 7.0]])


def outcome(convert, x, options):
    try:
        out = convert(x, **options)
    except ConversionError as error:
        return type(error), str(error)
    bits = ovtensor.to_numpy(out, dtype="native")
    return type(out), bits.dtype, bits.shape, bits.tobytes()


@pytest.mark.parametrize("convert", [ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"copy": True},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "uint8", "casting": "unsafe"},
        {"dtype": "float8_e4m3fn", "casting": "unsafe"},
    ],
    ids=str,
)
def test_after_a_break_of_the_graph_every_bit_is_the_same(convert, options):
    values = [
        BIT_PATTERNS,
        BIT_PATTERNS.bfloat16().t(),
        BIT_PATTERNS.to(torch.float8_e5m2),
        BIT_PATTERNS.numpy().astype(">f4"),
    ]

    @torch.compile(backend="eager")
    def function(x):
        return outcome(convert, x, options)

    for x in values:
        torch._dynamo.reset()
        assert function(x) == outcome(convert, x, options)


def test_while_another_thread_imports_the_compiler(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", types.ModuleType("torch._dynamo"))
    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        assert outcome(convert, torch.ones(2).bfloat16(), {})[2] == (2,)


@pytest.mark.parametrize("name", ["causal_upper_left", "causal_lower_right"])
@pytest.mark.parametrize("shape", [(4, 4), (2, 3)])
def test_masks_of_attention_hold_no_values(name, shape):
    from torch.nn.attention import bias

    for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino):
        with pytest.raises(ConversionError, match=r"CausalBias.*holds none.*tril"):
            convert(getattr(bias, name)(*shape))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_garbage_is_still_real():
    """What this library guards against: when one of these fails, a guard may be retired."""
    x = torch.arange(6.0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        garbage = x.numpy()
    assert garbage.ctypes.data != x.data_ptr()
    assert freed(10, 16).numpy().nbytes == 40
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert np.from_dlpack(fake).shape == (6,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = torch.masked.masked_tensor(x, x > 2)
        assert type(np.from_dlpack(masked)) is np.ndarray
        negative = torch.tensor([1 + 2j]).conj().imag
    assert np.from_dlpack(negative.detach())[0] == 2  # the true value is -2
