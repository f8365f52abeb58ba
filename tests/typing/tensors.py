"""What a type checker tells of the conversions; run by it, never executed.

A line that has to be an error says so with an ignore, which is an error itself once it is needless.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import assert_type

import ovtensor


class OpenvinoWord:
    """``openvino.Type``, of which nothing is known where OpenVINO's types are skipped."""

    def get_type_name(self) -> str:
        return "f16"


def conversions(x: object, tensor: torch.Tensor) -> None:
    assert_type(ovtensor.to_numpy(x), NDArray[Any])
    assert_type(ovtensor.to_numpy(x, dtype=np.float32), NDArray[np.float32])
    assert_type(ovtensor.to_numpy(x, dtype=np.dtype(np.uint8)), NDArray[np.uint8])
    assert_type(ovtensor.to_numpy(x, dtype=np.int64, copy=True), NDArray[np.int64])
    assert_type(ovtensor.to_numpy(x, dtype="native"), NDArray[Any])
    assert_type(ovtensor.to_numpy(x, dtype=torch.float16), NDArray[Any])
    assert_type(ovtensor.to_numpy(x, dtype=float), NDArray[Any])
    assert_type(ovtensor.to_numpy(x, dtype=bool), NDArray[Any])
    assert_type(ovtensor.to_numpy(x, dtype=OpenvinoWord()), NDArray[Any])
    assert_type(ovtensor.to_torch(x), torch.Tensor)
    assert_type(ovtensor.to_torch(tensor, device=torch.device("cpu")), torch.Tensor)
    assert_type(ovtensor.describe(x).shape, tuple[int, ...] | None)


def mistakes(x: object) -> None:
    wrong: NDArray[np.uint8] = ovtensor.to_numpy(x, dtype=np.float32)  # type: ignore[arg-type]
    ovtensor.to_numpy(wrong, casting="safe")  # type: ignore[call-overload]
    ovtensor.to_torch(x, casting="same-value")  # type: ignore[arg-type]
    ovtensor.to_openvino(x, copy="always")  # type: ignore[arg-type]
    ovtensor.to_torch(x, device=1.5)  # type: ignore[arg-type]
    ovtensor.tree_to_numpy(x, casting="safe")  # type: ignore[call-overload]
    ovtensor.tree_to_numpy(x, device="cpu")  # type: ignore[call-overload]
    ovtensor.register_route(5, len)  # type: ignore[arg-type]


def trees(tensor: torch.Tensor, named: dict[str, torch.Tensor], mixed: dict[str, object]) -> None:
    assert_type(ovtensor.tree_to_numpy(tensor), NDArray[Any])
    assert_type(ovtensor.tree_to_numpy([tensor]), list[NDArray[Any]])
    assert_type(ovtensor.tree_to_numpy(named, dtype="float32"), dict[str, NDArray[Any]])
    assert_type(ovtensor.tree_to_numpy(mixed), dict[str, Any])
    assert_type(ovtensor.tree_to_numpy((tensor, 1)), tuple[Any, ...])
    assert_type(ovtensor.tree_to_numpy("a caption"), str)
    assert_type(ovtensor.tree_to_numpy(None), None)
    assert_type(ovtensor.tree_to_torch(named, device="cpu"), dict[str, torch.Tensor])
    assert_type(ovtensor.tree_to_torch([np.ones(2), "text"]), list[Any])
    assert_type(ovtensor.tree_to_torch(4), int)
    assert_type(ovtensor.tree_to_openvino([1.5, None]), list[Any])
