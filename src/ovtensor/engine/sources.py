"""Where weights come from; a source shows a module without them until there is work for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ovtensor.engine.copies import not_offloaded, with_dtype
from ovtensor.engine.identity import config_of, plain, structure, versions
from ovtensor.tensors.host import qualified_name

if TYPE_CHECKING:
    import torch

    from ovtensor.cache import Store


class Source(Protocol):
    """The weights of one module."""

    @property
    def meta_module(self) -> Any:
        """The module, whose tensors may have no values."""
        ...

    @property
    def size(self) -> int:
        """How many weights it has."""
        ...

    @property
    def sixteen_bit(self) -> torch.dtype | None:
        """The 16-bit dtype that all weights have, if they may be loaded in it and changed."""
        ...

    def load(self, dtype: torch.dtype) -> Any:
        """The module with weights in ``dtype``; the caller's is not changed.

        Of the right dtype it can be the caller's own module.
        """
        ...

    def key_fields(self, store: Store) -> dict[str, Any]:
        """What tells these weights from all others, and the versions of what computes with them.

        Raises ``UndescribedError`` if nothing can.
        """
        ...


class ModuleSource:
    """A module in memory; it is the caller's, and never changed."""

    sixteen_bit: torch.dtype | None = None

    def __init__(self, module: Any) -> None:
        self._module = not_offloaded(plain(module))

    @property
    def meta_module(self) -> Any:
        """See :class:`Source`."""
        return self._module

    @property
    def size(self) -> int:
        """See :class:`Source`."""
        return sum(parameter.numel() for parameter in self._module.parameters())

    def load(self, dtype: torch.dtype) -> Any:
        """See :class:`Source`."""
        return with_dtype(self._module, dtype)

    def key_fields(self, store: Store) -> dict[str, Any]:
        """See :class:`Source`; a hash of the memory."""
        described = structure(self._module)
        tensors = [*self._module.named_parameters(), *self._module.named_buffers()]
        return {
            "class": qualified_name(type(self._module)),
            "config": config_of(self._module),
            "structure": described,
            "tensors": store.fingerprint_tensors(tensors),
            "versions": versions(),
        }
