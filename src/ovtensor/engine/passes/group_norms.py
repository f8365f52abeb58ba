"""Group normalisation in the memory layout of convolutions, for OpenVINO's CPU plugin.

The plugin's convolutions keep the channels of a pixel side by side, its group normalisation the
pixels of a channel. So the picture is copied before each norm and after it, which takes longer than
the norm, and memory for as many more pictures. Sums per channel are taken in either layout. From a
channel's sum and sum of squares come the mean M of a group and the scale a of a channel, and the
norm is ``(x - m) * a + ((m - M) * a + shift)``, in one pass.

m is M as rounded to the precision of the picture. Were that all, a mean that is large against the
deviation would move the result in bfloat16; the second term makes up for it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from openvino import opset13

from ovtensor.engine.passes.base import Pass
from ovtensor.engine.passes.nodes import is_constant, kind_of
from ovtensor.tensors.convert import to_numpy

if TYPE_CHECKING:
    from pathlib import Path

    from ovtensor.engine.passes.base import Conditions

_release = re.match(r"(\d+)\.(\d+)\.", ov.get_version())  # builds of one's own have none
HOLD_IN_BFLOAT16 = _release is None or tuple(map(int, _release.groups())) >= (2026, 4)
# What nodes are called that are computed in float32, whatever the others are computed in.
_PRECISE = "ovtensor.precise/"
_BEYOND = 3e38


class GroupNorms(Pass):
    """Replace the group norms of pictures by sums per channel."""

    name = "group_norms"
    releases = "all: the CPU plugin keeps norms and convolutions in different layouts"
    upstream = "not reported"

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """For graphs of convolutions on a CPU, where the sums hold.

        In float16 they lose more than torch's do: ten times as much where a mean is 300 times the
        deviation. In a model of bfloat16 releases before 2026.4 cannot run what averages over a
        group in float32.
        """
        holds = {"f32": True, "bf16": HOLD_IN_BFLOAT16, "f16": False}[given.backend.precision]
        return holds and given.traits.convolutional and given.device.image_passes

    def on_model(self, model: ov.Model) -> None:
        """See :class:`.Pass`."""
        for node in model.get_ordered_ops():
            if node.get_type_name() == "GroupNormalization":
                picture, *parameters = node.input_values()
                if _follows_convolutions(picture) and all(map(is_constant, parameters)):
                    node.output(0).replace(_normalised(node))
        model.validate_nodes_and_infer_types()

    def on_file(self, path: Path) -> None:
        """Have the sums computed in float32 where bfloat16 is asked for.

        Rounded to bfloat16, a mean square less a squared mean is no variance.
        """
        tree = ET.parse(path)
        for layer in tree.iter("layer"):
            if layer.attrib["name"].startswith(_PRECISE):
                # An attribute of the file format for which OpenVINO's API for Python has no name.
                kept = ET.SubElement(ET.SubElement(layer, "rt_info"), "attribute")
                kept.attrib.update(name="precise", version="0", value="dynamic:f16")
        tree.write(path, encoding="utf-8", xml_declaration=True)


def _follows_convolutions(value: ov.Output) -> bool:
    """Whether a picture comes from convolutions, by way of sums at most.

    In which layout the sum of a convolution and of something else is kept is left to the plugin,
    and was not the same for a model that came out of a cache. Neither would be what is added up
    along its rows, in the last bits.
    """
    node = value.get_node()
    kind = node.get_type_name()
    if kind in ("Add", "Convert"):
        return all(_follows_convolutions(part) or _is_bias(part) for part in node.input_values())
    is_picture = len(value.get_partial_shape()) == 4
    return is_picture and kind in ("Convolution", "ConvolutionBackpropData")


def _is_bias(value: ov.Output) -> bool:
    return kind_of(value) == "Reshape" and is_constant(value.get_node().input_value(0))


def _normalised(node: ov.Node) -> ov.Output:
    """What computes what a group norm of ``(batch, channels, height, width)`` does."""
    picture, *parameters = node.input_values()
    groups, epsilon = (node.get_attributes()[name] for name in ("num_groups", "epsilon"))
    scale, shift = (
        to_numpy(value.get_node(), dtype=np.float32).reshape(1, -1, 1, 1) for value in parameters
    )
    members = scale.size // groups

    def precise(made: ov.Node) -> ov.Node:
        made.set_friendly_name(f"{_PRECISE}{made.get_friendly_name()}")
        return made

    def over_group(values: ov.Node, weight: float) -> ov.Node:
        # A convolution keeps the layout, which reshaping into groups would not.
        weights = np.full((groups, members, members, 1, 1), weight, np.float32)
        return precise(opset13.group_convolution(values, weights, [1, 1], [0, 0], [0, 0], [1, 1]))

    x = opset13.convert(picture, np.float32)
    down, across = opset13.constant([2]), opset13.constant([3])
    width = opset13.gather(opset13.shape_of(x), across, opset13.constant(0))
    # Twice the square root: a division by the width would be rewritten without its name.
    part = precise(opset13.power(precise(opset13.convert(width, np.float32)), np.float32(-0.5)))

    def mean(of_rows: ov.Node) -> ov.Node:
        # In two steps, because a sum of a million terms one after another has a large error.
        summed = precise(opset13.reduce_mean(of_rows, down, keep_dims=True))
        return precise(opset13.multiply(precise(opset13.multiply(summed, part)), part))

    values = mean(opset13.reduce_sum(x, across, keep_dims=True))
    lengths = opset13.reduce_l2(x, across, keep_dims=True)
    squares = mean(precise(opset13.power(lengths, np.float32(2))))

    # Negative weights and not a negation, which would be rewritten without its name as well.
    middle, negative = over_group(values, 1 / members), over_group(values, -1 / members)
    squared = precise(opset13.multiply(middle, negative))
    # Of equal values it is as good as zero, on either side of it; and NaN has to stay.
    difference = precise(opset13.add(over_group(squares, 1 / members), squared))
    variance = precise(opset13.absolute(difference))
    inverse = precise(
        opset13.power(precise(opset13.add(variance, np.float32(epsilon))), np.float32(-0.5))
    )
    factor, opposite = (precise(opset13.multiply(inverse, each)) for each in (scale, -scale))

    # Not named: it is rounded as the picture is. Its bounds are beyond all values.
    rounded = opset13.clamp(negative, -_BEYOND, _BEYOND)
    lost = precise(opset13.multiply(precise(opset13.add(middle, rounded)), opposite))
    rest = precise(opset13.add(lost, shift))
    # Converted are these and not the picture: what follows would be computed in a pass of its own.
    term, factor, rest = (
        opset13.convert(each, picture.get_element_type()) for each in (rounded, factor, rest)
    )
    return opset13.add(opset13.multiply(opset13.add(picture, term), factor), rest).output(0)
