"""Every error that ovtensor raises, as one tree.

::

    OvtensorError
    |- ConversionError (TypeError)          a tensor-like object has no right array
    |  `- DatalessTensorError               it has a shape and a dtype but no values
    |- NonFiniteError (ValueError)          NaN or infinity where a picture was expected
    |- PatchConflictError (RuntimeError)    somebody else patched the same attribute afterwards
    |- MissingExtraError (ImportError)      an optional package is not installed
    |- InputError (ValueError)              an argument that cannot be right
    |  |- BackendError                      unknown backend, device or precision
    |  `- ModelError                        a folder or pipeline that is no usable model
    |- ComponentError (RuntimeError)        a component could not be converted, compiled or run
    |  `- ParityError                       a compiled component does not compute what torch does
    `- SessionClosedError (RuntimeError)    use after the ``with`` block was left

    CacheWarning (UserWarning)              a model cache, or an entry of one, cannot be used

Catch :class:`OvtensorError` for all of them, or the builtin in parentheses where code already
does. A message says what was given, what was wanted and one thing to do about it; what the place
that raised knew stands in the error's fields too, see :class:`OvtensorError`.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendError",
    "CacheWarning",
    "ComponentError",
    "ConversionError",
    "DatalessTensorError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteError",
    "OvtensorError",
    "ParityError",
    "PatchConflictError",
    "SessionClosedError",
]


class OvtensorError(Exception):
    """Base of all errors of this library.

    Attributes
    ----------
    component : str or None
        Which part of a pipeline it was, such as ``"unet"``; None where that is not known.
    device : str or None
        Where it ran, such as ``"GPU"``.
    step : int or None
        Which denoising step it was, from 0.
    tensor : ovtensor.TensorInfo or str or None
        What is known about the tensor, or its text. Never the tensor itself, whose memory would
        then live as long as the error.

    Notes
    -----
    All four are keyword-only arguments, and are kept by `pickle` and `copy`.
    """

    def __init__(
        self,
        *args: object,
        component: str | None = None,
        device: str | None = None,
        step: int | None = None,
        tensor: object = None,
    ) -> None:
        # `__new__` has kept args; torch.compile could not trace a call of the builtin's `__init__`.
        del args
        self.component = component
        self.device = device
        self.step = step
        self.tensor = tensor


class ConversionError(OvtensorError, TypeError):
    """A tensor-like object cannot become the array that was asked for."""


class DatalessTensorError(ConversionError):
    """A tensor with shape and dtype but without values: fake, meta, functional or traced."""


class NonFiniteError(OvtensorError, ValueError):
    """NaN or infinity among values that were about to become a picture."""


class PatchConflictError(OvtensorError, RuntimeError):
    """A patch cannot be undone because somebody else replaced the attribute afterwards."""


class MissingExtraError(OvtensorError, ImportError):
    """A package of one of the extras is not installed; the message has the install command."""

    def __init__(self, *args: object, name: str | None = None, **fields: Any) -> None:
        ImportError.__init__(self, *args, name=name)  # which keeps its message apart
        OvtensorError.__init__(self, *args, **fields)

    @classmethod
    def of(cls, needed_by: str, package: str) -> MissingExtraError:
        """The error for a missing package: who lacks one mostly lacks another, so name `all`."""
        return cls(
            f'{needed_by} needs {package}, which is not installed: pip install "ovtensor[all]"',
            name=package,
        )


class InputError(OvtensorError, ValueError):
    """An argument that cannot be right, whatever the model and the machine."""


class BackendError(InputError):
    """An unknown backend, a device that is not there, or a precision that it does not have."""


class ModelError(InputError):
    """A folder, hub id or pipeline that is not a complete model of a known family."""


class ComponentError(OvtensorError, RuntimeError):
    """A component of a pipeline could not be converted, compiled or run."""


class ParityError(ComponentError):
    """A compiled component computes something else than torch does with the same weights."""


class SessionClosedError(OvtensorError, RuntimeError):
    """A pipeline was used after the ``with`` block that owns its compiled models was left."""


class CacheWarning(UserWarning):
    """A model cache or one of its entries cannot be used; the result is right all the same."""
