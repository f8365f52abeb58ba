"""Nested structures: kept, with the tensors in them converted."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import fractions
import io
import mmap
import pathlib
import re
import types
import unittest.mock
import uuid
import warnings

import numpy as np
import openvino as ov
import pytest
import torch
from PIL import Image

import ovtensor
from ovtensor.errors import ConversionError

CONVERT = {
    "numpy": (ovtensor.tree_to_numpy, np.ndarray),
    "torch": (ovtensor.tree_to_torch, torch.Tensor),
    "openvino": (ovtensor.tree_to_openvino, ov.Tensor),
}
Point = collections.namedtuple("Point", "x label")


@dataclasses.dataclass(frozen=True)
class Frozen:
    latents: object
    steps: int = 4
    hidden: object = dataclasses.field(default=None, init=False)


@dataclasses.dataclass(slots=True)
class Slotted:
    latents: object


class Names(list):
    pass


@pytest.fixture(params=CONVERT)
def convert(request):
    return CONVERT[request.param]


def test_structure_is_kept_and_the_rest_untouched(convert):
    function, wanted = convert
    x, picture, marker = torch.ones(2, 3), Image.new("L", (1, 1)), object()
    default = collections.defaultdict(list, a=x)
    tree = {
        "list": [x, 1, "text", None, 2.5, True, b"raw", picture, marker, torch.float32],
        "tuple": (x, np.ones(2), ov.Tensor(np.ones(2))),
        "named": Point(x, "here"),
        "frozen": Frozen(x),
        "slotted": Slotted([x]),
        "ordered": collections.OrderedDict(b=x, a=1),
        "default": default,
        "proxy": types.MappingProxyType({"a": x}),
        "names": Names([x]),
        "shape": x.shape,
        7: {"deep": [[({"er": x},)]]},
    }
    out = function(tree)
    assert list(out) == list(tree)
    assert isinstance(out["list"][0], wanted)
    for new, old in zip(out["list"][1:], tree["list"][1:], strict=True):
        assert new is old
    assert [type(item) for item in out["tuple"]] == [wanted] * 3
    assert type(out["named"]) is Point
    assert isinstance(out["named"].x, wanted)
    assert type(out["frozen"]) is Frozen
    assert isinstance(out["frozen"].latents, wanted)
    assert (out["frozen"].steps, out["frozen"].hidden) == (4, None)
    assert isinstance(out["slotted"].latents[0], wanted)
    assert list(out["ordered"]) == ["b", "a"]
    assert type(out["ordered"]) is collections.OrderedDict
    assert out["default"]["missing"] == []
    assert isinstance(out["default"]["a"], wanted)
    assert isinstance(out["proxy"]["a"], wanted)
    assert type(out["names"]) is Names
    assert isinstance(out["names"][0], wanted)
    assert out["shape"] is tree["shape"]
    assert isinstance(out[7]["deep"][0][0][0]["er"], wanted)
    assert tree["list"][0] is x
    assert tree["frozen"].latents is x
    assert "missing" not in default


def test_model_outputs(convert):
    function, wanted = convert
    from diffusers.models.autoencoders.vae import DecoderOutput
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    out = function(DecoderOutput(sample=torch.ones(1, 2)))
    assert type(out) is DecoderOutput
    assert isinstance(out.sample, wanted)
    assert isinstance(out["sample"], wanted)
    given = BaseModelOutputWithPooling(
        last_hidden_state=torch.ones(1, 2), hidden_states=(torch.ones(1), torch.zeros(1))
    )
    out = function(given)
    assert type(out) is BaseModelOutputWithPooling
    assert out.pooler_output is None
    assert isinstance(out.last_hidden_state, wanted)
    assert [type(item) for item in out.hidden_states] == [wanted] * 2
    assert isinstance(given.last_hidden_state, torch.Tensor)


def test_return_types_of_torch():
    out = ovtensor.tree_to_numpy(torch.ones(3).sort())
    assert type(out).__name__ == "sort"
    assert isinstance(out.values, np.ndarray)


@pytest.mark.filterwarnings("ignore")
def test_tensordicts(need, convert):
    tensordict = need("tensordict")
    function, wanted = convert
    tree = tensordict.TensorDict({"a": torch.ones(2, 3), "b": {"c": torch.zeros(2)}}, [2])
    tree["text"] = "a caption"
    tree.lock_()
    out = function(tree)
    assert type(out) is (tensordict.TensorDict if wanted is torch.Tensor else dict)
    assert isinstance(out["a"], wanted)
    assert isinstance(out["b"]["c"], wanted)
    assert out["text"] == "a caption"


@pytest.mark.filterwarnings("ignore")
def test_tensordicts_stay_what_they_are_for_torch(need):
    tensordict = need("tensordict")
    tree = tensordict.TensorDict(
        {"a": torch.nn.Parameter(torch.ones(2, 3)), "b": {"c": torch.zeros(2)}}, [2], names=["n"]
    )
    out = ovtensor.tree_to_torch([tree], dtype=torch.float16)[0]
    assert out.batch_size == (2,)
    assert out.names == ["n"]
    assert out["a"].dtype is out["b", "c"].dtype is torch.float16
    assert type(out["a"]) is torch.Tensor
    assert tree["a"].dtype is tree["b", "c"].dtype is torch.float32
    stacked = ovtensor.tree_to_torch(tensordict.lazy_stack([tree, tree], 1), copy=True)
    assert stacked.batch_size == (2, 2)
    assert stacked["a"].shape == (2, 2, 3)
    stacked["a"].zero_()
    assert (tree["a"] == 1).all()
    moved = ovtensor.tree_to_torch(tree.to("cpu"), device="meta")
    assert moved["a"].device.type == "meta"


@pytest.mark.filterwarnings("ignore")
def test_tensor_classes(need, convert):
    tensordict = need("tensordict")
    function, wanted = convert
    given = tensordict.make_tensordict({"x": torch.ones(2)}, batch_size=[2])
    kind = tensordict.tensorclass(type("Kind", (), {"__annotations__": {"x": torch.Tensor}}))
    out = function(kind.from_tensordict(given))
    assert type(out) is (kind if wanted is torch.Tensor else dict)
    assert isinstance(out.x if wanted is torch.Tensor else out["x"], wanted)


def test_tensors_at_the_root_and_options(convert):
    function, wanted = convert
    x = torch.ones(2)
    assert isinstance(function(x), wanted)
    assert function(5) == 5
    out = function([x], dtype="float16", copy=True)[0]
    assert ovtensor.to_numpy(out).dtype == np.float16


def test_ragged_tensors_part_by_part():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        parts = ovtensor.tree_to_numpy(ragged.unbind())
    assert [part.shape for part in parts] == [(2,), (3,)]


def test_one_bad_tensor_fails_the_tree():
    with pytest.raises(ConversionError, match="meta"):
        ovtensor.tree_to_numpy({"a": [torch.ones(1), torch.ones(1, device="meta")]})


def no_numbers():
    """Make one of each kind that a batch of a data loader may hold beside tensors."""

    class Plain:
        pass

    return [
        "a cat", b"raw", bytearray(b"raw"), None, True, 4, 2.5, 1j, decimal.Decimal(1),
        fractions.Fraction(1, 2), dt.date(2020, 1, 1), dt.timedelta(1),
        dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc), pathlib.Path("a"),
        uuid.UUID(int=1), re.compile("a"), range(3),
        {1, 2}, frozenset([1]), Plain(), Plain, len, torch.nn.Linear(1, 1), torch.float32,
        torch.device("cpu"), torch.Generator(), np.dtype("f4"), np.float32(1), np.str_("a"),
        np.datetime64("2020"), ov.Type.f32, slice(1), ..., mmap.mmap(-1, 8), io.BytesIO(b"a"),
        Image.new("L", (1, 1)), unittest.mock.Mock(), unittest.mock.MagicMock(),
        # arrays too, if there is no number in them
        np.array(["2020"], "M8[D]"), np.array([1], "m8[s]"), np.array([b"a"]),
        np.array(["a", None], object), np.array([{"a": 1}], object), np.zeros(1, [("a", "i4")]),
        np.array([dt.date(2020, 1, 1)], object), np.array([pathlib.Path("a")]),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_what_is_no_number_stays_as_it_is(convert, dtype):
    function, wanted = convert
    batch = {str(place): item for place, item in enumerate(no_numbers())}
    tree = {"pixel_values": torch.ones(2), **batch, "again": list(batch.values())}
    out = function(tree, dtype=dtype)
    assert isinstance(out["pixel_values"], wanted)
    for place, item in batch.items():
        assert out[place] is item, item
    for new, old in zip(out["again"], batch.values(), strict=True):
        assert new is old


def test_text_goes_where_there_is_text():
    """NumPy and OpenVINO have text, PyTorch has none."""
    text = np.array(["a", "b"])
    for x in (text, ov.Tensor(text)):
        assert isinstance(ovtensor.tree_to_numpy([x])[0], np.ndarray)
        assert isinstance(ovtensor.tree_to_openvino([x])[0], ov.Tensor)
        assert ovtensor.tree_to_torch([x])[0] is x
        for function, _ in CONVERT.values():
            assert function([x], dtype="float32")[0] is x


class Raises:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on another device")


def test_what_has_numbers_does_not_stay_behind(convert):
    """A tensor is never left as it was without a word."""
    function, _ = convert
    objects = np.empty(2, object)
    objects[:] = [torch.ones(1), "a"]
    for x in (objects, np.array([2**70], object), torch.ones(1, device="meta"), Raises()):
        with pytest.raises(ConversionError):
            function({"x": x})


def test_deques_are_containers(convert):
    function, wanted = convert
    tree = collections.deque([torch.ones(1), "a", 3], maxlen=5)
    out = function(tree)
    assert type(out) is collections.deque
    assert out.maxlen == 5
    assert isinstance(out[0], wanted)
    assert list(out)[1:] == ["a", 3]
    assert isinstance(tree[0], torch.Tensor)


@pytest.mark.filterwarnings("ignore")
def test_text_of_tensorflow_stays_as_it_is(need, convert):
    tf = need("tensorflow")
    function, wanted = convert
    x = tf.constant(["a"])
    out = function({"text": x, "numbers": tf.constant([1.0])})
    assert out["text"] is x
    assert isinstance(out["numbers"], wanted)


def test_columns_of_text_and_dates_stay_as_they_are(need, convert):
    function, wanted = convert
    pd, pa, pl = need("pandas"), need("pyarrow"), need("polars")
    stay = [
        pd.Series(["a", None]), pd.Series(pd.to_datetime(["2020"])), pd.Timestamp("2020"), pd.NA,
        pd.DataFrame({"a": [1], "b": ["c"]}), pa.array(["a", None]),
        pa.array([1, None], pa.date32()), pl.Series([1, None], dtype=pl.Date),
    ]  # fmt: skip
    out = function([*stay, pd.Series([1, 2]), pa.array([1, 2]), pl.Series([1, 2])])
    for new, old in zip(out, stay, strict=False):
        assert new is old
    assert [type(x) for x in out[-3:]] == [wanted] * 3
