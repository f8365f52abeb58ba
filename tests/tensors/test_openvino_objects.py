"""OpenVINO tensors of every element type, results, constants, and objects without values."""

from __future__ import annotations

import gc
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

import ovtensor
from ovtensor.errors import ConversionError, DatalessTensorError
from ovtensor.tensors.dtypes import BY_OPENVINO
from ovtensor.tensors.host import Memory
from ovtensor.tensors.packed import pack
from ovtensor.tensors.routes import openvino_
from ovtensor.tensors.routes.openvino_objects import ROUTE

TYPES = sorted(set(BY_OPENVINO) - {"string"})


def tensor(name, shape):
    """Make a tensor whose elements count through the codes of its type."""
    element = BY_OPENVINO[name]
    count = int(np.prod(shape))
    codes = np.arange(count) % min(1 << min(element.bits, 16), 100)
    if name == "boolean":
        codes %= 2
    if element.packed:
        out = ov.Tensor(getattr(ov.Type, name), ov.Shape(shape))
        out.data.view(np.uint8)[...] = pack(codes, element)
        return out, codes.reshape(shape)
    carriers = codes.astype(element.carrier).reshape(shape)
    return ov.Tensor(carriers, ov.Shape(shape), getattr(ov.Type, name)), carriers


def decoded(codes, element):
    """Tell what the codes mean, by ml_dtypes."""
    import ml_dtypes

    if element.name == "nf4":
        return None
    if element.name == "int4":
        return np.where(codes > 7, codes - 16, codes)
    if element.native and not element.integral:
        return codes.astype(element.carrier).view(getattr(ml_dtypes, element.native)).astype("f4")
    return codes


def test_every_type_is_known(monkeypatch):
    theirs = {name for name in dir(ov.Type) if isinstance(getattr(ov.Type, name), ov.Type)}
    assert theirs - {"dynamic"} == set(BY_OPENVINO)
    monkeypatch.delitem(openvino_._ELEMENT, ov.Type.bf16)  # as a later one is not
    with pytest.raises(ConversionError, match=r"Tensor .*bf16.*element type is not known"):
        ovtensor.to_numpy(tensor("bf16", (2,))[0])


def test_numpy_has_no_nf4():
    x, _ = tensor("nf4", (2,))
    with pytest.raises(ConversionError, match=r"NumPy has no type for nf4.*to get float32"):
        ovtensor.to_numpy(x, dtype="native")


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (2, 1, 9), ()], ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_every_element_type(name, shape):
    element = BY_OPENVINO[name]
    x, codes = tensor(name, shape)
    out = ovtensor.to_numpy(x)
    assert out.dtype == np.dtype(element.default)
    assert out.shape == shape
    if (wanted := decoded(codes, element)) is not None:
        np.testing.assert_array_equal(out, wanted)
    back = ovtensor.to_openvino(out, dtype=getattr(ov.Type, name), casting="unsafe")
    assert back.element_type == x.element_type
    np.testing.assert_array_equal(ovtensor.to_numpy(back), out)


@pytest.mark.parametrize("name", sorted(set(TYPES) - {n for n in TYPES if BY_OPENVINO[n].packed}))
def test_openvino_to_torch_and_back_is_exact_and_shares_memory(name):
    x, carriers = tensor(name, (3, 5))
    y = ovtensor.to_torch(x, copy=False)
    assert str(y.dtype) == f"torch.{BY_OPENVINO[name].torch}"
    assert y.data_ptr() == x.data.ctypes.data
    z = ovtensor.to_openvino(y, copy=False)
    assert z.element_type == x.element_type
    assert z.data.ctypes.data == y.data_ptr()
    np.testing.assert_array_equal(z.data.view(carriers.dtype), carriers)


def test_region_of_interest():
    for name in ("f32", "bf16", "f8e4m3"):
        x, _carriers = tensor(name, (4, 6))
        roi = ov.Tensor(x, ov.Coordinate([1, 2]), ov.Coordinate([3, 5]))
        whole = ovtensor.to_numpy(x)
        np.testing.assert_array_equal(ovtensor.to_numpy(roi), whole[1:3, 2:5])
        assert ovtensor.to_torch(roi, copy=False).stride() == (6, 1)
        with pytest.raises(ConversionError, match=r"copy=False.*not C-contiguous"):
            ovtensor.to_openvino(roi, copy=False)
        assert ovtensor.to_openvino(roi).is_continuous()


