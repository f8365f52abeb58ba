"""A graph as an OpenVINO model on disk: written from torch, compiled for a device.

Weights are stored in the precision that the device executes and stay mapped from the file: f16
constants, say, would be turned into float32 copies by the CPU plugin. A file also bounds what a
conversion takes: torch's weights can go before the compilation starts.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import torch
from safetensors.torch import load_file, save_file

from ovtensor.errors import ComponentError, MissingExtraError
from ovtensor.sdxl.spec import Backend, core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ovtensor.sdxl.graphs import Graph

MODEL, WEIGHTS, REFERENCE = "model.xml", "model.bin", "reference.safetensors"

# torch.jit.trace and the warnings filter are state of the process: one conversion at a time.
_tracing = threading.Lock()


def write(graph: Graph, backend: Backend, folder: Path) -> None:
    """Convert a graph and write model, weights and a :func:`reference` into ``folder``.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it.
    MissingExtraError
        If ``backend.weights`` is ``"int8"`` and nncf is not installed.
    OSError
        If the files cannot be written.
    """
    inputs = graph.probe()
    with torch.no_grad():
        outputs = graph.module(*inputs)
    tensors = {f"input.{index}": tensor.contiguous() for index, tensor in enumerate(inputs)}
    tensors |= {f"output.{index}": tensor.clone() for index, tensor in enumerate(outputs)}
    save_file(tensors, folder / REFERENCE)
    model = convert(graph)
    if backend.weights == "int8":
        model = _with_int8_weights(model)
    try:
        # Without this option bf16 and float32 weights would be rounded to float16.
        ov.save_model(model, folder / MODEL, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(
            f"OpenVINO could not write {graph.name} to {str(folder)!r}: {error}"
        ) from error


def convert(graph: Graph) -> ov.Model:
    """The OpenVINO model of a graph, whose constants are the memory of ``graph.module``.

    bf16 constants do not keep that memory alive: the module has to outlive the model.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it.
    """
    modes = {module: module.training for module in graph.module.modules()}
    with _tracing, warnings.catch_warnings(), torch.no_grad():
        # Tracing warns of every Python branch on a shape; unet_graph says why they are right.
        warnings.simplefilter("ignore")
        try:
            model = ov.convert_model(
                graph.module,
                example_input=tuple(entry.example for entry in graph.inputs),
                input=[ov.PartialShape(list(entry.shape)) for entry in graph.inputs],
            )
        except Exception as error:
            raise ComponentError(f"OpenVINO could not convert {graph.name}: {error}") from error
        finally:
            for module, training in modes.items():  # conversion switches to evaluation
                module.training = training
    for port, entry in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({entry.name})
    return model


def properties(backend: Backend) -> dict[str, Any]:
    """What a model is compiled with."""
    return {"INFERENCE_PRECISION_HINT": backend.precision, **backend.properties}


def compile_for(
    name: str, folder: Path, backend: Backend, shapes: Sequence[tuple[int, ...]] | None
) -> ov.CompiledModel:
    """Compile what :func:`write` left in ``folder``, for any shapes or for given ones.

    Raises
    ------
    ComponentError
        If OpenVINO cannot, or would run it on another device than the one that was asked for.
    """
    try:
        model = core().read_model(folder / MODEL)
        if shapes is not None:
            model.reshape(
                {
                    port: ov.PartialShape(list(shape))
                    for port, shape in zip(model.inputs, shapes, strict=True)
                }
            )
        compiled = core().compile_model(model, backend.device, properties(backend))
    except Exception as error:
        raise ComponentError(
            f"OpenVINO could not compile {name} for {backend.device} with "
            f"{properties(backend)}: {error}"
        ) from error
    demand_device(name, compiled, backend)
    return compiled


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


def reference(folder: Path) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Inputs of a small forward, and what torch made of them when the model was written."""
    tensors: Mapping[str, torch.Tensor] = load_file(folder / REFERENCE)

    def numbered(kind: str) -> tuple[torch.Tensor, ...]:
        count = sum(name.startswith(kind) for name in tensors)
        return tuple(tensors[f"{kind}.{index}"] for index in range(count))

    return numbered("input"), numbered("output")


def numpy_dtype(example: torch.Tensor) -> np.dtype[np.generic]:
    """The dtype that a converted graph wants where it was traced with ``example``."""
    return np.dtype(np.float32 if example.is_floating_point() else np.int64)


def _with_int8_weights(model: ov.Model) -> ov.Model:
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'weights="int8" needs nncf, which is not installed: pip install "ovtensor[int8]"',
            name="nncf",
        ) from error
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
