"""A graph as an OpenVINO model on disk, written from torch.

Weights are stored in the precision that the device executes, or in 16 bits that are widened to it
exactly, and stay mapped from the file. A file also bounds what a conversion takes: torch's weights
can go before the compilation starts.
"""

from __future__ import annotations

import contextlib
import signal
import threading
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

from ovtensor.engine import mapped_weights as mapped
from ovtensor.engine.backend import torch_dtype
from ovtensor.engine.compiled import MODEL, REFERENCE
from ovtensor.engine.passes.gated import split_gates
from ovtensor.engine.passes.group_norms import keep_precise, sum_by_channel
from ovtensor.engine.passes.sixteen_bit import linear_in_halves
from ovtensor.engine.passes.upsample import fold_doubling
from ovtensor.errors import ComponentError
from ovtensor.tensors.convert import to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovtensor.engine.backend import Backend
    from ovtensor.pipelines.graphs import Graph

# torch.jit.trace and the warnings filter are state of the process: one conversion at a time.
_tracing = threading.Lock()


def write(
    graph: Graph,
    backend: Backend,
    folder: Path,
    *,
    refer: bool,
    halves: bool,
    stay_mapped: bool,
    tuned: bool,
) -> None:
    """Convert a graph and write model and weights into ``folder``, to ``refer`` to a reference too.

    Alters ``graph.module``, which is not to be run any more: see :func:`.copies.detached`.

    With ``halves`` the graph's linear layers have weights of 16 bits: see :mod:`.halves`. With
    ``stay_mapped`` their weights become inputs: see :mod:`.mapped`. With ``tuned`` doublings and
    group norms are written as the CPU plugin computes them best: see :mod:`.doubling` and
    :mod:`.group_norms`.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it, or cannot write its files.
    """
    split_gates(graph.module)
    places: mapped.Places = {}
    if stay_mapped:
        with _writing(graph, folder):
            places = mapped.write(graph.module.modules(), torch_dtype(backend.precision), folder)
    if refer:
        inputs = graph.probe()
        outputs = _computed(graph, inputs)
        tensors = {f"input.{index}": tensor.contiguous() for index, tensor in enumerate(inputs)}
        tensors |= {f"output.{index}": tensor.clone() for index, tensor in enumerate(outputs)}
        with _writing(graph, folder):
            save_file(tensors, folder / REFERENCE)
    if halves:
        linear_in_halves(graph.module)
    model = convert(graph)
    if tuned:
        fold_doubling(model)
    if backend.weights == "int8":
        model = _with_int8_weights(model)
    if tuned:  # after weights were rounded: those of an average are not to be
        sum_by_channel(model)
    mapped.take_out(model, places)
    with _writing(graph, folder):
        # Without this option bf16 and float32 weights would be rounded to float16.
        ov.save_model(model, folder / MODEL, compress_to_fp16=False)
        if tuned:
            keep_precise(folder / MODEL)


def _computed(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    try:
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = graph.module(*inputs)
    except Exception as error:
        raise ComponentError(
            f"torch could not compute {graph.name} from a small input, to compare its conversion "
            f"with: {error}"
        ) from error
    return outputs


@contextlib.contextmanager
def _writing(graph: Graph, folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ComponentError(
            f"OpenVINO could not write {graph.name} to {str(folder)!r}, most often because the "
            f"disk is full: {error}"
        ) from error


def convert(graph: Graph) -> ov.Model:
    """The OpenVINO model of a graph, whose constants are the memory of ``graph.module``.

    bf16 constants do not keep that memory alive: the module has to outlive the model.

    Raises
    ------
    ComponentError
        If OpenVINO cannot convert it.
    """
    with _tracing, _interruptible(), warnings.catch_warnings():
        # Tracing warns of every Python branch on a shape; unet_graph says why they are right.
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), _WithoutGradients():
                traced = _traced(graph)
            model = _translated(graph, traced)
            _drop_ones(model)
        except Exception as error:
            raise ComponentError(f"OpenVINO could not convert {graph.name}: {error}") from error
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


def _drop_ones(model: ov.Model) -> None:
    """Take out multiplications by one and divisions by it, which change no value.

    diffusers divides by scales that are one, and ``a + b`` arrives as ``a + 1 * b``. Where they
    follow a linear layer whose weights are an input, OpenVINO merges them into its sum in a way
    that only its slowest kernel computes: in bf16 a layer took 28 ms, and one of its size 0.2 ms.
    """
    for node in model.get_ops():
        name = node.get_type_name()
        if name == "Multiply" and _is_one(node.input_value(0)):
            node.output(0).replace(node.input_value(1))
        elif name in ("Multiply", "Divide") and _is_one(node.input_value(1)):
            node.output(0).replace(node.input_value(0))


def _is_one(value: ov.Output) -> bool:
    node = value.get_node()
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    # Of no dimension, so that it broadcasts nothing.
    scalar = node.get_type_name() == "Constant" and node.shape == []
    return scalar and float(to_numpy(node)) == 1


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


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a conversion.

    While OpenVINO calls back into Python it makes errors of its own of what is raised there, or
    drops it. So remember that the signal came. It comes to the main thread, and a handler that
    somebody else has installed is left alone.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = []

    def remember(number: int, frame: Any) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _with_int8_weights(model: ov.Model) -> ov.Model:
    import nncf

    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
