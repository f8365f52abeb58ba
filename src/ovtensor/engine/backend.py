"""What a caller asks for: the :class:`Backend` of a module or of a pipeline's component."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from ovtensor.engine.devices import Precision, precision_for, traits_of
from ovtensor.engine.devices import listing as _listing
from ovtensor.errors import BackendError, MissingExtraError

Kind: TypeAlias = Literal["torch", "openvino"]

_KINDS = ("torch", "openvino")
_PRECISIONS = ("auto", "f32", "bf16", "f16")
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
        executes natively: bf16 on a CPU that has it, f16 on a GPU or NPU, f32 otherwise; a VAE
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


def resolve(backend: Backend, *, prefer_f32: bool = False) -> Backend:
    """``backend`` with nothing left open, checked against this machine.

    With ``prefer_f32`` the precision ``"auto"`` is f32 wherever the device has it.

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
    precision = precision_for(backend.device, backend.precision, prefer_f32=prefer_f32)
    static = backend.static_shapes
    return dataclasses.replace(
        backend,
        precision=precision,
        static_shapes=traits_of(backend.device).static_shapes if static is None else static,
    )
