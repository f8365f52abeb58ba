"""One reversible swap of attributes that belong to somebody else.

A :class:`Patch` goes in as a whole and comes out as a whole. It knows nothing of the libraries
that it changes; see :mod:`ovtensor.diffusers.install` for its one caller.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovtensor.errors import PatchConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Patch", "Swap"]

_ABSENT: Any = object()  # the owner inherits the attribute, or has none


@dataclass(frozen=True, slots=True)
class Swap:
    """What one attribute is to become.

    Parameters
    ----------
    owner : object
        A class, a module, or a function of which ``__code__`` is swapped.
    name : str
        The attribute of `owner`.
    value : object
        The raw entry to put there: wrap it in ``staticmethod`` where the owner has one.
    """

    owner: Any
    name: str
    value: Any

    def __str__(self) -> str:
        owner = getattr(self.owner, "__qualname__", None) or self.owner.__name__
        return f"{getattr(self.owner, '__module__', '')}.{owner}.{self.name}".lstrip(".")


class Patch:
    """Attribute swaps that go in together and come out together.

    Parameters
    ----------
    swaps : sequence of Swap
        Applied in order, undone in the opposite order.

    Notes
    -----
    What is kept and put back is the owner's own raw entry, not the result of ``getattr``: a
    ``staticmethod`` stays one, and an attribute that the owner inherited is deleted again rather
    than pinned. Both calls are atomic towards each other and leave nothing half done: if a swap
    fails, those before it are taken back.
    """

    def __init__(self, swaps: Sequence[Swap]) -> None:
        self._swaps = tuple(swaps)
        self._originals: list[Any] | None = None
        self._lock = threading.RLock()

    @property
    def applied(self) -> bool:
        """Whether the swaps are in place as far as this object did it."""
        return self._originals is not None

    def apply(self) -> None:
        """Put every value in place; no effect if that was done already."""
        with self._lock:
            if self._originals is not None:
                return
            originals: list[Any] = []
            try:
                for swap in self._swaps:
                    original = _entry(swap.owner, swap.name)
                    setattr(swap.owner, swap.name, swap.value)
                    originals.append(original)
            except BaseException:
                self._restore(originals)
                raise
            self._originals = originals

    def undo(self) -> None:
        """Restore every entry exactly as it was found; no effect if nothing is applied.

        Raises
        ------
        PatchConflictError
            If somebody replaced one of the attributes since. Nothing is restored then, and
            `undo` works again once they took theirs back.
        """
        with self._lock:
            if self._originals is None:
                return
            taken = [s for s in self._swaps if _entry(s.owner, s.name) is not s.value]
            if taken:
                raise PatchConflictError(
                    f"cannot undo: {', '.join(map(str, taken))} was replaced by somebody else "
                    "after this patch; undo the later patch first"
                )
            self._restore(self._originals)
            self._originals = None

    def _restore(self, originals: list[Any]) -> None:
        for swap, original in reversed(list(zip(self._swaps, originals, strict=False))):
            if original is _ABSENT:
                delattr(swap.owner, swap.name)
            else:
                setattr(swap.owner, swap.name, original)


def _entry(owner: Any, name: str) -> Any:
    """Look up what `owner` itself holds under `name`, without binding or inheritance."""
    slot = inspect.getattr_static(type(owner), name, None)
    if inspect.isdatadescriptor(slot):  # kept in the object, not in its dict: function.__code__
        return getattr(owner, name)
    return vars(owner).get(name, _ABSENT)
