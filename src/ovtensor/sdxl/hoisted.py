"""What a UNet computes from the text alone: once for a text, and not at every step.

The keys and values of cross-attention are linear layers of the text's embeddings, which stay the
same from step to step. They have an eighth of the weights of SDXL's UNet. Here they become a model
of their own, whose results are further inputs of the UNet's; every number is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import openvino as ov
from openvino import opset13

if TYPE_CHECKING:
    from collections.abc import Sequence


def take_out(model: ov.Model, name: str) -> ov.Model | None:
    """Split off the linear layers that read the input ``name`` of ``model``, which stays an input.

    Their results are the outputs of the model that is returned, and in the same order inputs of
    ``model`` that are called ``name.0``, ``name.1`` and so on. None if there are no such layers.
    The two share the input: neither may be given other shapes before both are written.
    """
    source = model.input(name).get_node()
    layers = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        and _origin(node.input_value(0)).get_friendly_name() == source.get_friendly_name()
        and _origin(node.input_value(1)).get_type_name() == "Constant"
    ]
    if not layers:
        return None
    results, inputs = [], []
    for index, layer in enumerate(layers):
        output = layer.output(0)
        given = opset13.parameter(output.get_partial_shape(), output.get_element_type())
        given.output(0).get_tensor().set_names({f"{name}.{index}"})
        for target in list(output.get_target_inputs()):
            target.replace_source_output(given.output(0))
        inputs.append(given)
        results.append(opset13.result(output))
    model.add_parameters(inputs)
    model.validate_nodes_and_infer_types()
    return ov.Model(results, [source], name)


def results_among(inputs: Sequence[ov.Output]) -> tuple[int, list[ov.Output]]:
    """The position of the input that was read, and those that are results, in their order.

    The position is that among the inputs of a model that :func:`take_out` has changed.
    """
    positions = {name: index for index, port in enumerate(inputs) for name in port.names}
    read = [
        (port, positions[source])
        for port in inputs
        for name in port.names  # OpenVINO gives some of its own, too
        if (source := name.rpartition(".")[0]) in positions
    ]
    return read[0][1] if read else -1, [port for port, _ in read]


def shapes(
    inputs: Sequence[ov.Output], given: Sequence[tuple[int, ...]]
) -> dict[ov.Output, ov.PartialShape]:
    """The shapes of the inputs that are results, where the first ones have the ``given`` shapes."""
    position, found = results_among(inputs)
    return {
        port: ov.PartialShape([*given[position][:-1], port.get_partial_shape()[-1].get_length()])
        for port in found
    }


def _origin(value: ov.Output) -> ov.Node:
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node
