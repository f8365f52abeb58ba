"""What a kind of component is: classes that are known, their graphs, and what takes their place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from ovtensor.engine.graph import NO_TRAITS, GraphTraits

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    import torch

    from ovtensor.engine.graph import Graph
    from ovtensor.engine.runners import Runner
    from ovtensor.pipelines.proxies import Attachment

    class Run(Protocol):
        """Makes the runner of one of the component's graphs: at once, or when first called."""

        def __call__(
            self, part: GraphKind, *, in_f32: bool = False, deferred: bool = False
        ) -> Runner:
            """Make it, on request in float32."""
            ...


@dataclasses.dataclass(frozen=True, slots=True)
class GraphKind:
    """One graph of a kind.

    Attributes
    ----------
    suffix : str
        What its name adds to the component's.
    make : callable
        Gives the graph of a name and a module.
    traits : GraphTraits
        What is known of it.
    """

    suffix: str
    make: Callable[[str, Any], Graph]
    traits: GraphTraits = NO_TRAITS


class Kind:
    """Base of the kinds; their modules import no library before a proxy is made.

    Attributes
    ----------
    name : str
        For error messages.
    classes : tuple of str
        Names of the classes of diffusers and transformers that it knows.
    graphs : tuple of GraphKind
        The first one is opened first.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    graphs: ClassVar[tuple[GraphKind, ...]]

    @property
    def f32_by_default(self) -> bool:
        """Whether the precision ``"auto"`` is f32 where the device has it."""
        return any(graph.traits.f32_by_default for graph in self.graphs)

    def obstacle(self, module: Any) -> str | None:  # noqa: ARG002
        """Why a module of this kind cannot be converted, if it cannot."""
        return None

    def dtype_on_torch(self, module: Any) -> torch.dtype:
        """The dtype that a module of a loaded pipeline computes in when nothing is asked for."""
        dtype: torch.dtype = module.dtype
        return dtype

    def watched(self, module: Any, to: Attachment) -> Any:  # noqa: ARG002
        """What takes the place of a module that stays on torch; itself if nothing has to."""
        return module

    def reruns(self, to: Attachment) -> bool:  # noqa: ARG002
        """Whether it runs once more in float32 where it overflows, so needs a proxy on torch."""
        return False

    def proxy(self, shown: Any, run: Run, to: Attachment) -> Any:
        """What takes the place of a module that is computed by runners.

        `shown` is the module or its meta module, whose config and attributes pipelines read.
        """
        raise NotImplementedError
