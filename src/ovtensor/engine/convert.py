"""A graph as an OpenVINO model on disk, written from torch.

Weights are stored in the precision that the device executes, or in 16 bits that are widened to it
exactly, and stay mapped from the file. A file also bounds what a conversion takes: torch's weights
can go before the compilation starts.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from typing import TYPE_CHECKING, Any

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from ovtensor.engine.compiled import MODEL, REFERENCE
from ovtensor.engine.passes import passes_of
from ovtensor.engine.process import EXCLUSIVE, handed_on
from ovtensor.errors import ComponentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovtensor.engine.graph import Graph
    from ovtensor.engine.plan import ConversionPlan


def write(graph: Graph, plan: ConversionPlan, folder: Path) -> None:
    """Convert a graph as planned and write model and weights into ``folder``.

    Alters ``graph.module``, which is not to be run any more: see :func:`.copies.detached`.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it, or cannot write its files.
    """
    passes = [one(plan.precision) for one in passes_of(plan.passes)]
    with _writing(graph, folder):
        for one in passes:
            one.on_module(graph.module, folder)
    if plan.verify:
        inputs = graph.probe()
        outputs = _computed(graph, inputs)
        tensors = {f"input.{index}": tensor.contiguous() for index, tensor in enumerate(inputs)}
        tensors |= {
            f"output.{index}": tensor.clone(memory_format=torch.contiguous_format)
            for index, tensor in enumerate(outputs)
        }
        with _writing(graph, folder):
            save_file(tensors, folder / REFERENCE)
    model = convert(graph)
    for one in passes:
        one.on_model(model)
    with _writing(graph, folder):
        # Without this option bf16 and float32 weights would be rounded to float16.
        ov.save_model(model, folder / MODEL, compress_to_fp16=False)
        for one in passes:
            one.on_file(folder / MODEL)


@handed_on()
def _computed(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    try:
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = graph.module(*inputs)
    except Exception as error:
        raise ComponentError(
            f"torch could not compute {graph.name} from a small input, to compare its conversion "
            f"with: {error}",
            component=graph.name,
        ) from error
    return outputs


@contextlib.contextmanager
def _writing(graph: Graph, folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ComponentError(
            f"OpenVINO could not write {graph.name} to {str(folder)!r}, most often because the "
            f"disk is full: {error}",
            component=graph.name,
        ) from error


def convert(graph: Graph) -> ov.Model:
    """The OpenVINO model of a graph, whose constants are the memory of ``graph.module``.

    bf16 constants do not keep that memory alive: the module has to outlive the model.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it.
    """
    with EXCLUSIVE, handed_on(), warnings.catch_warnings():
        # Tracing warns of every Python branch on a shape; the examples are chosen for these.
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), _WithoutGradients():
                traced = _traced(graph)
            model = _translated(graph, traced)
        except Exception as error:
            raise ComponentError(
                f"OpenVINO could not convert {graph.name}: {error}", component=graph.name
            ) from error
    for port, entry in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({entry.name})
    return model


def _traced(graph: Graph) -> Any:
    """The TorchScript of a graph, with weights as constants.

    ``torch.jit.trace`` of a module makes a TorchScript module for each of its parts, which takes
    longer than all the rest; of a function, it keeps the constants until the process ends.
    """

    def forward(*inputs: torch.Tensor) -> Any:
        return graph.module(*inputs)

    def unnamed(_: torch.Tensor) -> str:
        return ""

    # Private, as everything of TorchScript that is neither a module nor a function of its own.
    create: Any = torch._C._create_graph_by_tracing  # noqa: SLF001
    strict = force_outplace = False
    return create(forward, _examples(graph), unnamed, strict, force_outplace)[0]


def _translated(graph: Graph, traced: Any) -> ov.Model:
    """What OpenVINO's frontend for PyTorch makes of a trace.

    ``openvino.convert_model`` does the same, then runs passes that every compilation runs anyway,
    which takes twice as long, and reports on itself over the network.
    """
    frontend = FrontEndManager().load_by_framework("pytorch")
    # A variable of its own: the frontend calls the decoder and does not keep it alive.
    script = types.SimpleNamespace(inlined_graph=traced)
    decoder = TorchScriptPythonDecoder(script, example_input=_examples(graph))
    loaded = frontend.load(decoder)
    for index, entry in enumerate(graph.inputs):
        place = loaded.get_place_by_input_index(index)
        loaded.set_partial_shape(place, ov.PartialShape(list(entry.shape)))
    model: ov.Model = frontend.convert(loaded)
    return model


def _examples(graph: Graph) -> tuple[torch.Tensor, ...]:
    return tuple(entry.example for entry in graph.inputs)


class _WithoutGradients(TorchFunctionMode):
    """Takes weights that want gradients as constants, which a trace refuses.

    A forward that somebody has put into a module can know the one that this is a copy of.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [_constant(value) for value in args]
        return func(*args, **{key: _constant(value) for key, value in (kwargs or {}).items()})


def _constant(value: Any) -> Any:
    # Not detach(), which would be traced.
    return value.data if isinstance(value, torch.Tensor) and value.requires_grad else value
