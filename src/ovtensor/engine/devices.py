"""What a device of OpenVINO is like: a row of traits a kind of device, and what it tells itself."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from ovtensor._core import core
from ovtensor.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable

Precision: TypeAlias = Literal["auto", "f32", "bf16", "f16"]

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
_VIRTUAL = ("AUTO", "HETERO", "MULTI")


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceTraits:
    """How models are made for a device.

    Attributes
    ----------
    native : tuple of str
        Precisions in the order of preference; the first that the device executes is ``"auto"``.
    static_shapes : bool
        Whether models are compiled for the shapes of each call by default. OpenVINO's GPU plugin
        exchanges kernels of dynamic shapes while they are in use, so that no result is certain to
        be the one before it; an NPU takes nothing else.
    reads_mapped_weights : bool
        Whether linear layers can read weights where they lie in a file: see
        :mod:`.passes.mapped_weights`.
    widens_weights : bool
        Whether a compiled model may widen 16-bit weights. OpenVINO's GPU plugin writes past the
        end of memory when it imports one that also brings them into another layout.
    image_passes : bool
        Whether passes that were made for the CPU plugin's convolutions help.
    """

    native: tuple[Precision, ...] = ("f32",)
    static_shapes: bool = False
    reads_mapped_weights: bool = False
    widens_weights: bool = False
    image_passes: bool = False


_TRAITS = {
    "CPU": DeviceTraits(
        ("bf16", "f32"), reads_mapped_weights=True, widens_weights=True, image_passes=True
    ),
    "GPU": DeviceTraits(("f16", "f32"), static_shapes=True),
    "NPU": DeviceTraits(("f16", "f32"), static_shapes=True),
}


def traits_of(device: str) -> DeviceTraits:
    """The row of a device; a virtual one has what all that it can run on have in common."""
    if not is_virtual(device):
        return _TRAITS.get(_kind(device), DeviceTraits())
    rows = [_TRAITS.get(_kind(member), DeviceTraits()) for member in members(device)]
    return DeviceTraits(
        static_shapes=any(row.static_shapes for row in rows),
        widens_weights=all(row.widens_weights for row in rows),
    )


def is_virtual(device: str) -> bool:
    """Whether a device stands for several, of which OpenVINO chooses."""
    return device.partition(":")[0] in _VIRTUAL


def members(device: str) -> list[str]:
    """The devices that ``device`` can run on: itself, or those that a virtual one is over."""
    _, _, listed = device.partition(":")
    if not is_virtual(device):
        return [device]
    given = [member for member in listed.split(",") if member]
    left_out = {member[1:] for member in given if member.startswith("-")}
    named = [member for member in given if not member.startswith("-")]
    return named or [
        one for one in core().available_devices if not left_out & {one, one.partition(".")[0]}
    ]


def properties_of(device: str) -> dict[str, Any]:
    """All that a device says of itself; nothing for a virtual one such as ``"AUTO"``."""
    if is_virtual(device):
        return {}
    found = {}
    for name in core().get_property(device, "SUPPORTED_PROPERTIES"):
        # Some are known and yet have no value, or none that Python can show.
        with contextlib.suppress(RuntimeError, TypeError):
            found[str(name)] = core().get_property(device, name)
    return found


def precision_for(device: str, precision: Precision, *, prefer_f32: bool) -> Precision:
    """The precision that ``precision`` means on a device.

    Parameters
    ----------
    device : str
        OpenVINO's name of it, in upper case.
    precision : {"auto", "f32", "bf16", "f16"}
        ``"auto"`` is the device's native one, or f32 where that is there and ``prefer_f32``.

    Raises
    ------
    BackendError
        If the device is not here or does not execute the precision. OpenVINO takes the hint all
        the same and computes in another one.
    """
    capabilities = _capabilities(device)
    if precision == "auto":
        if prefer_f32 and (not capabilities or "FP32" in capabilities):
            return "f32"
        native = traits_of(device).native
        return next((name for name in native if _CAPABILITIES[name] in capabilities), "f32")
    if capabilities and _CAPABILITIES[precision] not in capabilities:
        able = [name for name, key in _CAPABILITIES.items() if key in capabilities]
        raise BackendError(
            f"{device} ({core().get_property(device, 'FULL_DEVICE_NAME')}) does not execute "
            f'{precision}; it has {listing(able)}. Use one of these, or precision="auto"',
            device=device,
        )
    return precision


def torch_dtype(precision: str) -> torch.dtype:
    """The torch dtype of a settled precision; ``"auto"`` is float32."""
    return TORCH_DTYPES.get(precision, torch.float32)


def listing(values: Iterable[str]) -> str:
    """Words for an error message, each in quotes."""
    return ", ".join(f'"{value}"' for value in values)


def _kind(device: str) -> str:
    return device.partition(".")[0].partition("(")[0]


def _capabilities(device: str) -> frozenset[str]:
    """``OPTIMIZATION_CAPABILITIES`` of a device; empty for a virtual one. Raises if not here."""
    available = core().available_devices
    if is_virtual(device):
        for member in filter(None, device.partition(":")[2].split(",")):
            _require(member.lstrip("-").partition("(")[0], available)
        return frozenset()
    _require(device, available)
    return frozenset(core().get_property(device, "OPTIMIZATION_CAPABILITIES"))


def _require(device: str, available: list[str]) -> None:
    # OpenVINO lists "GPU.0" and "GPU.1" where there are several, and "GPU" stands for the first.
    if device not in available and f"{device}.0" not in available:
        raise BackendError(
            f"OpenVINO has no device {device!r} here; it has {listing(available)} (and "
            f"{listing(_VIRTUAL)} over these). A missing GPU or NPU usually misses its driver",
            device=device,
        )
