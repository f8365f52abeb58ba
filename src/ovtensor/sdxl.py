"""The names of :mod:`ovtensor.pipelines`, where they were in version 0.1."""

from ovtensor.pipelines import (
    Backend,
    ComponentReport,
    Event,
    Report,
    Session,
    sdxl_pipeline,
    split_backends,
)

__all__ = [
    "Backend",
    "ComponentReport",
    "Event",
    "Report",
    "Session",
    "sdxl_pipeline",
    "split_backends",
]
