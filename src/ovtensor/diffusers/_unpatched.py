"""diffusers' own processors and functions, whoever has patched them.

Somebody may have, for a while, when this is first imported; then what diffusers' classes hold is
theirs. So the modules are run once more, unseen by anybody: that takes a millisecond.
"""

from __future__ import annotations

import importlib.util
from typing import Any

__all__ = [
    "IPAdapterMaskProcessor",
    "VaeImageProcessor",
    "VaeImageProcessorLDM3D",
    "VideoProcessor",
    "numpy_to_pil",
    "pt_to_pil",
]


def _again(name: str) -> Any:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_image_processor = _again("diffusers.image_processor")
_pil_utils = _again("diffusers.utils.pil_utils")

VaeImageProcessor = _image_processor.VaeImageProcessor
VaeImageProcessorLDM3D = _image_processor.VaeImageProcessorLDM3D
IPAdapterMaskProcessor = _image_processor.IPAdapterMaskProcessor
VideoProcessor = _again("diffusers.video_processor").VideoProcessor
numpy_to_pil = _pil_utils.numpy_to_pil
pt_to_pil = _pil_utils.pt_to_pil
