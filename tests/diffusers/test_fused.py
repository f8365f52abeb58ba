"""Large pictures, whose pixels OpenVINO computes: as diffusers makes them, and nothing is kept."""

from __future__ import annotations

import gc
import itertools
import threading
import warnings
import weakref

import numpy as np
import openvino as ov
import PIL
import pytest
import torch
from diffusers import image_processor as stock
from PIL import Image

from child import numbers
from ovtensor.diffusers import VaeImageProcessor, _fused, _outputs
from ovtensor.errors import NonFiniteError
from rounding import next_to_every_edge

BLOCK = _fused.BLOCK
pytestmark = pytest.mark.skipif(
    not _fused._TRIED or int(PIL.__version__.split(".")[0]) < 13,
    reason="on this processor, or for this Pillow, torch computes alone",
)


@pytest.fixture
def answers(monkeypatch):
    """Collect what the kernel says about each image."""
    found = []

    def watch(real):
        def watched(image, out):
            found.append(real(image, out))
            return found[-1]

        return watched

    for name in ("to_words", "to_pixels"):
        monkeypatch.setattr(_fused, name, watch(getattr(_fused, name)))
    return found


def same(a, b):
    words = "RGBX" if a.mode == "RGB" else a.mode
    return a.mode == b.mode and a.tobytes("raw", words) == b.tobytes("raw", words)


def is_right(image, expected, **options):
    """Compare pictures and bytes with diffusers' pictures."""
    pictures = VaeImageProcessor().postprocess(image, **options)
    pixels = VaeImageProcessor().postprocess(image, "uint8", **options)
    bytes_of_pictures = np.stack([np.asarray(picture) for picture in expected])
    return all(map(same, pictures, expected)) and np.array_equal(pixels, bytes_of_pictures)


def large(height, width, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator) * 0.6


SIZES = [
    (512, 512),  # one block
    (513, 512),  # two that share most of what they write
    (1, BLOCK + 1),
    (1, 2 * BLOCK - 1),
    (1024, 512),
    (3, 300_007),
    (1024, 1024),
    (1031, 769),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_pictures_of_one_and_of_several_blocks(answers, size, threads):
    image = large(*size, batch=2)
    before = image.clone()
    expected = stock.VaeImageProcessor().postprocess(image)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert is_right(image, expected)
    finally:
        torch.set_num_threads(usual)
    assert answers == [True] * 4
    assert torch.equal(image, before)


@pytest.mark.parametrize(("height", "width"), [(511, 513), (64, 64)])
def test_fewer_pixels_are_left_to_torch(answers, height, width):
    image = large(height, width)
    assert is_right(image, stock.VaeImageProcessor().postprocess(image))
    assert answers == [False] * 2


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(4, torch.float32), (3, torch.bfloat16), (3, torch.float16), (3, torch.float64)],
)
def test_other_images_are_left_to_torch(answers, channels, dtype):
    image = torch.randn(1, channels, 512, 520).to(dtype)
    (expected,) = stock.VaeImageProcessor().postprocess(image)
    assert is_right(image, [expected])
    assert answers == [False] * 2


