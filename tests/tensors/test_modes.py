"""Modes that are active change nothing, and wrappers over nothing are refused, not run."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError

WHOLE = np.arange(6, dtype=np.float32).reshape(2, 3)
TO = {"numpy": ovtensor.to_numpy, "torch": ovtensor.to_torch, "openvino": ovtensor.to_openvino}


class Watching(TorchDispatchMode):
    """Counts what it sees."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


class WatchingFunctions(TorchFunctionMode):
    seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


class LyingFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return "something else"


class Scaled(torch.Tensor):
    """Has a method of its own to get at its values, which makes tensors anew."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values):
        self.values = values

    def dequantize(self):
        return torch.zeros(self.values.shape) + self.values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


MODES = {
    "fake": FakeTensorMode,
    "fake that takes real ones": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "flops": lambda: FlopCounterMode(display=False),
    "watching": Watching,
    "watching functions": WatchingFunctions,
    "lying functions": LyingFunctions,
    "meta device": lambda: torch.device("meta"),
}


def quantized():
    return torch.quantize_per_tensor(torch.from_numpy(WHOLE), 1.0, 0, torch.quint8)


SOURCES = {
    "array": WHOLE.copy,
    "list": WHOLE.tolist,
    "tensor": lambda: torch.from_numpy(WHOLE.copy()),
    "parameter": lambda: torch.nn.Parameter(torch.from_numpy(WHOLE.copy())),
    "transposed": lambda: torch.from_numpy(WHOLE.T.copy()).T,
    "bfloat16": lambda: torch.from_numpy(WHOLE.copy()).bfloat16(),
    "complex32": lambda: torch.from_numpy(WHOLE.copy()).to(torch.complex32),
    "sparse": lambda: torch.from_numpy(WHOLE.copy()).to_sparse(),
    "rows": lambda: torch.from_numpy(WHOLE.copy()).to_sparse_csr(),
    "mkldnn": lambda: torch.from_numpy(WHOLE.copy()).to_mkldnn(),
    "quantized": quantized,
    "nested": lambda: torch.nested.nested_tensor(list(torch.from_numpy(WHOLE.copy()))),
    "subclass": lambda: Scaled(torch.from_numpy(WHOLE.copy())),
    "openvino": lambda: ovtensor.to_openvino(WHOLE.copy()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("to", TO)
def test_a_mode_changes_no_conversion(to, source, mode):
    x = SOURCES[source]()
    if source == "complex32" and to == "openvino":
        return
    wanted = ovtensor.to_numpy(TO[to](x))
    entered = MODES[mode]()
    with entered:
        stack = _get_current_dispatch_mode_stack(), torch._C._len_torch_function_stack()
        out = TO[to](x)
        same = TO[to](x, copy=True)
        assert stack == (
            _get_current_dispatch_mode_stack(),
            torch._C._len_torch_function_stack(),
        )
    for given in (out, same):
        assert type(given) is type(TO[to](WHOLE))
        np.testing.assert_array_equal(ovtensor.to_numpy(given), wanted)
    assert getattr(entered, "seen", 0) == 0


def test_modes_are_back_after_an_error():
    with FakeTensorMode() as mode, WatchingFunctions():
        fake = torch.ones(2)
        for to in TO.values():
            with pytest.raises(DatalessTensorError, match="FakeTensor"):
                to(fake)
            with pytest.raises(ConversionError):
                to(object())
        assert _get_current_dispatch_mode_stack() == [mode]
        assert torch._C._len_torch_function_stack() == 1
    assert not torch._C._len_torch_function_stack()


def test_to_a_device_under_a_fake_mode():
    with FakeTensorMode():
        out = ovtensor.to_torch(WHOLE, device="cpu")
    assert type(out) is torch.Tensor
    assert out.numpy().tolist() == WHOLE.tolist()


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_a_constant_of_a_traced_function_is_real_or_refused(mode):
    done = []

    def function(x):
        with pytest.raises(DatalessTensorError, match="trace"):
            ovtensor.to_numpy(x)
        if mode == "real":
            assert ovtensor.to_torch(WHOLE).numpy().tolist() == WHOLE.tolist()
        else:
            with pytest.raises(DatalessTensorError, match="trace"):
                ovtensor.to_torch(WHOLE)
        done.append(True)
        return x + 1

    make_fx(function, tracing_mode=mode)(torch.ones(3))
    assert done


def wrapper(unwrapped, *, tells, rewraps):
    """Make a wrapper subclass whose operators run on what `unwrapped` makes of its tensor."""

    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            def inner(value):
                return unwrapped(value.inner) if isinstance(value, Wrapper) else value

            out = func(*(inner(arg) for arg in args), **(kwargs or {}))
            return Wrapper(out) if rewraps and isinstance(out, torch.Tensor) else out

    if tells:
        Wrapper.__tensor_flatten__ = lambda self: (["inner"], None)
    return Wrapper


FAKES = FakeTensorMode(allow_non_fake_inputs=True)
NOTHING = {
    "functional": torch._to_functional_tensor,
    "fake": FAKES.from_tensor,
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("rewraps", [False, True])
@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("nothing", NOTHING)
def test_a_wrapper_over_nothing_is_refused(nothing, inside, tells, rewraps, to):
    """Operators on a functional tensor outside of functionalize end the process."""
    make = NOTHING[nothing]
    cls = wrapper((lambda x: x) if inside else make, tells=tells, rewraps=rewraps)
    x = cls(make(torch.ones(2)) if inside else torch.ones(2))
    with pytest.raises(ConversionError, match=r"no values|no known way|no plain"):
        TO[to](x)


def test_a_wrapper_inside_a_wrapper_over_nothing_is_refused():
    inner = wrapper(torch._to_functional_tensor, tells=True, rewraps=False)
    outer = wrapper(lambda x: x, tells=True, rewraps=False)
    with pytest.raises(DatalessTensorError, match="functional"):
        ovtensor.to_numpy(outer(inner(torch.ones(2))))


def test_functional_tensors_still_end_the_process_when_they_are_computed_with(python):
    """What the view before the copy guards against: once this fails, it may go."""
    program = python(
        "import torch, test_modes as t\n"
        "x = t.wrapper(torch._to_functional_tensor, tells=False, rewraps=False)(torch.ones(2))\n"
        "torch.ops.aten.clone.default(x)\n"
    )
    with contextlib.suppress(BrokenPipeError):
        program.communicate(timeout=120)
    assert program.returncode != 0
