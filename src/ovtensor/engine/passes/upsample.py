"""Upsampling by two and the convolution after it, as one transposed convolution.

Nearest neighbours make a square of four out of each pixel, and a convolution of 3 by 3 over that
meets each of them more than once. With its weights added up beforehand it is a transposed
convolution of 4 by 4 over the picture as it was, which takes 16 products where 36 were taken, and
no upsampled picture in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from openvino import opset13
from openvino.passes import ConstantFolding, Manager

from ovtensor.engine.passes.base import Pass
from ovtensor.engine.passes.nodes import has_attributes
from ovtensor.tensors.convert import to_numpy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ovtensor.engine.passes.base import Conditions

_NEAREST: Mapping[str, object] = {
    "mode": "nearest",
    "shape_calculation_mode": "scales",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
    "pads_begin": [0, 0, 0, 0],
    "pads_end": [0, 0, 0, 0],
}
_SAME_SIZE: Mapping[str, object] = {
    "strides": [1, 1],
    "dilations": [1, 1],
    "pads_begin": [1, 1],
    "pads_end": [1, 1],
    "auto_pad": "explicit",
}


class FoldUpsample(Pass):
    """Replace every upsampling that one convolution of 3 by 3 with constant weights follows."""

    name = "upsample"
    releases = "all: the CPU plugin does not fuse them"
    upstream = "not reported"

    @classmethod
    def applies(cls, given: Conditions) -> bool:
        """For graphs of convolutions on a CPU; in float16 it was not tried."""
        wide = given.backend.precision in ("f32", "bf16")
        return wide and given.traits.convolutional and given.device.image_passes

    def on_model(self, model: ov.Model) -> None:
        """See :class:`.Pass`."""
        for node in model.get_ordered_ops():
            if node.get_type_name() != "Convolution" or not has_attributes(node, _SAME_SIZE):
                continue
            upsample, weights = (value.get_node() for value in node.input_values())
            if _is_upsample(upsample) and weights.get_type_name() == "Constant":
                kernel = _spread(to_numpy(weights, dtype=np.float32))
                if kernel is not None:
                    constant = opset13.constant(kernel, dtype=weights.get_element_type())
                    folded = opset13.convolution_backprop_data(
                        upsample.input_value(0),
                        constant,
                        strides=[2, 2],
                        pads_begin=[1, 1],
                        pads_end=[1, 1],
                        dilations=[1, 1],
                    )
                    node.output(0).replace(folded.output(0))
        model.validate_nodes_and_infer_types()


def _spread(weights: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The weights ``(in, out, 4, 4)`` for those of a convolution, ``(out, in, 3, 3)``."""
    if weights.shape[2:] != (3, 3):
        return None
    spread = np.zeros((*weights.shape[:2], 4, 4), np.float32)
    for row in range(2):
        for column in range(2):
            spread[:, :, row : row + 3, column : column + 3] += weights[:, :, ::-1, ::-1]
    return np.ascontiguousarray(spread.swapaxes(0, 1))


def _is_upsample(node: ov.Node) -> bool:
    if node.get_type_name() != "Interpolate" or not has_attributes(node, _NEAREST):
        return False
    followers = len(node.output(0).get_target_inputs())
    axes = node.input_value(2).get_node()
    if followers != 1 or axes.get_type_name() != "Constant" or list(to_numpy(axes)) != [2, 3]:
        return False
    # The frontend computes the factors from constants.
    factors = ov.Model([node.input_value(1)], [])
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(factors)
    folded = factors.outputs[0].get_node().input_value(0).get_node()
    return folded.get_type_name() == "Constant" and list(to_numpy(folded)) == [2, 2]
