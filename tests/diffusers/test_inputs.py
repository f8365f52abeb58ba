"""What may be given, and what is said when it cannot be right."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch
from diffusers import image_processor as stock
from torch._subclasses import FakeTensorMode

from ovtensor.diffusers import VaeImageProcessor, VideoProcessor
from ovtensor.errors import ConversionError, DatalessTensorError, InputError


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(1))


def pixels(given):
    return VaeImageProcessor().postprocess(given, "uint8")


def test_tensor_likes_and_lists(image):
    expected = np.stack([np.asarray(p) for p in stock.VaeImageProcessor().postprocess(image)])
    bf16 = openvino.Tensor(openvino.Type.bf16, openvino.Shape(image.shape))
    bf16.data.view(np.uint16)[:] = image.bfloat16().view(torch.uint16).numpy()
    for given in (
        image.numpy(),
        openvino.Tensor(image.numpy()),
        torch.nn.Parameter(image),
        image.as_subclass(type("Named", (torch.Tensor,), {})),
        list(image),
        [image[:1], image[1]],
        [image[0].numpy(), openvino.Tensor(image[1].numpy())],
    ):
        assert np.array_equal(pixels(given), expected)
    low = np.stack([np.asarray(p) for p in stock.VaeImageProcessor().postprocess(image.bfloat16())])
    assert not np.array_equal(low, expected), "bfloat16 must round before it shows anything"
    assert np.array_equal(pixels(image.bfloat16()), low)
    assert np.array_equal(pixels(bf16), low)


def test_results_of_an_inference(image):
    given = openvino.opset13.parameter(list(image.shape), np.float32)
    model = openvino.Model([openvino.opset13.result(given)], [given])
    result = openvino.compile_model(model, "CPU")(image.numpy())
    assert np.array_equal(pixels(result), pixels(image))


def test_preprocess_takes_tensor_likes(image):
    image = image.sigmoid()
    expected = stock.VaeImageProcessor(do_resize=False).preprocess(image)
    processor = VaeImageProcessor(do_resize=False)
    assert torch.equal(processor.preprocess(openvino.Tensor(image.numpy())), expected)


def test_pictures_of_different_sizes(image):
    pictures = VaeImageProcessor().postprocess([image[0], image[1][:, :4]])
    assert [p.size for p in pictures] == [(6, 8), (6, 4)]

    class WithHook(VaeImageProcessor):
        @staticmethod
        def denormalize(images):
            return images

    for processor, output_type in [
        *((VaeImageProcessor(), word) for word in ("uint8", "np", "pt", "latent")),
        (WithHook(), "pil"),
    ]:
        with pytest.raises(InputError, match="different shapes"):
            processor.postprocess([image[0], image[1][:, :4]], output_type)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 0, 8)])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8"])
def test_an_empty_batch(shape, output_type):
    with pytest.raises(InputError, match="no picture in an empty batch"):
        VaeImageProcessor().postprocess(torch.empty(shape), output_type)
    with pytest.raises(InputError, match="no picture in an empty batch"):
        VaeImageProcessor().postprocess([], output_type)
    with pytest.raises(InputError, match=r"shape \(0, 8\), wanted"):
        VaeImageProcessor().postprocess(torch.empty(0, 8), output_type)


def test_wrong_inputs_are_named(image):
    with pytest.raises(InputError, match=r"\(3, 8, 6\), wanted \(batch, channels"):
        pixels(image[0])
    with pytest.raises(InputError, match="do_denormalize has 1 entries for a batch of 2"):
        VaeImageProcessor().postprocess(image, do_denormalize=[True])
    with pytest.raises(InputError, match="do_denormalize=True: give one bool for each image"):
        VaeImageProcessor().postprocess(image, do_denormalize=True)
    with pytest.raises(InputError, match="7 channels"):
        VaeImageProcessor().postprocess(torch.zeros(1, 7, 4, 4))
    with pytest.raises(ConversionError, match="complex64"):
        pixels(torch.zeros(1, 3, 4, 4, dtype=torch.complex64))


def test_tensors_without_values(image):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for given in (mode.from_tensor(image), image.to("meta")):
        for output_type in ("pil", "np", "pt", "uint8"):
            with pytest.raises(DatalessTensorError):
                VaeImageProcessor().postprocess(given, output_type)
        with pytest.raises(DatalessTensorError):
            VaeImageProcessor.pt_to_numpy(given)
    with mode, pytest.raises(DatalessTensorError):
        pixels(image)


@pytest.mark.parametrize("shape", [(3, 4, 6, 8), (1, 3, 0, 6, 8)])
def test_videos_of_a_wrong_shape(shape):
    with pytest.raises(InputError, match=r"wanted videos \(batch, channels, frames"):
        VideoProcessor().postprocess_video(torch.zeros(shape))


def test_latents_of_any_kind_come_back_as_a_tensor(image):
    for given in (image.numpy(), openvino.Tensor(image.numpy()), list(image)):
        assert torch.equal(VaeImageProcessor().postprocess(given, "latent"), image)
    assert VaeImageProcessor().postprocess(image, "latent") is image
