"""What runs where: the :class:`Backend` of a component, checked against the devices at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch

from ovtensor._core import core
from ovtensor.errors import BackendError, MissingExtraError

Kind: TypeAlias = Literal["torch", "openvino"]
Precision: TypeAlias = Literal["auto", "f32", "bf16", "f16"]

_KINDS = ("torch", "openvino")
_PRECISIONS = ("auto", "f32", "bf16", "f16")
_TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
HALVES = (torch.float16, torch.bfloat16)
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
_VIRTUAL_DEVICES = ("AUTO", "HETERO", "MULTI")
PRECISION_HINT = "INFERENCE_PRECISION_HINT"


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """Where one component of a pipeline runs, and in which precision.

    Parameters
    ----------
    kind : {"torch", "openvino"}
        Who computes.
    device : str
        An OpenVINO device such as ``"CPU"``, ``"GPU"``, ``"GPU.1"``, ``"NPU"`` or
        ``"AUTO:GPU,CPU"``. Only ``"CPU"`` for torch: a torch component stays where it is.
    precision : {"auto", "f32", "bf16", "f16"}
        Precision of the weights and of the arithmetic. For OpenVINO ``"auto"`` is what the device
        executes natively: bf16 on a CPU that has it, f16 on a GPU or NPU, f32 otherwise; the VAE
        is f32 wherever the device can. For torch ``"auto"`` is f32 in a pipeline that the session
        loads, and whatever the module has in a pipeline that the caller loaded.
    weights : {"int8"}, optional
        Compress the weights to eight bits for OpenVINO, through nncf; the arithmetic keeps its
        precision. They take half of the room of bf16, and the pictures change a little.
    static_shapes : bool, optional
        Compile for the shapes of each call instead of once for all shapes, and keep the four most
        recently used. Every new size, batch or number of tokens compiles. By default on a GPU or
        NPU. An NPU takes nothing else. A GPU does, but OpenVINO then begins with kernels for any
        shape and exchanges them for faster ones when these are compiled, some runs later: the
        second picture is not the first one again.
    properties : mapping
        Further properties for ``openvino.Core.compile_model``, by their names. An ``"AUTO"`` device
        is told ``ENABLE_STARTUP_FALLBACK=False`` unless they say otherwise, for it would run the
        first steps on another device than the others.

    Raises
    ------
    BackendError
        If a field cannot be right on any machine. Whether the device exists and has the precision
        is checked when a session is made.
    """

    kind: Kind
    device: str = "CPU"
    precision: Precision = "auto"
    weights: Literal["int8"] | None = None
    static_shapes: bool | None = None
    properties: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise BackendError(
                f"unknown backend {self.kind!r}; the backends are {_listing(_KINDS)}"
            )
        if not isinstance(self.device, str) or not self.device:
            raise BackendError(
                f'a device is a string such as "CPU" or "GPU.0", not {self.device!r}'
            )
        if self.precision not in _PRECISIONS:
            raise BackendError(
                f"unknown precision {self.precision!r}; the precisions are {_listing(_PRECISIONS)}"
            )
        if self.kind == "torch" and self.device.upper() != "CPU":
            raise BackendError(
                f"a torch component stays on the device it is on, so device={self.device!r} says "
                f'nothing; move the pipeline with .to(...) or use kind="openvino"'
            )
        if self.weights not in (None, "int8"):
            raise BackendError(
                f'weights={self.weights!r} is no compression; give "int8", or None for weights in '
                f"the backend's precision"
            )
        if self.kind == "torch" and (self.weights is not None or self.static_shapes):
            raise BackendError(
                'int8 weights and static shapes are OpenVINO\'s; use kind="openvino" for them'
            )
        if not isinstance(self.properties, Mapping) or not all(
            isinstance(name, str) for name in self.properties
        ):
            raise BackendError(
                f"properties are OpenVINO's by their names, such as {{'NUM_STREAMS': 1}}, not "
                f"{self.properties!r}"
            )
        if self.kind == "torch" and self.properties:
            raise BackendError('properties are OpenVINO\'s; use kind="openvino" for them')
        if PRECISION_HINT in self.properties:
            raise BackendError(
                f"{PRECISION_HINT} is what `precision` says, and what the weights are stored "
                f"for; give that instead"
            )
        object.__setattr__(self, "device", self.device.upper())
        object.__setattr__(self, "properties", MappingProxyType(dict(self.properties)))

    @classmethod
    def of(cls, value: str | Backend, argument: str) -> Backend:
        """The backend that ``value`` names; ``argument`` is for the error message."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            if value in _KINDS:
                return cls(value)  # type: ignore[arg-type]
            raise BackendError(
                f"{argument}={value!r} is no backend; give one of {_listing(_KINDS)} "
                f"or an ovtensor.Backend"
            )
        raise BackendError(
            f"{argument} is a {type(value).__qualname__}; give one of {_listing(_KINDS)} "
            f"or an ovtensor.Backend"
        )


