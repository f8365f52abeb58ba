"""A torch module as an OpenVINO model that runs; knows nothing of diffusers and transformers.

:func:`compile_module` is the way in for any module; :class:`Opener` is what sessions over several
graphs build on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovtensor.engine.backend import Backend as Backend
    from ovtensor.engine.compiled import RunnerStats as RunnerStats
    from ovtensor.engine.events import Event as Event
    from ovtensor.engine.graph import Graph as Graph
    from ovtensor.engine.graph import GraphInput as GraphInput
    from ovtensor.engine.graph import GraphSpec as GraphSpec
    from ovtensor.engine.graph import GraphTraits as GraphTraits
    from ovtensor.engine.memory import MemoryPolicy as MemoryPolicy
    from ovtensor.engine.modules import CompiledModule as CompiledModule
    from ovtensor.engine.modules import compile_module as compile_module
    from ovtensor.engine.opening import Opener as Opener
    from ovtensor.engine.plan import ConversionPlan as ConversionPlan

# Looked up on first use (PEP 562): memory.py and weights.py are for those who lack OpenVINO, too.
_LAZY = {
    "Backend": "backend",
    "CompiledModule": "modules",
    "ConversionPlan": "plan",
    "Event": "events",
    "Graph": "graph",
    "GraphInput": "graph",
    "GraphSpec": "graph",
    "GraphTraits": "graph",
    "MemoryPolicy": "memory",
    "Opener": "opening",
    "RunnerStats": "compiled",
    "compile_module": "modules",
}

__all__ = [*_LAZY]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
