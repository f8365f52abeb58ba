"""What a type checker knows of the image processors, the patch and the errors.

An ignored error that is gone is an error itself (`warn_unused_ignores`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from typing_extensions import assert_type

import ovtensor
from ovtensor import NonFiniteError, is_patched, patch_diffusers
from ovtensor.diffusers import PatchHandle, VaeImageProcessor, VaeImageProcessorLDM3D
from ovtensor.nonfinite import act, policy_in_force

Word = Literal["raise", "warn", "ignore"]


def the_patch(word: Word | None) -> None:
    handle = patch_diffusers(nonfinite=word)
    assert_type(handle, PatchHandle)
    assert_type(handle.undo(), None)
    assert_type(is_patched(), bool)
    with ovtensor.patch_diffusers(nonfinite="warn") as again:
        assert_type(again, PatchHandle)
    patch_diffusers(nonfinite="rasie")  # type: ignore[arg-type]
    PatchHandle("rasie")  # type: ignore[arg-type]


def the_processors(decoded: torch.Tensor) -> None:
    processor = VaeImageProcessor()
    assert_type(processor.nonfinite, Word | None)
    processor.nonfinite = "ignore"
    processor.nonfinite = "rasie"  # type: ignore[assignment]
    # pyright gives an assigned method the type that diffusers declares
    processor.postprocess(decoded, nonfinite="raise")  # pyright: ignore[reportCallIssue]
    processor.postprocess(decoded, nonfinite="rasie")  # type: ignore[arg-type]
    VaeImageProcessorLDM3D().postprocess(decoded, nonfinite="rasie")  # type: ignore[arg-type]
    assert_type(processor.preprocess(decoded), torch.Tensor)


def the_helpers(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    assert_type(VaeImageProcessor.numpy_to_pil(pixels), list[Image.Image])


def the_policy() -> None:
    assert_type(policy_in_force("warn", None), Word)
    policy_in_force("rasie")  # type: ignore[arg-type]
    act("warn", "two latents", component="unet", step=3)
    act("warm", "two latents")  # type: ignore[arg-type]


def the_errors(error: NonFiniteError) -> None:
    assert_type(error.component, str | None)
    assert_type(error.device, str | None)
    assert_type(error.step, int | None)
    assert_type(error.tensor, object)
    assert_type(ovtensor.MissingExtraError("no torch", name="torch").name, str | None)
    NonFiniteError("two latents", component=3)  # type: ignore[arg-type]
    NonFiniteError("two latents", compnent="unet")  # type: ignore[call-arg]
