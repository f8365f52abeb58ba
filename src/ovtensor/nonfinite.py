"""What NaN and infinity do: one policy for sessions, image processors and the patch.

The first word given counts, in this order: the argument of the call, what the processor or the
session says, what `patch_diffusers` was told, the environment variable ``OVTENSOR_NONFINITE``, and
``"raise"``.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal, get_args

from ovtensor.errors import InputError, NonFiniteError

__all__ = [
    "ENVIRONMENT",
    "Policy",
    "act",
    "checked_policy",
    "policy_in_force",
    "set_process_policy",
]

Policy = Literal["raise", "warn", "ignore"]
_POLICIES: tuple[Policy, ...] = get_args(Policy)
ENVIRONMENT = "OVTENSOR_NONFINITE"

_process_policy: Policy | None = None  # the word of the patch in force


def checked_policy(value: str, origin: str = "nonfinite") -> Policy:
    """Return `value` if it is a policy; `origin` names it in the error otherwise."""
    for policy in _POLICIES:
        if value == policy:
            return policy
    raise InputError(f"{origin} is {value!r}; it must be 'raise', 'warn' or 'ignore'")


def set_process_policy(policy: Policy | None) -> None:
    """Set what holds where no argument says otherwise; None leaves it to the environment."""
    global _process_policy  # noqa: PLW0603  # one for the process, as the patch itself
    _process_policy = policy


def policy_in_force(*candidates: Policy | None) -> Policy:
    """Choose the first of candidates, the patch's word, the environment's word and ``"raise"``."""
    for candidate in (*candidates, _process_policy):
        if candidate is not None:
            return checked_policy(candidate)
    return checked_policy(os.environ.get(ENVIRONMENT) or "raise", ENVIRONMENT)


def act(policy: Policy, message: str, *, stacklevel: int = 1, **fields: Any) -> None:
    """Do what the policy says about values that are not finite.

    Parameters
    ----------
    policy : {"raise", "warn", "ignore"}
        What holds: see `policy_in_force`.
    message : str
        How many values it were and where, the usual cause and the cure.
    stacklevel : int
        Where a warning points to, as if the caller had called `warnings.warn`.
    **fields
        Those of the error: ``component``, ``device``, ``step``, ``tensor``.

    Raises
    ------
    NonFiniteError
        If the policy is ``"raise"``.
    """
    if policy == "raise":
        raise NonFiniteError(message, **fields)
    if policy == "warn":
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)
