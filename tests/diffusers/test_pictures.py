"""What users do to pictures: like diffusers' own, and no other picture changes."""

from __future__ import annotations

import gc
import pickle
import threading

import pytest
import torch
from diffusers import image_processor as stock
from PIL import Image, ImageDraw

from ovtensor.diffusers import VaeImageProcessor, _outputs

CHANNELS = pytest.mark.parametrize("channels", [1, 2, 3, 4])


@pytest.fixture(params=[True, False], ids=["words", "older Pillow"])
def _pillow(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(_outputs, "_WORD_MODES", ())


def same(a, b):
    return a.tobytes() == b.tobytes()  # apart from assert, which takes long to show a difference


def both(channels, side=24):
    image = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(3))
    return image, stock.VaeImageProcessor().postprocess(image)


@CHANNELS
@pytest.mark.usefixtures("_pillow")
def test_a_picture_can_be_used_like_any_other(channels):
    image, expected = both(channels)
    actual = VaeImageProcessor().postprocess(image)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.mode == theirs.mode
        assert same(mine, theirs)
        assert same(pickle.loads(pickle.dumps(mine)), theirs)
        for change in (
            lambda p: p.copy(),
            lambda p: p.resize((9, 7)),
            lambda p: p.rotate(30, expand=True),
            lambda p: p.convert("RGBA"),
            lambda p: p.getchannel(channels - 1),
            lambda p: p.transpose(Image.Transpose.ROTATE_90),
        ):
            assert same(change(mine), change(theirs))
        if mine.mode == "RGB" and "RGB" in _outputs._WORD_MODES:
            with_the_byte_between = [p.tobytes("raw", "RGBX") for p in (mine, theirs)]
            assert len(set(with_the_byte_between)) == 1


@CHANNELS
@pytest.mark.usefixtures("_pillow")
def test_writing_to_one_changes_nothing_else(channels):
    image, expected = both(channels)
    before = image.clone()
    first, second = VaeImageProcessor().postprocess(image)
    twin = first.copy()
    assert first.readonly == expected[0].readonly or first.mode != "RGB"
    for picture in (first, expected[0]):
        ImageDraw.Draw(picture).rectangle((2, 2, 9, 9), fill=(7,) * channels)
        picture.paste((1,) * channels, (0, 0, 3, 3))
    assert same(first, expected[0])
    assert not same(first, twin)
    assert same(second, expected[1])
    assert torch.equal(image, before)
    for picture in (first, expected[0]):
        if picture.mode == "RGB":
            picture.load()[4, 4] = (9, 8, 7)
    assert same(first, expected[0])
    image.zero_()
    assert same(second, expected[1])


@CHANNELS
def test_a_picture_keeps_its_memory(channels):
    image, expected = both(channels, side=200)
    expected = [picture.tobytes() for picture in expected]
    pictures = VaeImageProcessor().postprocess(image)
    del image
    gc.collect()
    for _ in range(20):
        VaeImageProcessor().postprocess(torch.randn(2, channels, 200, 200))
    equal = [picture.tobytes() for picture in pictures] == expected
    assert equal


def test_threads_share_no_scratch():
    cases = [both(3, side=side) for side in (40, 70, 100, 130)]
    failures = []

    def work(image, expected):
        for _ in range(20):
            actual = VaeImageProcessor().postprocess(image)
            if [p.tobytes() for p in actual] != [p.tobytes() for p in expected]:
                failures.append(image.shape)

    threads = [threading.Thread(target=work, args=case) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
