"""diffusers' pipelines with each component on torch or on OpenVINO."""

import importlib.util

from ovtensor.engine.backend import Backend
from ovtensor.engine.events import Event
from ovtensor.pipelines.entry import pipeline, sdxl_pipeline, split_backends
from ovtensor.pipelines.report import ComponentReport, Report
from ovtensor.pipelines.session import Session

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
    "pipeline",
    "sdxl_pipeline",
    "split_backends",
]
