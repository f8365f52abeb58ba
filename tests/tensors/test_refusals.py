"""What has no right array is refused with an error of this library, and with advice that helps."""

from __future__ import annotations

import collections
import io
import struct

import numpy as np
import openvino as ov
import pytest
import torch
from PIL import Image

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError, InputError, OvtensorError

TO = {"numpy": ovtensor.to_numpy, "torch": ovtensor.to_torch, "openvino": ovtensor.to_openvino}
TREE = {
    "numpy": ovtensor.tree_to_numpy,
    "torch": ovtensor.tree_to_torch,
    "openvino": ovtensor.tree_to_openvino,
}


def itself():
    x = [1]
    x.append(x)
    return x


def each_other():
    x, y = [1], (2, [3])
    x.append(y)
    y[1].append(x)
    return x


def deep(levels, inner=1):
    for _ in range(levels):
        inner = [inner]
    return inner


def closed_picture():
    picture = Image.new("L", (2, 2))
    picture.close()
    return picture


def truncated_picture():
    file = io.BytesIO()
    Image.new("RGB", (200, 200), (1, 2, 3)).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:300]))


def closed_mmap():
    import mmap

    memory = mmap.mmap(-1, 16)
    memory.close()
    return memory


def released_view():
    view = memoryview(b"abcd")
    view.release()
    return view


class Raises:
    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


class Dequantizes(torch.Tensor):
    def dequantize(self):
        raise KeyError("scale")


RAW = {
    "itself": itself,
    "each other": each_other,
    "10,000 deep": lambda: deep(10_000),
    "70 deep": lambda: deep(70),
    "a deep tensor": lambda: deep(70, torch.ones(1)),
    "closed picture": closed_picture,
    "truncated picture": truncated_picture,
    "closed mmap": closed_mmap,
    "released view": released_view,
    "KeyError": lambda: Raises(KeyError("x")),
    "RecursionError": lambda: Raises(RecursionError("x")),
    "subclass": lambda: torch.ones(2).as_subclass(Dequantizes),
    "text in a list": lambda: [1, "a"],
    "None in a list": lambda: [1.0, None],
    "set": lambda: {1, 2},
    "dict": lambda: {"a": 1},
    "structure": lambda: struct.Struct("i"),
    "characters": lambda: memoryview(struct.pack("ih", 1, 2)).cast("c"),
    "class": lambda: np.ndarray,
    "class of tensors": lambda: torch.Tensor,
    "class of protocols": lambda: Raises,
}


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("what", RAW)
def test_no_raw_error_comes_out_of_a_conversion(what, to):
    with pytest.raises(ConversionError, match=";"):
        TO[to](RAW[what]())
    assert isinstance(ovtensor.describe(RAW[what]()), ovtensor.TensorInfo)


def test_an_error_of_a_library_is_the_cause_of_ours():
    with pytest.raises(ConversionError, match=r"closed image.*register_route") as caught:
        ovtensor.to_numpy(closed_picture())
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_is_no_fault_of_the_object_comes_out_as_it_is(error):
    class Box:
        pass

    def route(box):
        raise error

    ovtensor.register_route(Box, route)
    with pytest.raises(error):
        ovtensor.to_numpy(Box())


def test_an_error_of_a_registered_route_is_the_cause_of_ours():
    class Box:
        pass

    ovtensor.register_route(Box, lambda box: box.missing)
    with pytest.raises(ConversionError, match=r"Box.*AttributeError.*missing") as caught:
        ovtensor.to_numpy(Box())
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("tree", TREE)
def test_trees_that_contain_themselves_are_refused(tree):
    mapping = {"x": torch.ones(1)}
    mapping["self"] = mapping
    for x in (mapping, itself(), deep(10_000), collections.deque([itself()])):
        with pytest.raises(ConversionError, match="contains itself"):
            TREE[tree](x)


class Pair(tuple):
    __slots__ = ()

    def __new__(cls, first, second):
        return super().__new__(cls, (first, second))


class Guarded(dict):
    def __setitem__(self, key, value):
        raise PermissionError(key)


@pytest.mark.parametrize("tree", TREE)
@pytest.mark.parametrize(
    "x", [Pair(torch.ones(1), 2), Guarded(a=torch.ones(1))], ids=["tuple", "mapping"]
)
def test_containers_that_cannot_be_made_anew_are_refused(x, tree):
    with pytest.raises(ConversionError, match=r"cannot be made anew.*one by one"):
        TREE[tree]([x])


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "", 12345, object(), "xpu", ["cpu"]])
def test_a_device_that_is_none_or_is_not_here_is_refused(device):
    for x in (np.ones(2), torch.ones(2), 1.5):
        with pytest.raises(InputError, match=r"device=.*such as 'cpu'"):
            ovtensor.to_torch(x, device=device)


