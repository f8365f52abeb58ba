"""Weights that stay in their file: inputs of a graph, and not constants.

OpenVINO's CPU plugin copies the constant weights of linear layers into memory of its own, in the
precision of the arithmetic: for the UNet of SDXL 10 GB in float32, 5 GB in bfloat16. Weights that
are inputs it reads where they are, in this case in pages of a file, which the operating system can
drop and read again; it widens and packs them one layer at a time, as long as that layer runs. So
the first inference has nothing to pack, and every one packs: in bfloat16 with AMX that took 6 to 7
percent of a step of a UNet of 209 million parameters, and at 1024 pixels one or two of one of full
size (``benchmarks/RESULTS.md``).

Convolutions need their weights as constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openvino as ov
import torch
from openvino import opset13
from safetensors.torch import load_file, save_file

from ovtensor.engine.devices import SIXTEEN_BIT, torch_dtype
from ovtensor.engine.passes.base import Pass
from ovtensor.tensors.convert import to_openvino, to_torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from ovtensor.engine.passes.base import Conditions

    Places: TypeAlias = dict[tuple[int, ...], str]

_FILES = "linear-{}.safetensors"
_FILE_BYTES = 2**28
_SIZES = {"f32": 4, "bf16": 2}  # bytes of a weight's copy; in float16 it was not tried


class MappedWeights(Pass):
    """Turn the weights of linear layers into inputs of the model, read from files beside it.

    Weights of 16 bits are cast if the arithmetic has another dtype of 16 bits. They are cast a file
    at a time, and their layers have them mapped from there from then on: all of them in memory are
    as much as the model.
    """

    name = "mapped_weights"
    releases = "all: the CPU plugin copies constant weights of linear layers"
    upstream = "not reported"

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        self._places: Places = {}

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """On a CPU: always for a graph that runs once a picture or has few linear layers.

        For one that runs at every step, if their copies would take much of the memory, and not
        where there is so much that a few percent of the time count for more.
        """
        size = _SIZES.get(given.backend.precision)
        if not given.device.reads_mapped_weights or given.backend.weights is not None:
            return False
        if size is None:
            return False
        return not given.traits.runs_every_step or given.memory.maps_weights(size * given.weights)

    def on_module(self, module: torch.nn.Module, folder: Path) -> None:
        """Write the weights, and remember where each is in memory."""
        dtype = torch_dtype(self.precision)
        shared: dict[tuple[int, ...], list[Any]] = {}
        for layer in module.modules():
            if type(layer) is torch.nn.Linear:
                shared.setdefault(_place(layer.weight), []).append(layer)
        part: dict[str, list[Any]] = {}
        size = 0
        for index, layers in enumerate(shared.values()):
            part[f"weight.{index}"] = layers
            size += layers[0].weight.nbytes
            if size >= _FILE_BYTES or index == len(shared) - 1:
                self._places |= _write_file(part, dtype, folder / _FILES.format(index))
                part, size = {}, 0

    def on_model(self, model: ov.Model) -> None:
        """Take the written weights out; the model may be compiled for any shapes afterwards."""
        inputs = []
        for node in _linear_weights(model):
            name = self._places.get(_place(to_torch(node, copy=False)))
            if name is None:
                continue
            rows = node.shape[0]
            # For an input of known size the plugin sets memory aside. Of the rows it has to know
            # the number, which is that of the bias.
            given = opset13.parameter([rows, -1], node.get_element_type())
            given.output(0).get_tensor().set_names({name})
            (target,) = node.output(0).get_target_inputs()
            target.replace_source_output(given.output(0))
            inputs.append(given)
        model.add_parameters(inputs)
        model.validate_nodes_and_infer_types()


def files(folder: Path) -> list[Path]:
    """What :class:`MappedWeights` wrote."""
    return sorted(folder.glob(_FILES.format("*")))


def tensors(folder: Path) -> dict[str, ov.Tensor]:
    """The weights by their names, mapped from their files."""
    return {
        name: to_openvino(tensor, copy=False)
        for path in files(folder)
        for name, tensor in load_file(path).items()
    }


def _write_file(part: Mapping[str, list[Any]], dtype: torch.dtype, path: Path) -> Places:
    weights = {name: layers[0].weight.detach() for name, layers in part.items()}
    cast = {
        name: weight.to(dtype)
        for name, weight in weights.items()
        if {weight.dtype, dtype} == set(SIXTEEN_BIT)
    }
    save_file(weights | cast, path)
    if cast:
        weights = load_file(path)
    for name in cast:
        parameter = torch.nn.Parameter(weights[name], requires_grad=False)
        for layer in part[name]:
            layer.weight = parameter
    return {_place(weight): name for name, weight in weights.items()}


def _place(tensor: torch.Tensor) -> tuple[int, ...]:
    return tensor.data_ptr(), *tensor.shape


def _linear_weights(model: ov.Model) -> Iterator[ov.Node]:
    """The constants that one linear layer multiplies by, as stored or widened."""
    for layer in model.get_ordered_ops():
        if layer.get_type_name() != "MatMul" or not layer.get_attributes()["transpose_b"]:
            continue
        node = layer.input_value(1).get_node()
        if node.get_type_name() == "Convert" and len(node.output(0).get_target_inputs()) == 1:
            node = node.input_value(0).get_node()
        tied = len(node.output(0).get_target_inputs()) != 1
        if node.get_type_name() == "Constant" and len(node.shape) == 2 and not tied:
            yield node
