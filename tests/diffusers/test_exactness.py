"""Every value as diffusers makes it, in the same process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import image_processor as stock
from diffusers.utils import pil_utils
from diffusers.video_processor import VideoProcessor as StockVideo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ovtensor import diffusers as ours
from ovtensor import patch_diffusers, to_openvino, tree_to_numpy
from ovtensor.diffusers import _outputs, _pixels, _unpatched
from ovtensor.errors import InputError
from rounding import next_to_every_edge

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def layouts(image, layout):
    """Give `image` the same values in other memory."""
    if layout == "channels_last":
        return image.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return image.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "strided":
        wide = torch.full((*image.shape[:3], 2 * image.shape[3]), 7.0, dtype=image.dtype)
        wide[..., ::2] = image
        return wide[..., ::2]
    return image.contiguous()


@st.composite
def cases(draw):
    batch, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 4]))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if channels == 1:  # diffusers squeezes one row or column of a grey picture away
        height, width = max(height, 2), max(width, 2)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    image = torch.randn(batch, channels, height, width, generator=generator)
    image = image * draw(st.sampled_from([0.4, 1.0, 30.0]))
    flags = draw(st.none() | st.lists(st.booleans(), min_size=batch, max_size=batch))
    do_normalize = draw(st.booleans())
    if flags is not None or not do_normalize:
        image = image.clamp(-1, 1)  # what is not denormalized is cast, and only bytes are defined
        undone = [not f for f in flags] if flags is not None else [True] * batch
        image[undone] = image[undone].abs()
    image = layouts(image.to(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(LAYOUTS)))
    return image, flags, do_normalize


LAYOUTS = ("contiguous", "channels_last", "transposed", "strided")


def assert_same_pictures(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a.mode, a.size) == (e.mode, e.size)
        assert np.array_equal(np.asarray(a), np.asarray(e))  # quicker to tell than bytes


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(["pil", "np", "pt", "latent", "uint8"]))
def test_every_output_equals_diffusers(case, output_type):
    image, flags, do_normalize = case
    before = image.clone()
    reference = stock.VaeImageProcessor(do_normalize=do_normalize)
    processor = ours.VaeImageProcessor.from_config(reference.config)
    actual = processor.postprocess(image, output_type, flags)
    if output_type == "uint8":
        expected = reference.postprocess(image, "np", flags)
        expected = (expected * 255).round().astype("uint8")
        assert actual.flags.c_contiguous
    else:
        expected = reference.postprocess(image, output_type, flags)
    if output_type == "pil":
        assert_same_pictures(actual, expected)
    elif output_type in ("np", "uint8"):
        assert actual.dtype == expected.dtype
        assert np.array_equal(actual, expected)
    else:
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    assert torch.equal(image, before), "the caller's tensor was changed"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_value_of_the_16_bit_types(dtype, channels):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    image = every[every.isfinite()]
    image = image[: image.numel() // 64 * 64].view(1, 1, 64, -1).expand(1, channels, -1, -1)
    expected = stock.VaeImageProcessor().postprocess(image)
    assert_same_pictures(ours.VaeImageProcessor().postprocess(image), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_values_next_to_every_rounding_edge(channels):
    image = next_to_every_edge().expand(1, channels, -1, -1)
    expected = stock.VaeImageProcessor().postprocess(image)
    assert_same_pictures(ours.VaeImageProcessor().postprocess(image), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("values", [1, 333, 334, 2500, 10500])
def test_images_of_several_blocks(monkeypatch, channels, values):
    image = torch.randn(2, channels, 5, 700) if values > 1 else torch.randn(2, channels, 2, 3)
    expected = stock.VaeImageProcessor().postprocess(image)
    monkeypatch.setattr(_pixels, "BLOCK_BYTES", 4 * values)
    for layout in LAYOUTS:
        actual = ours.VaeImageProcessor().postprocess(layouts(image, layout))
        assert_same_pictures(actual, expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_not_denormalized_wraps_around_as_in_numpy(channels):
    image = torch.tensor([-3.0, -0.01, 0.5, 1.004, 2.0, 1e9, 1e30, -1e30] * 8).view(1, 1, 8, 8)
    image = image.expand(1, channels, 8, 8)
    reference = stock.VaeImageProcessor(do_normalize=False)
    expected = reference.postprocess(image)
    actual = ours.VaeImageProcessor.from_config(reference.config).postprocess(image)
    assert_same_pictures(actual, expected)
    if channels == 3 and "RGB" in _outputs._WORD_MODES:  # with the byte between two pixels
        raw = [picture.tobytes("raw", "RGBX") for picture in (actual[0], expected[0])]
        assert len(set(raw)) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([1, 3, 4]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_the_static_helpers_for_arrays(dtype, channels, batched, seed):
    shape = (2, 5, 6, channels) if batched else (5, 6, channels)
    image = np.random.default_rng(seed).random(shape).astype(dtype)
    expected = _unpatched.VaeImageProcessor.numpy_to_pil(image)
    assert_same_pictures(ours.VaeImageProcessor.numpy_to_pil(image), expected)
    planar = np.ascontiguousarray(np.moveaxis(image, -1, -3))
    assert_same_pictures(ours.VaeImageProcessor.numpy_to_pil(np.moveaxis(planar, -3, -1)), expected)
    image.flags.writeable = False
    with patch_diffusers():
        assert_same_pictures(pil_utils.numpy_to_pil(image), expected)


def test_pt_to_pil():
    image = torch.randn(2, 3, 9, 8)
    expected = pil_utils.pt_to_pil(image)
    with patch_diffusers():
        assert_same_pictures(pil_utils.pt_to_pil(image), expected)
        assert_same_pictures(pil_utils.pt_to_pil(image.numpy()), expected)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_videos(output_type):
    video = torch.randn(2, 3, 4, 6, 8)
    expected = StockVideo().postprocess_video(video, output_type)
    actual = ours.VideoProcessor().postprocess_video(video, output_type)
    if output_type == "pil":
        for a, e in zip(actual, expected, strict=True):
            assert_same_pictures(a, e)
    else:
        assert np.array_equal(np.asarray(actual), np.asarray(expected))
    pixels = ours.VideoProcessor().postprocess_video(video, "uint8")
    assert pixels.shape == (2, 4, 6, 8, 3)
    frames = StockVideo().postprocess_video(video, "pil")
    assert all(
        np.array_equal(pixels[i, j], np.asarray(frames[i][j])) for i in range(2) for j in range(4)
    )


@pytest.mark.parametrize("channels", [4, 6])
def test_images_with_depth(channels):
    image = torch.randn(2, channels, 6, 8)
    reference = stock.VaeImageProcessorLDM3D()
    processor = ours.VaeImageProcessorLDM3D.from_config(reference.config)
    arrays = reference.postprocess(image, "np")
    for expected, actual in zip(arrays, processor.postprocess(image, "np"), strict=True):
        assert np.array_equal(actual, expected)
    # diffusers fails to make pictures of the depth on Pillow 13, so its halves are compared
    pictures = reference.numpy_to_pil(reference.pt_to_numpy(reference.denormalize(image)))
    in_colour, in_depth = processor.postprocess(image, "pil")
    assert_same_pictures(in_colour, pictures)
    colours, depth = processor.postprocess(image, "uint8")
    assert np.array_equal(colours, np.stack([np.asarray(p) for p in pictures]))
    if channels == 4:
        expected = (arrays[1][..., 0] * 65535.0).astype(np.uint16)
    else:
        words = (reference.denormalize(image).numpy() * 255).round().astype(np.uint16)
        expected = words[:, 4] * 256 + words[:, 5]
    assert np.array_equal(depth, expected)
    assert {picture.mode for picture in in_depth} == {"I;16"}
    assert np.array_equal(np.stack([np.asarray(picture) for picture in in_depth]), expected)
    with pytest.raises(InputError, match="got 5 channels, wanted 4 or 6"):
        processor.postprocess(image[:, [0, 1, 2, 3, 3]], "uint8")


def test_one_pixel_and_one_row():
    for shape in ((1, 3, 1, 1), (1, 4, 1, 1), (1, 3, 1, 9)):
        image = torch.randn(shape)
        expected = stock.VaeImageProcessor().postprocess(image)
        assert_same_pictures(ours.VaeImageProcessor().postprocess(image), expected)
    # diffusers fails on a grey pixel, and turns a grey row into a column
    grey = ours.VaeImageProcessor().postprocess(torch.tensor([[[[-1.0, 1.0, 0.0]]]]))[0]
    assert (grey.size, grey.tobytes()) == ((3, 1), bytes([0, 255, 128]))
    assert ours.VaeImageProcessor().postprocess(torch.zeros(1, 1, 1, 1))[0].size == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True], ids=["one row", "one plane"])
def test_8192_pixels_square(dense):
    row = torch.linspace(-1.2, 1.2, 8192).bfloat16()
    plane = row.expand(8192, 8192)
    image = (plane.contiguous() if dense else plane).expand(1, 3, 8192, 8192)
    expected = stock.VaeImageProcessor().postprocess(image[:, :, :1])[0].tobytes()
    picture = ours.VaeImageProcessor().postprocess(image)[0]
    assert picture.size == (8192, 8192)
    for y in (0, 4000, 8191):
        assert picture.crop((0, y, 8192, y + 1)).tobytes() == expected


def test_a_subclass_that_overrides_a_step_is_respected():
    class Inverted(stock.VaeImageProcessor):
        @staticmethod
        def denormalize(images):
            return 1 - (images * 0.5 + 0.5).clamp(0, 1)

    image = torch.randn(1, 3, 4, 5)
    expected = {kind: Inverted().postprocess(image, kind) for kind in ("pil", "np")}
    with patch_diffusers():
        assert_same_pictures(Inverted().postprocess(image), expected["pil"])
        assert np.array_equal(Inverted().postprocess(image, "np"), expected["np"])
        assert np.array_equal(
            Inverted().postprocess(image, "uint8")[0], np.asarray(expected["pil"][0])
        )


def test_gradients_pass_through_pt():
    image = torch.randn(1, 3, 4, 4, requires_grad=True)
    ours.VaeImageProcessor().postprocess(image, "pt").sum().backward()
    inside = (image.detach() * 0.5 + 0.5 > 0) & (image.detach() * 0.5 + 0.5 < 1)
    assert torch.equal(image.grad, inside * 0.5)


def test_the_family_keeps_the_config():
    for name in ours.__all__:
        mine = getattr(ours, name)
        theirs = getattr(stock, name, None) or {"VideoProcessor": StockVideo}.get(name)
        if theirs is None:
            continue
        config = theirs(vae_scale_factor=16, do_normalize=False).config
        kept = mine.from_config(config)
        assert isinstance(kept, theirs)
        same = {key: value for key, value in config.items() if not key.startswith("_")}
        assert {key: kept.config[key] for key in same} == same
    inpaint = ours.InpaintProcessor(vae_scale_factor=4, mask_do_binarize=False)
    assert isinstance(inpaint._image_processor, ours.VaeImageProcessor)
    assert inpaint._mask_processor.config.do_binarize is False


def test_preprocess_is_diffusers_own():
    picture = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    tensor = torch.rand(1, 3, 8, 8)
    for image in (
        picture,
        [picture],
        tensor,
        [tensor[0]],
        np.random.default_rng(0).random((8, 8, 3)),
    ):
        expected = stock.VaeImageProcessor().preprocess(image)
        assert torch.equal(ours.VaeImageProcessor().preprocess(image), expected)


@pytest.mark.parametrize("convert", [lambda x: x, torch.Tensor.numpy, to_openvino])
def test_masks_of_image_prompts_shrink_as_in_diffusers(convert):
    masks = torch.rand(2, 16, 24)
    expected = stock.IPAdapterMaskProcessor.downsample(masks, 2, 24, 8)
    actual = ours.IPAdapterMaskProcessor.downsample(convert(masks), 2, 24, 8)
    assert actual.shape == (2, 24, 8)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("convert", [lambda x: x, to_openvino])
def test_inpainting_prepares_image_and_mask_as_diffusers(convert):
    image, mask = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    theirs = stock.InpaintProcessor(vae_scale_factor=4)
    processor = ours.InpaintProcessor(vae_scale_factor=4)
    for pair in ((image, mask), (image,)):
        actual = processor.preprocess(*map(convert, pair))
        expected = theirs.preprocess(*pair)
        assert type(actual) is type(expected)
        np.testing.assert_equal(tree_to_numpy(actual), tree_to_numpy(expected))


class Named(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "image",
    [
        torch.tensor([[-3, 0, 1]]),
        torch.tensor([[-3.0, 0.25, 1]], requires_grad=True),
        torch.tensor([[-3.0, 0.25, 1]]).as_subclass(Named),
        torch.tensor([[-3.0, 0.25, 1]], dtype=torch.bfloat16),
    ],
    ids=["integers", "gradient", "subclass", "bfloat16"],
)
def test_denormalizing_by_itself(image):
    expected = stock.VaeImageProcessor.denormalize(image)
    actual = ours.VaeImageProcessor.denormalize(image)
    assert type(actual) is type(expected)
    assert actual.dtype is expected.dtype
    assert actual.requires_grad is expected.requires_grad
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", [(5,), (3, 8), (3, 8, 6), (2, 3, 4, 8, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("flags", [None, [True, False, True, False] * 2])
def test_tensors_of_any_shape_stay_tensors(shape, dtype, flags):
    x = (torch.randn(shape) * 3).to(dtype)
    for values in (x, x.mT if x.ndim > 1 else x.flip(0)):
        expected = stock.VaeImageProcessor().postprocess(values, "pt", flags)
        actual = ours.VaeImageProcessor().postprocess(values, "pt", flags)
        assert actual.dtype is expected.dtype
        np.testing.assert_array_equal(actual.float(), expected.float())
