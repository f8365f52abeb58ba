"""From a model on disk to a compiled one: out of a cache, or compiled.

A model is in one or two parts: see :mod:`.hoisted`. Each is ``PART.xml`` and ``PART.bin``, and
``PART.linear.safetensors`` where weights stay mapped: see :mod:`.mapped`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import openvino as ov

from ovtensor.errors import ComponentError
from ovtensor.sdxl import hoisted
from ovtensor.sdxl.spec import Backend, core, device_properties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ovtensor.cache import Entry, Store

MODEL, TEXT = "model", "text"
BLOB = "compiled.blob"
# Goes up when the same weights are written as another model, so that caches start anew.
FORMAT = 5


def properties(backend: Backend) -> dict[str, Any]:
    """What a model is compiled with."""
    return {"INFERENCE_PRECISION_HINT": backend.precision, **backend.properties}


def compile_for(
    name: str,
    entry: Entry,
    part: str,
    store: Store,
    backend: Backend,
    shapes: Sequence[tuple[int, ...]] | None,
) -> ov.CompiledModel:
    """Compile a part of what :func:`.ir.write` left in ``entry``, for any shapes or for given ones.

    If the entry is in a cache, so is the compiled model: as a blob that takes the weights from
    the entry, where the device can write one.

    Raises
    ------
    ComponentError
        If OpenVINO cannot, or would run it on another device than the one that was asked for.
    """
    if not entry.key or not _writes_blobs(backend.device):
        return _compiled(name, entry.folder, part, backend, shapes, properties(backend))
    given = _properties_with_blob(backend)
    fresh: list[ov.CompiledModel] = []

    def build(folder: Path) -> None:
        fresh.append(_compiled(name, entry.folder, part, backend, shapes, given))
        stream = io.BytesIO()
        fresh[0].export_model(stream)
        (folder / BLOB).write_bytes(stream.getbuffer())

    facts = _blob_facts(name, part, backend, shapes)
    what = name if part == MODEL else f"{name} ({part})"
    with store.open(
        facts, build, base=entry, label=f"{what} compiled for {backend.device}"
    ) as blob:
        if fresh:
            return fresh[0]
        try:
            return _imported(name, entry, part, blob, backend)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is another way
            blob.reject(f"OpenVINO does not take the compiled {name}: {error}")
            return _compiled(name, entry.folder, part, backend, shapes, given)


def find_compiled(
    name: str, entry: Entry, part: str, store: Store, backend: Backend
) -> ov.CompiledModel | None:
    """What :func:`compile_for` would find in a cache for any shapes; None if it would compile.

    Whatever OpenVINO has against it is raised.
    """
    if not _writes_blobs(backend.device):
        return None
    blob = store.find(_blob_facts(name, part, backend, None), base=entry)
    if blob is None:
        return None
    with blob:
        return _imported(name, entry, part, blob, backend)


def _properties_with_blob(backend: Backend) -> dict[str, Any]:
    return {"CACHE_MODE": "OPTIMIZE_SIZE", **properties(backend)}


def _blob_facts(
    name: str, part: str, backend: Backend, shapes: Sequence[tuple[int, ...]] | None
) -> dict[str, Any]:
    given = _properties_with_blob(backend)
    return {
        "kind": "blob",
        "graph": name,
        "part": part,
        "device": _device_facts(backend.device),
        "properties": {key: str(value) for key, value in given.items()},
        "shapes": None if shapes is None else [list(shape) for shape in shapes],
        "openvino": ov.__version__,
    }


def _imported(
    name: str, entry: Entry, part: str, blob: Entry, backend: Backend
) -> ov.CompiledModel:
    # The blob holds no properties: they have to be those of the compilation.
    given = {**_properties_with_blob(backend), "WEIGHTS_PATH": str(entry.folder / f"{part}.bin")}
    compiled = core().import_model((blob.folder / BLOB).read_bytes(), backend.device, given)
    demand_device(name, compiled, backend)
    return compiled


def _compiled(
    name: str,
    folder: Path,
    part: str,
    backend: Backend,
    shapes: Sequence[tuple[int, ...]] | None,
    given: Mapping[str, Any],
) -> ov.CompiledModel:
    try:
        model = core().read_model(folder / f"{part}.xml")
        if shapes is not None:
            known = dict(zip(model.inputs, map(ov.PartialShape, map(list, shapes)), strict=False))
            model.reshape({**known, **hoisted.shapes(model.inputs, shapes)})
        compiled = core().compile_model(model, backend.device, dict(given))
    except Exception as error:
        raise ComponentError(
            f"OpenVINO could not compile {name} for {backend.device} with {dict(given)}: {error}"
        ) from error
    demand_device(name, compiled, backend)
    return compiled


def _writes_blobs(device: str) -> bool:
    capabilities = device_properties(device).get("OPTIMIZATION_CAPABILITIES", ())
    return "EXPORT_IMPORT" in capabilities


def _device_facts(device: str) -> dict[str, str]:
    """What tells a device and its driver from others, as far as it says so."""
    told = ("NAME", "ARCHITECTURE", "CAPABILITIES", "VERSION", "UUID")
    return {
        key: str(value) for key, value in device_properties(device).items() if key.endswith(told)
    }


def demand_device(name: str, compiled: ov.CompiledModel, backend: Backend) -> None:
    """Raise ``ComponentError`` unless a compiled model runs on the device that it is for."""
    devices = execution_devices(compiled)
    kind = backend.device.partition(":")[0].partition(".")[0]
    if kind in ("AUTO", "MULTI", "HETERO"):  # theirs to choose
        return
    others = [device for device in devices if device.partition(".")[0] != kind]
    if others:
        raise ComponentError(
            f"OpenVINO would run {name} on {', '.join(others)} and not on {backend.device}; "
            f"ask for {others[0]!r} if that is right"
        )


def execution_devices(compiled: ov.CompiledModel) -> list[str]:
    """The devices that a compiled model runs on."""
    return [str(device) for device in compiled.get_property("EXECUTION_DEVICES")]
