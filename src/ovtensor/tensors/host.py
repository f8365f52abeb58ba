"""What a route tells about a tensor: where its values are in host memory, and who owns them."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

from ovtensor.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ovtensor.tensors.dtypes import ElementType

__all__ = [
    "HostArray",
    "Memory",
    "NoNumbersError",
    "TensorInfo",
    "pinned",
    "qualified_name",
]


class NoNumbersError(ConversionError):
    """Text, dates or other objects where numbers were wanted: a tree leaves them as they are."""


class Memory(enum.Enum):
    """Who owns the memory that an array shows."""

    CALLER = "caller"
    """The object that was given, and so the caller: a view stays true while it lives."""
    BORROWED = "borrowed"
    """Something that will write to it or free it by itself, such as an infer request."""
    FRESH = "fresh"
    """Nobody else: it was made for this conversion."""
    UNKNOWN = "unknown"
    """It came out of foreign code that may have handed out a view or a copy."""


@dataclasses.dataclass(slots=True, eq=False)
class HostArray:
    """The values of one tensor in host memory.

    Attributes
    ----------
    bits : numpy.ndarray
        The elements in the carrier type of `element`, one a value, in the tensor's shape.
    element : ElementType
        What the bits mean.
    memory : Memory
        Who owns them.
    mask : numpy.ndarray or None
        True where a value is masked out.
    masked : numpy.ma.MaskedArray or None
        Where the mask is from, which has a fill value and may have a hard mask.
    pin : callable or None
        Makes the array to hand out in place of `bits`, where those are only true until the
        conversion is over; or None, if nothing can hold that memory.
    """

    bits: np.ndarray[Any, Any]
    element: ElementType
    memory: Memory
    mask: np.ndarray[Any, Any] | None = None
    masked: np.ma.MaskedArray[Any, Any] | None = None
    pin: Callable[[], np.ndarray[Any, Any] | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known about a tensor-like object without reading its values.

    Attributes
    ----------
    library : str
        Top-level package of the type.
    type : str
        Qualified name of the type.
    shape : tuple of int or None
        None where it is unknown or ragged.
    dtype : str or None
        Element type in the owning library's own words.
    device : str or None
        Where the values live.
    has_data : bool
        Whether there are values to convert.
    reason : str or None
        Why not.
    zero_copy : bool
        Whether ``to_numpy(x, copy=False, dtype="native")`` can give a view.
    route : str or None
        Which route converts it; None if there is none.
    owner : str or None
        Who owns the memory: a value of `Memory`.
    """

    library: str
    type: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    has_data: bool = False
    reason: str | None = None
    zero_copy: bool = False
    route: str | None = None
    owner: str | None = None

    def __str__(self) -> str:
        told = (("shape", self.shape), ("dtype", self.dtype), ("device", self.device))
        known = ", ".join(f"{name} {value}" for name, value in told if value is not None)
        return f"{self.type} ({known})" if known else self.type


@dataclasses.dataclass(frozen=True, slots=True)
class _Pin:
    """NumPy keeps the object that it got an array interface from alive: so it keeps `owner`."""

    __array_interface__: dict[str, Any]
    owner: Any


def pinned(interface: dict[str, Any], owner: Any) -> np.ndarray[Any, Any]:
    """Make an array over foreign memory that keeps `owner` alive as long as any view of it does.

    Parameters
    ----------
    interface : dict
        NumPy's array interface, version 3.
    owner : object
        What owns the memory.
    """
    import numpy as np

    return np.asarray(_Pin({"version": 3, **interface}, owner))


def qualified_name(cls: type) -> str:
    """Name a type the way an import statement would find it."""
    return f"{cls.__module__}.{cls.__qualname__}"
