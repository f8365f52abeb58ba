"""SDXL pipelines with each component on torch or on OpenVINO."""

from ovtensor.sdxl.session import ComponentReport, Session, sdxl_pipeline
from ovtensor.sdxl.spec import Backend

__all__ = ["Backend", "ComponentReport", "Session", "sdxl_pipeline"]
