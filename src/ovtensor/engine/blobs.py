"""What a model on disk becomes on a device: compiled, or imported from a cached blob."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import openvino as ov

from ovtensor._core import core
from ovtensor.engine.devices import is_virtual, properties_of
from ovtensor.engine.plan import compile_properties
from ovtensor.engine.process import handed_on
from ovtensor.errors import ComponentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ovtensor.cache import Entry, Store
    from ovtensor.engine.backend import Backend
    from ovtensor.engine.plan import ConversionPlan

# What :mod:`.convert` leaves in a folder, and in another one what is compiled from it.
MODEL, WEIGHTS, REFERENCE = "model.xml", "model.bin", "reference.safetensors"
BLOB = "compiled.blob"

_RUNTIME = "COMPILED_MODEL_RUNTIME_PROPERTIES"
_log = logging.getLogger("ovtensor")


def compile_for(
    plan: ConversionPlan,
    backend: Backend,
    entry: Entry,
    store: Store,
    shapes: Sequence[tuple[int, ...]] | None,
) -> ov.CompiledModel:
    """Compile what :func:`.convert.write` left in ``entry``, for any shapes or for given ones.

    If the entry is in a cache, so is the compiled model: as a blob that takes the weights from
    the entry, where the device can write one.

    Raises
    ------
    ComponentError
        If OpenVINO fails, or would run it on another device.
    """
    given = compile_properties(backend, plan.passes)
    if not entry.key or not _writes_blobs(backend.device):
        return _compiled(plan, entry.folder, backend.device, shapes, given)
    given = _with_blob(given)
    fresh: list[ov.CompiledModel] = []

    def build(folder: Path) -> None:
        fresh.append(_compiled(plan, entry.folder, backend.device, shapes, given))
        stream = io.BytesIO()
        fresh[0].export_model(stream)
        (folder / BLOB).write_bytes(stream.getbuffer())

    label = f"{plan.graph} compiled for {backend.device}"
    with store.open(_blob_fields(plan, shapes), build, base=entry, label=label) as blob:
        if fresh:
            return fresh[0]
        try:
            return _imported(plan, entry, blob, backend)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is another way
            blob.reject(f"OpenVINO does not take the compiled {plan.graph}: {error}")
            return _compiled(plan, entry.folder, backend.device, shapes, given)


def find_compiled(
    plan: ConversionPlan, backend: Backend, entry: Entry, store: Store
) -> ov.CompiledModel | None:
    """What :func:`compile_for` would find in a cache for any shapes; None if it would compile.

    Whatever OpenVINO has against it is raised.
    """
    if not _writes_blobs(backend.device):
        return None
    blob = store.find(_blob_fields(plan, None), base=entry)
    if blob is None:
        return None
    with blob:
        return _imported(plan, entry, blob, backend)


def demand_device(name: str, compiled: ov.CompiledModel, device: str) -> None:
    """Raise ``ComponentError`` unless a compiled model runs on the device that it is for."""
    if is_virtual(device):  # theirs to choose
        return
    kind = device.partition(".")[0]
    others = [one for one in execution_devices(compiled) if one.partition(".")[0] != kind]
    if others:
        raise ComponentError(
            f"OpenVINO would run {name} on {', '.join(others)} and not on {device}; "
            f"ask for {others[0]!r} if that is right",
            component=name,
            device=device,
        )


def execution_devices(compiled: ov.CompiledModel) -> list[str]:
    """The devices that a compiled model runs on."""
    return [str(device) for device in compiled.get_property("EXECUTION_DEVICES")]


def _with_blob(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"CACHE_MODE": "OPTIMIZE_SIZE", **properties}


def _blob_fields(plan: ConversionPlan, shapes: Sequence[tuple[int, ...]] | None) -> dict[str, Any]:
    fields = plan.compilation_fields()
    return {
        **fields,
        "device": _device_fields(plan.device),
        "properties": _with_blob(fields["properties"]),
        "shapes": None if shapes is None else [list(shape) for shape in shapes],
        "openvino": ov.__version__,
    }


def _imported(
    plan: ConversionPlan, entry: Entry, blob: Entry, backend: Backend
) -> ov.CompiledModel:
    # The blob holds no properties: they have to be those of the compilation.
    given = _with_blob(compile_properties(backend, plan.passes))
    given["WEIGHTS_PATH"] = str(entry.folder / WEIGHTS)
    compiled = core().import_model((blob.folder / BLOB).read_bytes(), backend.device, given)
    demand_device(plan.graph, compiled, backend.device)
    return compiled


@handed_on()
def _compiled(
    plan: ConversionPlan,
    folder: Path,
    device: str,
    shapes: Sequence[tuple[int, ...]] | None,
    given: Mapping[str, Any],
) -> ov.CompiledModel:
    try:
        model = core().read_model(folder / MODEL)
        if shapes is not None:
            own = model.inputs[: len(shapes)]  # weights that stay mapped follow
            model.reshape(
                {
                    port: ov.PartialShape(list(shape))
                    for port, shape in zip(own, shapes, strict=True)
                }
            )
        compiled = core().compile_model(model, device, dict(given))
    except Exception as error:
        raise ComponentError(
            f"OpenVINO could not compile {plan.graph} for {device} with {dict(given)}: {error}",
            component=plan.graph,
            device=device,
        ) from error
    demand_device(plan.graph, compiled, device)
    return compiled


def _writes_blobs(device: str) -> bool:
    return "EXPORT_IMPORT" in properties_of(device).get("OPTIMIZATION_CAPABILITIES", ())


def _device_fields(device: str) -> dict[str, str]:
    """What tells a device and its driver from others, as far as it says so."""
    told = ("NAME", "ARCHITECTURE", "CAPABILITIES", "VERSION", "UUID")
    fields = {key: str(value) for key, value in properties_of(device).items() if key.endswith(told)}
    if fields:
        # No public property has a GPU's driver. This is what OpenVINO compares when it imports.
        try:
            fields[_RUNTIME] = str(core().get_property(device, _RUNTIME))
        except RuntimeError as error:
            _log.debug("%s does not tell its driver: %s", device, error)
    return fields
