"""SDXL pipelines with each component on torch or on OpenVINO."""

import importlib.util

from ovtensor.sdxl.events import Event
from ovtensor.sdxl.pipelines import sdxl_pipeline, split_backends
from ovtensor.sdxl.report import ComponentReport, Report
from ovtensor.sdxl.session import Session
from ovtensor.sdxl.spec import Backend

# Importing these takes seconds, and is done while a session opens what is cached; that one of them
# is missing is said at once.
for _package in ("diffusers", "transformers"):
    if importlib.util.find_spec(_package) is None:
        raise ModuleNotFoundError(f"No module named {_package!r}", name=_package)

__all__ = [
    "Backend",
    "ComponentReport",
    "Event",
    "Report",
    "Session",
    "sdxl_pipeline",
    "split_backends",
]