def test_strings():
    x = ov.Tensor(np.array([["a", "é"]]))
    np.testing.assert_array_equal(ovtensor.to_numpy(x), [["a", "é"]])
    back = ovtensor.to_openvino(np.array([["a", "é"]]))
    np.testing.assert_array_equal(back.str_data, [["a", "é"]])
    with pytest.raises(ConversionError, match="PyTorch has no str"):
        ovtensor.to_torch(x)


@pytest.fixture(scope="module")
def compiled():
    x = ops.parameter([-1, 4], np.float32, name="x")
    outputs = [
        ops.result(ops.convert(x, "bf16")),
        ops.result(ops.add(x, np.float32(1))),
        ops.result(ops.convert(x, "f8e4m3")),
    ]
    return ov.Core().compile_model(ov.Model(outputs, [x]), "CPU")


@pytest.fixture(scope="module")
def single():
    x = ops.parameter([-1, 4], np.float32, name="x")
    model = ov.Model([ops.result(ops.convert(x, "bf16"))], [x])
    return ov.Core().compile_model(model, "CPU")


VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize("share", [False, True])
def test_results(compiled, single, share):
    request = compiled.create_infer_request()
    results = request.infer(VALUES, share_outputs=share)
    with pytest.raises(ConversionError, match=r"3 outputs.*tree_to_numpy"):
        ovtensor.to_numpy(results)
    tree = ovtensor.tree_to_numpy(results)
    assert list(tree) == list(results)
    for array, wanted in zip(tree.values(), (VALUES, VALUES + 1, VALUES), strict=True):
        np.testing.assert_array_equal(array, wanted)
        assert array.dtype == np.float32
    torches = ovtensor.tree_to_torch(results)
    assert [str(t.dtype) for t in torches.values()] == [
        "torch.bfloat16", "torch.float32", "torch.float8_e4m3fn",
    ]  # fmt: skip
    only = single.create_infer_request().infer(VALUES, share_outputs=share)
    np.testing.assert_array_equal(ovtensor.to_numpy(only), VALUES)
    assert ovtensor.describe(only).shape == (2, 4)


def test_memory_of_a_request_is_copied_unless_asked(compiled):
    request = compiled.create_infer_request()
    shared = request.infer(VALUES, share_outputs=True)[1]
    for given in (shared, shared[1:], request.get_output_tensor(1), request.get_tensor(
            compiled.outputs[1]).data):  # fmt: skip
        assert ovtensor.describe(given).owner == "borrowed"
    tensor = request.get_output_tensor(1)
    kept, view = ovtensor.to_numpy(shared), ovtensor.to_numpy(tensor, copy=False)
    as_torch, as_openvino = ovtensor.to_torch(tensor), ovtensor.to_openvino(shared)
    request.infer(VALUES * 10, share_outputs=True)
    np.testing.assert_array_equal(kept, VALUES + 1)
    np.testing.assert_array_equal(as_torch, VALUES + 1)
    np.testing.assert_array_equal(as_openvino.data, VALUES + 1)
    np.testing.assert_array_equal(view, VALUES * 10 + 1)


def test_copies_outlive_a_larger_inference_and_another_shape(compiled):
    """OpenVINO frees the memory of the smaller result."""
    request = compiled.create_infer_request()
    shared = request.infer(VALUES, share_outputs=True)[1]
    kept = [
        convert(given)
        for convert in (ovtensor.to_numpy, ovtensor.to_torch, ovtensor.to_openvino)
        for given in (shared, request.get_output_tensor(1))
    ]
    tree = ovtensor.tree_to_numpy(request.results)
    narrow = ovtensor.tree_to_torch(request.infer(VALUES, share_outputs=True))
    reshaped = ov.Tensor(np.ones(4, np.float32))
    before = ovtensor.to_numpy(reshaped)
    reshaped.shape = [1 << 20]
    request.infer(np.zeros((1 << 12, 4), np.float32), share_outputs=True)
    for copy in kept:
        np.testing.assert_array_equal(ovtensor.to_numpy(copy), VALUES + 1)
    np.testing.assert_array_equal(list(tree.values())[1], VALUES + 1)
    for copy, wanted in zip(narrow.values(), (VALUES, VALUES + 1, VALUES), strict=True):
        np.testing.assert_array_equal(ovtensor.to_numpy(copy), wanted)
    np.testing.assert_array_equal(before, [1, 1, 1, 1])


