"""One reversible swap of attributes that belong to somebody else.

A :class:`Patch` goes in as a whole and comes out as a whole. It knows nothing of the libraries
that it changes; see :mod:`ovtensor.diffusers.patch` for its one caller.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovtensor.errors import PatchConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ABSENT", "Patch", "Swap"]

ABSENT: Any = object()  # the owner inherits the attribute, or has none


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
    own : object
        What `owner` has there when nobody patches it, `ABSENT` included; code like it counts. None
        if that is not known.
    """

    owner: Any
    name: str
    value: Any
    own: Any = None

    def __str__(self) -> str:
        owner = getattr(self.owner, "__qualname__", None) or self.owner.__name__
        return f"{getattr(self.owner, '__module__', '')}.{owner}.{self.name}".lstrip(".")

    @property
    def entry(self) -> Any:
        """What the owner itself holds now, without binding or inheritance."""
        slot = inspect.getattr_static(type(self.owner), self.name, None)
        if inspect.isdatadescriptor(slot):  # kept in the object, not its dict: function.__code__
            return getattr(self.owner, self.name)
        return vars(self.owner).get(self.name, ABSENT)

    @property
    def in_place(self) -> bool:
        """Whether the owner holds `value`, perhaps in another wrapper than ours."""
        return _function(self.entry) is _function(self.value)

    @property
    def is_own(self) -> bool:
        """Whether the owner holds what it has by itself."""
        return bool(_code(self.own) == _code(self.entry))


class Patch:
    """Attribute swaps that go in together and come out together.

    Parameters
    ----------
    swaps : sequence of Swap
        Applied in order, undone in the opposite order.

    Attributes
    ----------
    applied : bool
        Whether the swaps are in place as far as this object did it.

    Notes
    -----
    What is kept and put back is the owner's own raw entry, not the result of ``getattr``: a
    ``staticmethod`` stays one, and an attribute that the owner inherited is deleted again rather
    than pinned. If a swap fails, those before it are taken back; if that is interrupted too, the
    next call begins with it. Threads that share a patch need a lock around both calls.
    """

    def __init__(self, swaps: Sequence[Swap]) -> None:
        self._swaps = tuple(swaps)
        self._originals: tuple[Any, ...] = ()  # kept while any value may be in place
        self.applied = False

    def apply(self) -> None:
        """Put every value in place; no effect if that was done already."""
        if self.applied:
            return
        self._restore()
        self._originals = tuple(swap.entry for swap in self._swaps)
        try:
            for swap in self._swaps:
                setattr(swap.owner, swap.name, swap.value)
            self.applied = True
        except BaseException:
            self._restore()
            raise

    def undo(self) -> None:
        """Restore every entry exactly as it was found; no effect if nothing is applied.

        An entry that its owner has back already, because somebody who had patched it before us has
        restored it since, stays as it is.

        Raises
        ------
        PatchConflictError
            If somebody replaced one of the attributes since. Nothing is restored then, and
            `undo` works again once they took theirs back.
        """
        if self.applied:
            taken = [
                swap
                for swap, original in zip(self._swaps, self._originals, strict=True)
                if not (swap.in_place or swap.entry is original or swap.is_own)
            ]
            if taken:
                raise PatchConflictError(
                    f"cannot undo: {', '.join(map(str, taken))} was replaced by somebody else "
                    "after this patch; undo the later patch first"
                )
        self._restore()

    def _restore(self) -> None:
        self.applied = False
        for swap, original in reversed(list(zip(self._swaps, self._originals, strict=False))):
            if not swap.in_place:
                continue
            if original is ABSENT:
                delattr(swap.owner, swap.name)
            else:
                setattr(swap.owner, swap.name, original)
        self._originals = ()


def _function(entry: Any) -> Any:
    return entry.__func__ if isinstance(entry, (staticmethod, classmethod)) else entry


def _code(entry: Any) -> Any:
    function = _function(entry)
    return getattr(function, "__code__", function)