def test_every_rounding_edge(answers):
    extremes = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1.0, 1.0, 1e30, -1e30])
    values = torch.cat([next_to_every_edge().flatten(), extremes])
    one = values.repeat(BLOCK // len(values) + 1)[:BLOCK]
    # each value beside others in each channel
    image = torch.stack([one, one.roll(1), one.flip(0)]).view(1, 3, 512, 512)
    assert is_right(image, stock.VaeImageProcessor().postprocess(image))
    assert answers == [True] * 2


def test_words_on_both_sides_of_what_a_float_holds(answers):
    levels = (0, 1, 2, 126, 127, 128, 129, 254, 255)
    colours = torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.float32)
    image = (colours / 255 * 2 - 1).T.repeat(1, BLOCK // len(colours) + 1)[:, :BLOCK]
    for output_type in ("pil", "uint8"):
        (found,) = VaeImageProcessor().postprocess(image.reshape(1, 3, 512, 512), output_type)
        assert np.array_equal(np.asarray(found).reshape(-1, 3)[: len(colours)], colours.numpy())
    assert answers == [True] * 2


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "negative NaN"])
@pytest.mark.parametrize("place", [0, 5, BLOCK - 1, BLOCK, BLOCK + 700, BLOCK + 999])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_what_is_not_finite_is_seen_wherever_it_is(answers, value, place, channel):
    if value == "negative NaN":
        value = torch.tensor(-4194304, dtype=torch.int32).view(torch.float32).item()
    image = large(1, BLOCK + 1000)
    image[0, channel, 0, place] = value
    for output_type in ("pil", "uint8"):
        with pytest.raises(NonFiniteError, match=r"^1 of \d+ decoded values are not finite"):
            VaeImageProcessor().postprocess(image, output_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert is_right(image, stock.VaeImageProcessor().postprocess(image), nonfinite="ignore")
    assert answers == [False] * 4


@pytest.mark.parametrize("block", range(4))
def test_what_is_not_finite_is_seen_in_every_block(answers, block):
    image = large(4, BLOCK)
    image[0, 0, block, 3] = float("nan")
    for output_type in ("pil", "uint8"):
        with pytest.raises(NonFiniteError):
            VaeImageProcessor().postprocess(image, output_type)
    assert answers == [False] * 2


def test_images_that_are_not_denormalized(answers):
    image = large(2 * 512, 512, batch=2).clamp(0, 1)
    flags = [False, True]
    expected = stock.VaeImageProcessor().postprocess(image, do_denormalize=flags)
    assert is_right(image, expected, do_denormalize=flags)
    assert answers == [True] * 2


def test_a_sum_that_overflows_is_no_error():
    image = large(512, 512)
    image[..., 7] = 3e38
    assert is_right(image, stock.VaeImageProcessor().postprocess(image))


def test_bytes_of_images_that_are_no_planes(answers):
    image = large(600, 600)
    expected = stock.VaeImageProcessor().postprocess(image)
    for given in (image.to(memory_format=torch.channels_last), image.mT.contiguous().mT):
        pixels = VaeImageProcessor().postprocess(given, "uint8")
        assert np.array_equal(pixels[0], np.asarray(expected[0]))
    assert not answers


def test_nothing_of_the_caller_is_held():
    VaeImageProcessor().postprocess(large(512, 512))
    array = large(700, 700).numpy()
    watched = weakref.ref(array)
    image = torch.from_numpy(array)
    picture = VaeImageProcessor().postprocess(image)[0]
    before = picture.tobytes()
    image.zero_()
    del array, image
    gc.collect()
    assert watched() is None
    VaeImageProcessor().postprocess(large(700, 700, seed=1))
    assert picture.tobytes() == before


def test_no_request_runs_on_after_an_interrupt(monkeypatch):
    class Watched:
        def __init__(self, request):
            self._request, self.running = request, False

        def __getattr__(self, name):
            return getattr(self._request, name)

        def start_async(self):
            self.running = True
            self._request.start_async()

        def wait(self):
            self._request.wait()
            self.running = False

    class Compiled:
        def create_infer_request(self):
            made.append(Watched(kernel.create_infer_request()))
            return made[-1]

    def interrupt(_):
        raise KeyboardInterrupt

    made, kernel = [], _fused._kernel(2)._compiled
    watched = _fused._Kernel(2)
    watched._compiled = Compiled()
    monkeypatch.setattr(_fused, "_kernel", lambda _: watched)
    image = large(1024, 1024)
    with monkeypatch.context() as patch:
        patch.setattr(_fused, "_is_finite", interrupt)
        with pytest.raises(KeyboardInterrupt):
            VaeImageProcessor().postprocess(image)
    assert len(made) == 2
    assert not any(request.running for request in made)
    expected = stock.VaeImageProcessor().postprocess(image)[0]
    assert same(VaeImageProcessor().postprocess(image)[0], expected)
    assert len(made) == 4  # nothing is known of the state that the first two are in


def test_pictures_one_after_another_share_their_requests():
    for seed in range(3):
        VaeImageProcessor().postprocess(large(512, 512, seed=seed))
    kernel = _fused._kernel(torch.get_num_threads())
    before = len(kernel._idle)
    VaeImageProcessor().postprocess(large(600, 512, batch=2))
    assert len(kernel._idle) == before >= 1


def test_a_picture_can_be_exported_and_written_to():
    image = large(512, 512)
    picture = VaeImageProcessor().postprocess(image)[0]
    assert not picture.readonly
    other = Image.fromarrow(picture, "RGB", picture.size)
    assert same(other, picture)
    picture.load()[0, 0] = (1, 2, 3)
    assert picture.getpixel((0, 0)) == (1, 2, 3)


def test_pillow_still_maps_buffers():
    assert _outputs._map_buffer is not None
    assert "RGB" in _outputs._WORD_MODES


def test_threads_share_nothing(answers):
    images = [large(512 + 64 * n, 600, seed=n) for n in range(4)]
    expected = [stock.VaeImageProcessor().postprocess(image)[0] for image in images]
    wrong = []

    def work(image, picture):
        wrong.extend(image.shape for _ in range(8) if not is_right(image, [picture]))

    threads = [threading.Thread(target=work, args=a) for a in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(answers)


def test_without_a_cpu_plugin(monkeypatch, answers):
    class Without:
        def compile_model(self, *_):
            raise RuntimeError('Device with "CPU" name is not registered')

    monkeypatch.setattr(_fused, "core", Without)
    _fused._kernel.cache_clear()
    try:
        image = large(512, 512)
        assert is_right(image, stock.VaeImageProcessor().postprocess(image))
        assert answers == [False] * 2
    finally:
        _fused._kernel.cache_clear()


@pytest.mark.slow
def test_openvino_is_not_imported_for_it():
    script = """
        import sys, torch
        from ovtensor.diffusers import VaeImageProcessor
        VaeImageProcessor().postprocess(torch.zeros(1, 3, 512, 512))
        print(int("openvino" in sys.modules))
    """
    assert numbers(script, 1) == [0]


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="OpenVINO fuses operators into loops on processors with AVX2",
)
def test_the_graph_is_one_loop():
    compiled = ov.Core().compile_model(_fused._model(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        operator.get_rt_info()["layerType"].astype(str)
        for operator in compiled.get_runtime_model().get_ordered_ops()
    ]
    assert sorted(kinds) == [*["Input"] * 3, "Output", "Subgraph"]
