"""Which precision and device a backend gets, on machines that are not this one too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import ovtensor
from ovtensor import Backend
from ovtensor.engine import backend as spec
from ovtensor.engine.compiled import properties
from ovtensor.errors import BackendError, MissingExtraError


@pytest.fixture
def devices(monkeypatch):
    """What devices say of themselves; those that are not here have to be made up."""
    told: dict[str, set[str]] = {}
    monkeypatch.setattr(spec, "_device_capabilities", lambda name: frozenset(told[name]))
    monkeypatch.setattr(spec, "_device_name", lambda _name: "a device of this test")
    return told


@pytest.mark.parametrize(
    ("device", "capabilities", "unet", "vae"),
    [
        ("CPU", {"FP32", "BF16"}, "bf16", "f32"),
        ("CPU", {"FP32"}, "f32", "f32"),
        ("GPU", {"FP32", "FP16"}, "f16", "f32"),
        ("GPU.1", {"FP32"}, "f32", "f32"),
        ("NPU", {"FP16"}, "f16", "f16"),
        ("AUTO:GPU,CPU", set(), "f32", "f32"),
    ],
)
def test_auto_precision(device, capabilities, unet, vae, devices):
    devices[device] = capabilities
    backend = Backend("openvino", device)
    assert spec.resolve(backend, "unet").precision == unet
    settled = spec.resolve(backend, "vae")
    assert settled.precision == vae
    # A device whose own default is f16 computes the VAE in f32 only if it is told to.
    assert properties(settled)["INFERENCE_PRECISION_HINT"] == vae


@pytest.mark.parametrize(
    ("device", "static"),
    [
        ("CPU", False),
        ("GPU", True),
        ("GPU.1", True),
        ("NPU", True),
        ("AUTO", True),
        ("AUTO:CPU", False),
        ("AUTO:-GPU", False),
        ("AUTO:-GPU.0", True),
        ("AUTO:-CPU", True),
        ("HETERO:GPU,CPU", True),
        ("MULTI:CPU(2),GPU.1(4)", True),
    ],
)
def test_shapes_are_static_where_a_gpu_may_compute(device, static, devices, monkeypatch):
    here = SimpleNamespace(available_devices=["CPU", "GPU.0", "GPU.1"])
    monkeypatch.setattr(spec, "core", lambda: here)
    devices[device] = {"FP32", "FP16"}
    backend = Backend("openvino", device)
    assert spec.resolve(backend, "unet").static_shapes is static
    for wanted in (False, True):
        backend = Backend("openvino", device, static_shapes=wanted)
        assert spec.resolve(backend, "unet").static_shapes is wanted


def test_auto_does_not_begin_on_another_device():
    auto = Backend("openvino", "AUTO:GPU,CPU", precision="f32")
    assert properties(auto)["ENABLE_STARTUP_FALLBACK"] is False
    auto = Backend(
        "openvino", "AUTO", precision="f32", properties={"ENABLE_STARTUP_FALLBACK": True}
    )
    assert properties(auto)["ENABLE_STARTUP_FALLBACK"] is True
    assert "ENABLE_STARTUP_FALLBACK" not in properties(Backend("openvino", precision="f32"))


def test_properties_of_the_caller():
    backend = Backend("openvino", precision="f32", properties={"INFERENCE_NUM_THREADS": 1})
    assert properties(backend) == {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    for given, message in [
        ({"INFERENCE_PRECISION_HINT": "bf16"}, "is what `precision` says"),
        ({1: 2}, "by their names"),
        (3, "by their names"),
        ([("NUM_STREAMS", 1)], "by their names"),
    ]:
        with pytest.raises(BackendError, match=message):
            Backend("openvino", precision="f32", properties=given)
    with pytest.raises(BackendError, match="are OpenVINO's"):
        Backend("torch", properties={"NUM_STREAMS": 1})


def test_a_precision_that_a_device_lacks(devices):
    devices["NPU"] = {"FP16", "INT8"}
    with pytest.raises(
        BackendError, match=r'NPU \(a device .*\) does not execute f32; it has "f16"'
    ):
        spec.resolve(Backend("openvino", "NPU", precision="f32"), "vae")


def test_a_package_that_is_missing_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r'needs nncf.*pip install "ovtensor\[int8\]"'):
        ovtensor.sdxl_pipeline("no such folder", unet=Backend("openvino", weights="int8"))


def test_virtual_devices_say_nothing_of_themselves():
    assert spec.device_properties("AUTO:CPU") == {}
    assert spec.device_properties("CPU")["FULL_DEVICE_NAME"]
