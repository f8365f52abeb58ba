"""Questions about the nodes of an OpenVINO model that several passes ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovtensor.tensors.convert import to_numpy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openvino as ov


def kind_of(value: ov.Output) -> str:
    """The type of the node that gives a value, such as ``"MatMul"``."""
    return str(value.get_node().get_type_name())


def is_constant(value: ov.Output) -> bool:
    """Whether a value is in the model."""
    return kind_of(value) == "Constant"


def is_one(value: ov.Output) -> bool:
    """Whether a value is a constant one of no dimension, which broadcasts nothing."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    scalar = node.get_type_name() == "Constant" and node.shape == []
    return scalar and float(to_numpy(node)) == 1


def has_attributes(node: ov.Node, wanted: Mapping[str, object]) -> bool:
    """Whether a node has these attributes, among others."""
    given = node.get_attributes()
    return all(given[name] == value for name, value in wanted.items())
