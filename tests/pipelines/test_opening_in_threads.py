"""Any number of sessions may be opened at once, from different folders, cold and warm."""

from __future__ import annotations

import concurrent.futures
import gc
import shutil
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ovtensor
from ovtensor import Backend
from ovtensor.engine.process import EXCLUSIVE
from sdxl_scenes import SCENES, draw

F32 = Backend("openvino", precision="f32")
KINDS = ("torch", F32)
THREADS = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four models that draw different pictures."""
    made = []
    for number in range(4):
        folder = tmp_path_factory.mktemp("models") / str(number)
        made.append(shutil.copytree(ovtensor.tiny_sdxl_path(), folder))
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors["conv_out.bias"] += 0.3 * number
        save_file(tensors, path, metadata={"format": "pt"})
    return made


def drawn(folder, unet, together=None, **options):
    if together is not None:
        together.wait(timeout=300)
    with ovtensor.sdxl_pipeline(folder, unet=unet, progress=False, **options) as pipe:
        return draw(pipe, SCENES[0], num_inference_steps=2).astype(int)


@pytest.fixture(scope="module")
def expected(folders):
    pictures = [drawn(folder, "torch") for folder in folders]
    assert np.abs(pictures[0] - pictures[1]).max() > 2
    return pictures


def test_eight_threads_cold_and_warm(folders, expected, tmp_path):
    filters, dtype = list(warnings.filters), torch.get_default_dtype()
    jobs = [(number % 4, KINDS[number // 4]) for number in range(THREADS)]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for _ in ("cold", "warm"):
            together = threading.Barrier(THREADS)
            running = [
                pool.submit(drawn, folders[number], unet, together, cache=tmp_path / "cache")
                for number, unet in jobs
            ]
            for (number, _), picture in zip(jobs, running, strict=True):
                assert np.abs(picture.result() - expected[number]).max() <= 2
    assert gc.isenabled()
    assert list(warnings.filters) == filters
    assert torch.get_default_dtype() == dtype
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoders"])
def test_a_conversion_waits_for_weights_that_are_loaded_in_16_bits(part, eager_pictures):
    """Meanwhile every tensor of the process that is made without a dtype is of these 16 bits."""
    threads = []

    def load_in_16_bits(begun):
        with EXCLUSIVE:
            torch.set_default_dtype(torch.bfloat16)  # as transformers does
            begun.set()
            time.sleep(0.3)
            torch.set_default_dtype(torch.float32)

    def listen(event):
        if (event.stage, event.state) == ("convert", "started"):
            begun = threading.Event()
            threads.append(threading.Thread(target=load_in_16_bits, args=(begun,)))
            threads[-1].start()
            assert begun.wait(60)

    kinds = {"unet": "torch", part: F32, "verify": True, "on_event": listen, "progress": False}
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **kinds) as pipe:
        picture = draw(pipe, SCENES[0])
    for thread in threads:
        thread.join()
    assert threads
    assert np.abs(picture.astype(int) - eager_pictures[0]).max() <= 2