def test_a_constant_of_a_region_of_interest():
    """OpenVINO ignores the region's strides; what to_openvino gives has none."""
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    roi = ov.Tensor(ov.Tensor(whole), ov.Coordinate([1, 2]), ov.Coordinate([3, 5]))
    garbled = ov.op.Constant(roi, shared_memory=False)
    assert not np.array_equal(garbled.data, whole[1:3, 2:5])
    constant = ov.op.Constant(ovtensor.to_openvino(roi), shared_memory=False)
    np.testing.assert_array_equal(ovtensor.to_numpy(constant), whole[1:3, 2:5])


def test_shared_bfloat16_results_are_seen_through(compiled):
    shared = compiled.create_infer_request().infer(VALUES, share_outputs=True)[0]
    assert shared.dtype == np.float16  # what OpenVINO says
    np.testing.assert_array_equal(ovtensor.to_numpy(shared), VALUES)
    assert ovtensor.to_torch(shared).dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["f16", "f32", "bf16", "u4", "u1", "i4", "nf4", "i64"])
def test_constants(name):
    x, _ = tensor(name, (2, 5))
    constant = ops.constant(x)
    np.testing.assert_array_equal(ovtensor.to_numpy(constant), ovtensor.to_numpy(x))
    if not BY_OPENVINO[name].packed:
        view = ovtensor.to_numpy(constant, copy=False, dtype="native")
        alive = weakref.ref(constant)
        del constant
        gc.collect()
        assert alive() is not None  # the view keeps it
        wanted = ovtensor.to_numpy(x)
        np.testing.assert_array_equal(view.astype(wanted.dtype), wanted)


def test_objects_that_name_who_has_the_values(compiled):
    request = compiled.create_infer_request()
    model = compiled.get_runtime_model()
    cases = [
        (compiled.outputs[0], r"ConstOutput \(dtype bf16\).*result\[port\]"),
        (model.get_parameters()[0].output(0), "a port names a tensor"),
        (model.get_results()[0].input(0), "a port names a tensor"),
        (model.get_parameters()[0], "a port names a tensor"),
        (request, r"InferRequest.*get_output_tensor"),
        (compiled, r"CompiledModel.*compiled_model\(inputs\)"),
        (model, r"Model.*compile_model"),
    ]
    for x, text in cases:
        with pytest.raises(DatalessTensorError, match=text):
            ovtensor.to_numpy(x)
        assert ovtensor.tree_to_numpy([x])[0] is x


class Remote:
    """Has what a remote tensor has; tests/test_openvino_gpu.py takes those of a device."""

    def __init__(self, source):
        self.source = source

    def get_shape(self):
        return self.source.shape

    def get_byte_size(self):
        return self.source.byte_size

    def get_device_name(self):
        return "GPU.0"

    def copy_to(self, target):
        self.source.copy_to(target)


class Careless(Remote):
    def copy_to(self, target):
        pass


class Lost(Remote):
    def copy_to(self, target):
        raise RuntimeError("the device is lost")


def test_remote_tensors_have_what_the_route_asks():
    for real in (ov.RemoteTensor, ov.VASurfaceTensor):
        assert ovtensor.tensors.registry.route_for(real) is ROUTE
        assert {"get_shape", "get_byte_size", "get_device_name", "copy_to"} <= set(dir(real))
        # If this fails a remote tensor tells its type, and nobody has to guess.
        assert not {"get_element_type", "element_type"} & set(dir(real))
    assert "target_tensor: openvino._pyopenvino.Tensor" in ov.RemoteTensor.copy_to.__doc__


@pytest.mark.parametrize("name", TYPES)
def test_remote_tensors(name, monkeypatch):
    x, _ = tensor(name, (3, 7))
    made = []

    def recorded(*given):
        made.append(ov.Tensor(*given))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(openvino_, "openvino", SimpleNamespace(Tensor=recorded))
        found = ROUTE.read(Remote(x))
    assert {target.byte_size for target in made} == {x.byte_size}  # wider ones may not fit
    assert found.element is BY_OPENVINO[name]
    assert found.memory is Memory.FRESH
    with pytest.raises(ConversionError, match="copy=False"):
        ovtensor.to_numpy(found, copy=False)
    np.testing.assert_array_equal(ovtensor.to_numpy(found), ovtensor.to_numpy(x))
    info = ROUTE.describe(Remote(x))
    assert (info.shape, info.device) == ((3, 7), "GPU.0")
    assert (info.has_data, info.zero_copy) == (True, False)


