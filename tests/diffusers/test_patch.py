"""`patch_diffusers`: in, nested, in threads, in conflict, and out again without a trace."""

from __future__ import annotations

import threading

import openvino
import pytest
import torch
from diffusers import image_processor as stock
from diffusers.pipelines.pipeline_utils import numpy_to_pil as bound_by_name
from diffusers.utils import pil_utils
from diffusers.video_processor import VideoProcessor

from ovtensor import is_patched, patch_diffusers
from ovtensor.errors import PatchConflictError

CLASSES = (
    stock.VaeImageProcessor,
    stock.VaeImageProcessorLDM3D,
    stock.IPAdapterMaskProcessor,
    stock.PixArtImageProcessor,
    stock.InpaintProcessor,
    VideoProcessor,
)


def state():
    functions = (pil_utils.numpy_to_pil, pil_utils.pt_to_pil)
    return [dict(vars(cls)) for cls in CLASSES] + [f.__code__ for f in functions]


@pytest.fixture(autouse=True)
def restored():
    before = state()
    assert not is_patched()
    yield
    assert not is_patched()
    assert state() == before


def takes_openvino(processor):
    pixels = processor.postprocess(openvino.Tensor(torch.zeros(1, 3, 2, 2).numpy()), "uint8")
    return pixels.shape == (1, 2, 2, 3)


def test_existing_processors_and_bound_names_change_and_come_back():
    older = stock.VaeImageProcessor()
    with pytest.raises(ValueError, match="incorrect format"):
        takes_openvino(older)
    with patch_diffusers() as handle:
        assert is_patched()
        for processor in (older, stock.PixArtImageProcessor(), VideoProcessor()):
            assert takes_openvino(processor)
        inpaint = stock.InpaintProcessor()
        assert takes_openvino(inpaint._image_processor)
        image, mask = (openvino.Tensor(torch.ones(1, c, 8, 8).numpy()) for c in (3, 1))
        assert [part.shape[1] for part in inpaint.preprocess(image, mask)[:2]] == [3, 1]
        assert bound_by_name is pil_utils.numpy_to_pil
    handle.undo()
    with pytest.raises(ValueError, match="incorrect format"):
        takes_openvino(older)


def test_nesting_in_any_order():
    first, second = patch_diffusers(), patch_diffusers()
    patched = state()
    first.undo()
    assert is_patched()
    assert state() == patched
    first.undo()
    assert is_patched(), "one claim was given up twice"
    second.undo()


def test_an_exception_inside():
    with pytest.raises(KeyError), patch_diffusers():
        raise KeyError
    assert not is_patched()


def test_somebody_elses_later_patch(monkeypatch):
    handle = patch_diffusers()
    with monkeypatch.context() as later:
        later.setattr(stock.VaeImageProcessor, "postprocess", lambda *_: "theirs")
        with pytest.raises(PatchConflictError, match=r"VaeImageProcessor\.postprocess"):
            handle.undo()
        assert is_patched()
        assert stock.VaeImageProcessor().postprocess(None) == "theirs"
    handle.undo()


def test_threads():
    barrier = threading.Barrier(8)
    failures = []

    def work():
        processor = stock.VaeImageProcessor()
        barrier.wait()
        try:
            for _ in range(50):
                with patch_diffusers():
                    assert is_patched()
                    assert takes_openvino(processor)
        except BaseException as error:  # noqa: BLE001  # handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
