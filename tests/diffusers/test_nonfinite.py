"""NaN and infinity on the way to a picture."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers import image_processor as stock
from diffusers.utils import pil_utils

from ovtensor import patch_diffusers
from ovtensor.diffusers import VaeImageProcessor, VaeImageProcessorLDM3D, VideoProcessor
from ovtensor.errors import InputError, NonFiniteError

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("OVTENSOR_NONFINITE", raising=False)


@pytest.fixture
def broken():
    image = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    image[1, 0, 2, 3] = NAN
    image[1, 1, 0, 0] = -INF
    image[3, 2, 7, 7] = INF
    image[0, 0, 0, 0] = -1.5
    image[2, 0, 0, 0] = 1.25
    return image


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8"])
@pytest.mark.parametrize("flags", [None, [False, True, True, False]])
def test_the_error_says_what_where_why_and_the_cure(broken, dtype, output_type, flags):
    with pytest.raises(NonFiniteError) as caught:
        VaeImageProcessor().postprocess(broken.to(dtype), output_type, flags)
    message = str(caught.value)
    assert "3 of 768 decoded values are not finite (1 NaN, 2 infinite)" in message
    assert "images 1, 3 of a batch of 4" in message
    assert "the rest lies in [-1.5, 1.25]" in message
    assert "overflowed in float16" in message
    assert "pipe.vae.to(torch.float32)" in message
    error = caught.value
    assert (error.device, error.tensor.shape, error.tensor.dtype) == ("cpu", (3, 8, 8), str(dtype))


def test_one_image_and_nothing_finite():
    with pytest.raises(NonFiniteError, match=r"image 0 of a batch of 1.*no value is finite"):
        VaeImageProcessor().postprocess(torch.full((1, 3, 4, 4), NAN))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("flags", [None, [True, False, True, False]])
@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FFFFFFF, -1])
def test_warn_returns_every_image_as_diffusers(broken, dtype, flags, payload):
    broken[1, 2, 0, 0] = torch.tensor(payload, dtype=torch.int32).view(torch.float32)
    broken = broken.to(dtype)
    expected = stock.VaeImageProcessor().postprocess(broken, do_denormalize=flags)
    with pytest.warns(RuntimeWarning, match="4 of 768 decoded values"):
        actual = VaeImageProcessor().postprocess(broken, do_denormalize=flags, nonfinite="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = VaeImageProcessor().postprocess(broken, do_denormalize=flags, nonfinite="ignore")
    for a, b, e in zip(actual, ignored, expected, strict=True):
        assert a.tobytes() == b.tobytes() == e.tobytes()


def test_large_finite_values_whose_sum_overflows_are_no_alarm():
    image = torch.full((1, 3, 8, 8), 3e38)
    assert VaeImageProcessor().postprocess(image)[0].getextrema() == ((255, 255),) * 3
    assert VaeImageProcessor().postprocess(image, "np").min() == 1
    half = torch.full((1, 3, 8, 8), 6e4, dtype=torch.float16)
    assert VaeImageProcessor().postprocess(half, "pt").min() == 1


def test_latents_are_not_looked_at():
    latents = torch.full((1, 4, 2, 2), NAN)
    assert VaeImageProcessor().postprocess(latents, "latent") is latents


def test_who_decides(broken, monkeypatch):
    def outcome(processor=None, **kwargs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                (processor or VaeImageProcessor()).postprocess(broken, "np", **kwargs)
            except NonFiniteError:
                return "raise"
        return "warn" if caught else "ignore"

    assert outcome() == "raise"
    monkeypatch.setenv("OVTENSOR_NONFINITE", "warn")
    assert outcome() == "warn"
    assert outcome(nonfinite="raise") == "raise"
    with patch_diffusers(nonfinite="ignore"):
        assert outcome() == "ignore"
        assert outcome(stock.VaeImageProcessor()) == "ignore"
        with patch_diffusers(nonfinite="raise"), patch_diffusers():
            assert outcome() == "raise"
        assert outcome() == "ignore"
        own = VaeImageProcessor()
        own.nonfinite = "raise"
        assert outcome(own) == "raise"
        assert outcome(own, nonfinite="ignore") == "ignore"
    assert outcome() == "warn"
    monkeypatch.setenv("OVTENSOR_NONFINITE", "")
    assert outcome() == "raise"


def test_a_policy_that_is_none_is_refused(broken, monkeypatch):
    with pytest.raises(InputError, match="nonfinite is 'quiet'"):
        VaeImageProcessor().postprocess(broken, nonfinite="quiet")
    with pytest.raises(InputError, match="nonfinite is 'quiet'"):
        patch_diffusers(nonfinite="quiet")
    monkeypatch.setenv("OVTENSOR_NONFINITE", "quiet")
    with pytest.raises(InputError, match="OVTENSOR_NONFINITE is 'quiet'"):
        VaeImageProcessor().postprocess(broken)


def test_images_with_depth_are_guarded(broken):
    image = torch.cat([broken, torch.zeros(4, 1, 8, 8)], 1)
    processor = VaeImageProcessorLDM3D()
    for output_type in ("pil", "np", "uint8"):
        with pytest.raises(NonFiniteError, match="images 1, 3 of a batch of 4"):
            processor.postprocess(image, output_type)
    with pytest.warns(RuntimeWarning, match="images 1, 3"):
        colours, _ = processor.postprocess(image, "np", nonfinite="warn")
    assert np.isnan(colours[1]).any()
    assert np.isfinite(colours[[0, 2]]).all()


def test_a_warning_points_to_the_caller(broken):
    with pytest.warns(RuntimeWarning) as caught:
        VaeImageProcessor().postprocess(broken, nonfinite="warn")
    assert caught[0].filename == __file__


def test_the_helpers_are_guarded_too(broken):
    array = broken.permute(0, 2, 3, 1).numpy()
    with pytest.raises(NonFiniteError, match="images 1, 3"):
        VaeImageProcessor.numpy_to_pil(np.clip(array, 0, INF))
    with patch_diffusers():
        with pytest.raises(NonFiniteError):
            pil_utils.pt_to_pil(broken)
        with pytest.raises(NonFiniteError):
            pil_utils.numpy_to_pil(array)
    with pytest.raises(NonFiniteError):
        VideoProcessor().postprocess_video(broken.transpose(0, 1)[None], "np")


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "uint8"])
@pytest.mark.parametrize("flags", [None, [False, False]])
@pytest.mark.parametrize("place", [0, 1])
def test_one_broken_image_of_a_list(output_type, flags, place):
    images = [torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)]
    images[place][0, 1, 2] = NAN
    with pytest.raises(NonFiniteError, match=f"image {place} of a batch of 2"):
        VaeImageProcessor().postprocess(images, output_type, flags)