def test_remote_tensors_that_cannot_be_told():
    x, _ = tensor("bf16", (2, 3))
    advice = r"host = openvino\.Tensor\(element_type, .*remote\.copy_to\(host\)"
    for made, text in (
        (Careless, "Careless of shape \\(2, 3\\) does not tell its element type"),
        (Lost, "cannot be copied \\(the device is lost\\)"),
    ):
        with pytest.raises(ConversionError, match=f"{text}.*{advice}"):
            ROUTE.read(made(x))


class Unreadable:
    """An ``openvino.Tensor`` as a request hands it out for a remote tensor."""

    def __init__(self, source):
        self.element_type, self.shape, self.source = source.element_type, source.shape, source
        self.size, self.byte_size = source.size, source.byte_size

    @property
    def data(self):
        raise RuntimeError("Not Implemented")

    def copy_to(self, target):
        if self.source is None:
            raise RuntimeError("the device is lost")
        self.source.copy_to(target)


@pytest.mark.parametrize("name", ["f32", "bf16", "u4"])
def test_tensors_without_data(name):
    x, _ = tensor(name, (2, 8))
    unreadable = Unreadable(x)
    assert openvino_.ROUTE.quick(unreadable) is None
    found = openvino_.ROUTE.read(unreadable)
    assert found.memory is Memory.FRESH
    np.testing.assert_array_equal(ovtensor.to_numpy(found), ovtensor.to_numpy(x))
    info = openvino_.ROUTE.describe(unreadable)
    assert (info.shape, info.device, info.zero_copy) == ((2, 8), None, False)
    unreadable.source = None
    with pytest.raises(ConversionError, match=r"not in host memory .*the device is lost"):
        openvino_.ROUTE.read(unreadable)


def test_what_openvino_itself_gets_wrong_is_still_so():
    """If one of these fails OpenVINO has changed, and a guard may be retired."""
    x, _ = tensor("bf16", (3,))
    assert x.data.dtype == np.float16
    assert np.asarray(x).dtype == object
    assert not hasattr(x, "__dlpack__")
    big = ov.Tensor(np.ones(1, ">f4"))
    assert big.data[0] != 1
    assert ovtensor.to_openvino(np.ones(1, ">f4")).data[0] == 1
    constant = ops.constant(np.ones(1, np.float16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.asarray(constant).dtype != np.float16


def test_floats_become_the_bf16_that_openvino_makes_of_them(single):
    request = single.create_infer_request()
    request.infer(ovtensor.to_openvino(VALUES))
    out = request.get_output_tensor()
    np.testing.assert_array_equal(ovtensor.to_numpy(out), VALUES)
    given = ovtensor.to_openvino(VALUES, dtype="bfloat16")
    assert given.element_type == ov.Type.bf16
    np.testing.assert_array_equal(given.data.view(np.uint16), out.data.view(np.uint16))


def test_a_bf16_input_takes_what_to_openvino_makes():
    x = ops.parameter([2, 4], ov.Type.bf16, name="x")
    model = ov.Core().compile_model(ov.Model([ops.result(ops.convert(x, "f32"))], [x]), "CPU")
    garbled = model(VALUES.astype(np.float16))[0]
    assert not np.array_equal(garbled, VALUES)  # OpenVINO writes float16 bits
    np.testing.assert_array_equal(model(ovtensor.to_openvino(VALUES, dtype="bfloat16"))[0], VALUES)
    given = torch.from_numpy(VALUES).bfloat16()
    np.testing.assert_array_equal(model(ovtensor.to_openvino(given, copy=False))[0], VALUES)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.ones(2, np.complex64), "OpenVINO has no complex64.*complex"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), "mask.*filled"),
    ],
    ids=["complex", "masked"],
)
def test_what_openvino_cannot_hold(x, text):
    with pytest.raises(ConversionError, match=text):
        ovtensor.to_openvino(x)


def test_fnuz_floats_come_as_float32():
    x = torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fnuz)
    out = ovtensor.to_openvino(x)
    assert out.element_type == ov.Type.f32
    np.testing.assert_array_equal(out.data, [1.5, -2])


def test_packing_needs_a_copy():
    with pytest.raises(ConversionError, match="drop copy=False"):
        ovtensor.to_openvino(np.arange(4, dtype=np.uint8), dtype="uint4", copy=False)
