"""What type checkers know of the package itself, whose names are looked up on first use."""

from pathlib import Path

from typing_extensions import assert_type

import ovtensor

assert_type(ovtensor.__version__, str)
assert_type(ovtensor.tiny_sdxl_path(), Path)
assert_type(ovtensor.is_patched(), bool)
assert_type(ovtensor.describe([1.0]), ovtensor.TensorInfo)
assert_type(ovtensor.Backend("openvino"), ovtensor.Backend)
