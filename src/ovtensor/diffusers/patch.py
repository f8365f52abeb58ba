"""`patch_diffusers`: the processors of this package as the behaviour of every pipeline."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diffusers import image_processor as stock
from diffusers.utils import pil_utils
from diffusers.video_processor import VideoProcessor

from ovtensor.diffusers import _unpatched
from ovtensor.diffusers import image_processor as ours
from ovtensor.diffusers._swaps import ABSENT, Patch, Swap
from ovtensor.errors import PatchConflictError
from ovtensor.nonfinite import checked_policy, set_process_policy

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ovtensor.nonfinite import Policy

__all__ = ["PatchHandle", "is_patched", "patch_diffusers"]

# Pipelines bind classes and functions by name when they are imported, so what changes is inside of
# them: the entries of the classes, and the code of the two functions. The two below run in the
# globals of diffusers.utils.pil_utils, and so must import what they use.


def _pt_to_pil(images):  # type: ignore[no-untyped-def]  # its signature is diffusers' own
    from ovtensor.diffusers._methods import plain_pt_to_pil

    return plain_pt_to_pil(images)


def _numpy_to_pil(images):  # type: ignore[no-untyped-def]
    from ovtensor.diffusers._methods import plain_numpy_to_pil

    return plain_numpy_to_pil(images)


_FAMILY = (
    (stock.VaeImageProcessor, ours.VaeImageProcessor, _unpatched.VaeImageProcessor),
    (stock.VaeImageProcessorLDM3D, ours.VaeImageProcessorLDM3D, _unpatched.VaeImageProcessorLDM3D),
    (stock.IPAdapterMaskProcessor, ours.IPAdapterMaskProcessor, _unpatched.IPAdapterMaskProcessor),
    (VideoProcessor, ours.VideoProcessor, _unpatched.VideoProcessor),
)
_PATCH = Patch(
    [
        Swap(theirs, name, entry, vars(own).get(name, ABSENT))
        for theirs, mine, own in _FAMILY
        for name, entry in vars(mine).items()
        if not name.startswith("_") and callable(getattr(mine, name))
    ]
    + [
        Swap(theirs, "__code__", mine.__code__, own.__code__)
        for theirs, mine, own in (
            (pil_utils.pt_to_pil, _pt_to_pil, _unpatched.pt_to_pil),
            (pil_utils.numpy_to_pil, _numpy_to_pil, _unpatched.numpy_to_pil),
        )
    ]
)
_handles: list[PatchHandle] = []  # those not yet undone, oldest first
_lock = threading.RLock()


class PatchHandle:
    """One caller's claim on the patch; the patch stays until the last claim is given up.

    Use it as a context manager, or call `undo`. Safe to share between threads.
    """

    def __init__(self, nonfinite: Policy | None) -> None:
        self._nonfinite = nonfinite

    def undo(self) -> None:
        """Give up this claim; with the last one, restore diffusers exactly. Twice is no error.

        Raises
        ------
        PatchConflictError
            If somebody replaced one of the attributes after us. Nothing changes then; undo theirs
            and call this again.
        """
        try:
            self._give_up()
        except PatchConflictError:
            raise
        except BaseException:  # such as Ctrl-C, which is to leave nothing behind
            self._give_up()
            raise

    def _give_up(self) -> None:
        with _lock:
            if self in _handles:
                if len(_handles) == 1:
                    _PATCH.undo()
                _handles.remove(self)
            _publish_policy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch_diffusers(*, nonfinite: Policy | None = None) -> PatchHandle:
    """Make the processors of this package the behaviour of every diffusers pipeline.

    Pipelines that exist already are included, and so are those of third parties: the methods
    change inside of diffusers' own classes.

    Parameters
    ----------
    nonfinite : {"raise", "warn", "ignore"}, optional
        What NaN or infinity in a decoded image does in the whole process. None leaves it to an
        earlier `patch_diffusers`, then to ``OVTENSOR_NONFINITE``, then ``"raise"``.

    Returns
    -------
    PatchHandle
        A context manager with `undo`.

    Raises
    ------
    InputError
        If `nonfinite` is no policy.

    Notes
    -----
    A second call changes nothing in diffusers and gives a second handle; the patch is gone when
    every handle is undone, in whatever order. It is one for the process, not for a thread.

    Examples
    --------
    >>> from ovtensor import is_patched, patch_diffusers
    >>> with patch_diffusers():
    ...     is_patched()
    True
    >>> is_patched()
    False
    """
    policy = None if nonfinite is None else checked_policy(nonfinite)
    handle = PatchHandle(policy)
    try:
        with _lock:
            _handles.append(handle)  # before the patch, so that to undo knows of it
            _PATCH.apply()
            _publish_policy()
        return handle  # noqa: TRY300  # an interrupt here is one before the caller has it
    except BaseException:
        handle.undo()
        raise


def is_patched() -> bool:
    """Tell whether `patch_diffusers` is in force."""
    return _PATCH.applied


def _publish_policy() -> None:
    given = [h._nonfinite for h in _handles if h._nonfinite is not None]  # noqa: SLF001
    set_process_policy(given[-1] if given else None)