def resolve(backend: Backend, component: str) -> Backend:
    """``backend`` with nothing left open for ``component``, checked against this machine.

    Raises
    ------
    BackendError
        If the device is not here or does not execute the precision.
    MissingExtraError
        If it takes nncf and that is not installed.
    """
    if backend.kind == "torch":
        return backend
    if backend.weights == "int8" and importlib.util.find_spec("nncf") is None:
        raise MissingExtraError(
            'weights="int8" needs nncf, which is not installed: pip install "ovtensor[int8]"',
            name="nncf",
        )
    capabilities = _device_capabilities(backend.device)
    if backend.static_shapes is None:
        static = any(name.startswith(("GPU", "NPU")) for name in may_run_on(backend.device))
        backend = dataclasses.replace(backend, static_shapes=static)
    if backend.precision == "auto":
        return dataclasses.replace(
            backend, precision=_native_precision(backend.device, capabilities, component)
        )
    # A device that lacks a precision takes the hint all the same and computes in another one.
    if capabilities and _CAPABILITIES[backend.precision] not in capabilities:
        able = [name for name, key in _CAPABILITIES.items() if key in capabilities]
        raise BackendError(
            f"{backend.device} ({_device_name(backend.device)}) does not execute "
            f"{backend.precision}; it has {_listing(able)}. Use one of these, or "
            f'precision="auto"'
        )
    return backend


def device_properties(device: str) -> dict[str, Any]:
    """All that a device says of itself; nothing for a virtual one such as ``"AUTO"``."""
    if device.partition(":")[0] in _VIRTUAL_DEVICES:
        return {}
    names = core().get_property(device, "SUPPORTED_PROPERTIES")
    found = {}
    for name in names:
        # Some are known and yet have no value, or none that Python can show.
        with contextlib.suppress(RuntimeError, TypeError):
            found[str(name)] = core().get_property(device, name)
    return found


def may_run_on(device: str) -> list[str]:
    """The devices that ``device`` can run on: itself, or those that a virtual one is over."""
    name, _, members = device.partition(":")
    if name not in _VIRTUAL_DEVICES:
        return [device]
    given = [member for member in members.split(",") if member]
    left_out = {member[1:] for member in given if member.startswith("-")}
    named = [member for member in given if not member.startswith("-")]
    return named or [
        one for one in core().available_devices if not left_out & {one, one.partition(".")[0]}
    ]


def torch_dtype(precision: str) -> torch.dtype:
    """The torch dtype of a settled precision; ``"auto"`` is float32."""
    return _TORCH_DTYPES.get(precision, torch.float32)


def _native_precision(
    device: str, capabilities: frozenset[str], component: str
) -> Literal["f32", "bf16", "f16"]:
    if component == "vae" and (not capabilities or "FP32" in capabilities):
        return "f32"  # SDXL's own VAE overflows in half precision
    if device == "CPU":
        return "bf16" if "BF16" in capabilities else "f32"
    if device.startswith(("GPU", "NPU")):
        return "f16" if "FP16" in capabilities else "f32"
    return "f32"


def _device_capabilities(device: str) -> frozenset[str]:
    """``OPTIMIZATION_CAPABILITIES`` of a device; empty for a virtual one. Raises if not here."""
    available = core().available_devices
    name, _, members = device.partition(":")
    if name in _VIRTUAL_DEVICES:
        for member in filter(None, members.split(",")):
            _require_device(member.lstrip("-").partition("(")[0], available)
        return frozenset()
    _require_device(device, available)
    return frozenset(core().get_property(device, "OPTIMIZATION_CAPABILITIES"))


def _require_device(device: str, available: list[str]) -> None:
    # OpenVINO lists "GPU.0" and "GPU.1" where there are several, and "GPU" stands for the first.
    if device not in available and f"{device}.0" not in available:
        raise BackendError(
            f"OpenVINO has no device {device!r} here; it has {_listing(available)} (and "
            f"{_listing(_VIRTUAL_DEVICES)} over these). A missing GPU or NPU usually misses its "
            f"driver"
        )


def _device_name(device: str) -> str:
    return str(core().get_property(device, "FULL_DEVICE_NAME"))


def _listing(values: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)
