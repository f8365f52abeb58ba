"""Which precision and device a backend gets, on machines that are not this one too."""

from __future__ import annotations

import pytest

import ovtensor
from engine_graphs import properties
from ovtensor import Backend
from ovtensor.engine import devices
from ovtensor.engine.backend import resolve
from ovtensor.engine.devices import properties_of
from ovtensor.errors import BackendError, MissingExtraError


class Machine:
    """An OpenVINO that has devices which are not here; they have to be made up."""

    def __init__(self, capabilities: dict[str, set[str]]) -> None:
        self.capabilities = capabilities

    @property
    def available_devices(self) -> list[str]:
        return [*self.capabilities]

    def get_property(self, device: str, name: str) -> object:
        able = self.capabilities.get(device) or self.capabilities[f"{device}.0"]
        told = {
            "OPTIMIZATION_CAPABILITIES": able,
            "FULL_DEVICE_NAME": "a device of this test",
        }
        return told[name]


@pytest.fixture
def machine(monkeypatch):
    """Devices by their names, with what each can compute in."""
    here = Machine({"CPU": {"FP32"}, "GPU.0": {"FP32", "FP16"}, "GPU.1": {"FP32", "FP16"}})
    monkeypatch.setattr(devices, "core", lambda: here)
    return here.capabilities


@pytest.mark.parametrize(
    ("device", "capabilities", "native", "wide"),
    [
        ("CPU", {"FP32", "BF16"}, "bf16", "f32"),
        ("CPU", {"FP32"}, "f32", "f32"),
        ("GPU", {"FP32", "FP16"}, "f16", "f32"),
        ("GPU.1", {"FP32"}, "f32", "f32"),
        ("NPU", {"FP16"}, "f16", "f16"),
        ("AUTO:GPU,CPU", set(), "f32", "f32"),
    ],
)
def test_auto_precision(device, capabilities, native, wide, machine):
    if capabilities:
        machine[device] = capabilities
    backend = Backend("openvino", device)
    assert resolve(backend).precision == native
    settled = resolve(backend, prefer_f32=True)
    assert settled.precision == wide
    # A device whose own default is f16 computes a VAE in f32 only if it is told to.
    assert properties(settled)["INFERENCE_PRECISION_HINT"] == wide


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
def test_shapes_are_static_where_a_gpu_may_compute(device, static, machine):
    if device == "NPU":  # else AUTO could run on it, too
        machine[device] = {"FP16"}
    backend = Backend("openvino", device)
    assert resolve(backend).static_shapes is static
    for wanted in (False, True):
        backend = Backend("openvino", device, static_shapes=wanted)
        assert resolve(backend).static_shapes is wanted


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


def test_a_precision_that_a_device_lacks(machine):
    machine["NPU"] = {"FP16", "INT8"}
    with pytest.raises(
        BackendError, match=r'NPU \(a device .*\) does not execute f32; it has "f16"'
    ):
        resolve(Backend("openvino", "NPU", precision="f32"), prefer_f32=True)


def test_a_package_that_is_missing_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r'needs nncf.*pip install "ovtensor\[int8\]"'):
        ovtensor.sdxl_pipeline("no such folder", unet=Backend("openvino", weights="int8"))


def test_virtual_devices_say_nothing_of_themselves():
    assert properties_of("AUTO:CPU") == {}
    assert properties_of("CPU")["FULL_DEVICE_NAME"]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("device", ["NPU", "GPU.2", "AUTO:NPU,CPU", "MULTI:CPU,TPU(2)"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(
        BackendError, match=r"has no device '(NPU|GPU\.2|TPU)' here; it has \"CPU\""
    ) as caught:
        resolve(Backend("openvino", device))
    assert caught.value.device in ("NPU", "GPU.2", "TPU")