TEXTS = [
    ["\ud800"], ["a\0b"], [""], ["", ""], ["\ufffd", ""], [["a", "ü"], ["語", "\U0001f600"]],
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_text_arrives_as_it_was_or_is_refused(text):
    x = np.array(text)
    try:
        out = ovtensor.to_openvino(x)
    except ConversionError:
        assert text == ["\ud800"]
        return
    np.testing.assert_array_equal(ovtensor.to_numpy(out), x)


def test_text_of_openvino_that_is_no_unicode_is_refused():
    x = ov.Tensor(ov.Type.string, ov.Shape([1]))
    x.bytes_data = np.array([b"\xff\xfe"])
    for to in TO.values():
        with pytest.raises(ConversionError):
            to(x)


@pytest.mark.filterwarnings("ignore")
def test_sparse_tensors_of_tensorflow_in_any_order(need):
    tf = need("tensorflow")
    unsorted = tf.SparseTensor([[1, 0], [0, 1]], [1.0, 2.0], [2, 2])
    assert ovtensor.to_numpy(unsorted).tolist() == [[0, 2], [1, 0]]
    for wrong in (
        tf.SparseTensor([[0, 0], [0, 0]], [1.0, 2.0], [2, 2]),
        tf.SparseTensor([[5, 5]], [1.0], [2, 2]),
    ):
        with pytest.raises(ConversionError, match="SparseTensor"):
            ovtensor.to_numpy(wrong)


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("code", np.typecodes["AllInteger"] + "?efd")
def test_every_code_of_numpy_arrives(code, to):
    """C's long and long long are one type to NumPy, and not to the others."""
    x = np.ones(2, code)
    out = TO[to](x, copy=False)
    np.testing.assert_array_equal(ovtensor.to_numpy(out), x)
    assert ovtensor.to_numpy(out).dtype == x.dtype


# --- small


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (range(5), [0, 1, 2, 3, 4]), (range(0), []), (range(5, 0, -2), [5, 3, 1]),
        (range(2**63, 2**63 + 2), [2**63, 2**63 + 1]), ([range(2), range(2)], [[0, 1], [0, 1]]),
        (collections.deque([1, 2.5]), [1, 2.5]), (collections.deque(), []),
    ],
    ids=repr,
)  # fmt: skip
def test_ranges_and_deques_have_values(x, wanted):
    assert ovtensor.to_numpy(x).tolist() == wanted
    assert ovtensor.to_torch(x).tolist() == wanted
    assert ovtensor.describe(x).has_data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("as_parameter", [False, True])
def test_nf4_weights_of_torchao_have_values(need, as_parameter):
    need("torchao")
    module = need("torchao", "torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    x = module.to_nf4(torch.linspace(-1, 1, 64 * 64).reshape(64, 64), 64, 4)
    x = torch.nn.Parameter(x, requires_grad=False) if as_parameter else x
    out = ovtensor.to_numpy(x)
    np.testing.assert_array_equal(out, x.get_original_weight().detach().numpy())
    assert out.shape == (64, 64)
    assert np.abs(out.ravel() - np.linspace(-1, 1, 64 * 64)).max() < 0.2


class Interface:
    def __init__(self, array):
        self.array = array

    @property
    def __array_interface__(self):
        return self.array.__array_interface__


@pytest.mark.parametrize(
    "x",
    [
        memoryview(np.zeros(2, ">f4")), memoryview(np.zeros(2, "<f4")),
        memoryview(np.zeros(2, [("a", "i4")])), memoryview(bytearray(4)), memoryview(b"ab"),
        Interface(np.zeros(2, ">i8")), Interface(np.zeros(2)), Interface(np.zeros(2, "M8[s]")),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'format', '')}",
)  # fmt: skip
def test_zero_copy_is_told_truly(x):
    try:
        ovtensor.to_numpy(x, copy=False)
        shares = True
    except ConversionError:
        shares = False
    assert ovtensor.describe(x).zero_copy is shares


@pytest.mark.parametrize(
    ("x", "advice"),
    [
        (None, "check what gave it"),
        (torch.nn.Linear(1, 1), r"tree_to_numpy\(x\.state_dict\(\)\)"),
        ({"a": 1}, "convert what it contains with tree_to_numpy"),
        (object(), r"register_route$"),
        ("a", r"register_route$"),
    ],
    ids=["None", "module", "dict", "object", "text"],
)
def test_advice_is_about_what_was_given(x, advice):
    with pytest.raises(ConversionError, match=f"is no tensor, array or number; .*{advice}"):
        ovtensor.to_numpy(x)


class Late:
    """Speaks a protocol from its `__init__` on, which its class says nothing of."""

    def __init__(self, name, value):
        setattr(self, name, value)
        if name == "__dlpack__":
            self.__dlpack_device__ = lambda: (1, 0)


ARRAY = np.arange(3.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("__array_interface__", ARRAY.__array_interface__),
        ("__array__", lambda dtype=None, copy=None: ARRAY),
        ("__dlpack__", ARRAY.__dlpack__),
    ],
)
def test_protocols_of_an_instance_are_spoken_as_numpy_does(name, value):
    x = Late(name, value)
    for to in TO.values():
        np.testing.assert_array_equal(ovtensor.to_numpy(to(x)), ARRAY)
    assert ovtensor.describe(x).has_data
    assert ovtensor.tree_to_torch({"x": [x]})["x"][0].tolist() == ARRAY.tolist()
    with pytest.raises(ConversionError, match="Late is no tensor"):
        ovtensor.to_numpy(Late("other", 1))
    if name != "__dlpack__":
        np.testing.assert_array_equal(np.asarray(x), ARRAY)


class Delegates:
    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_objects_that_delegate_are_spoken_to_as_numpy_does():
    assert ovtensor.to_numpy(Delegates(ARRAY)).tolist() == ARRAY.tolist()
    with pytest.raises(OvtensorError):
        ovtensor.to_numpy(Delegates(None))


def test_a_dataless_tensor_in_a_table_is_still_that():
    with pytest.raises(DatalessTensorError):
        ovtensor.to_numpy([[1.0], torch.ones(1, device="meta")])
