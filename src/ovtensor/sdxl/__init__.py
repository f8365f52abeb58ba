"""SDXL pipelines with each component on torch or on OpenVINO."""

from ovtensor.sdxl.events import Event
from ovtensor.sdxl.pipelines import sdxl_pipeline, split_backends
from ovtensor.sdxl.report import ComponentReport, Report
from ovtensor.sdxl.session import Session
from ovtensor.sdxl.spec import Backend

__all__ = [
    "Backend",
    "ComponentReport",
    "Event",
    "Report",
    "Session",
    "sdxl_pipeline",
    "split_backends",
]
