"""Weights of 16 bits for another arithmetic are not held in it, and every number is the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import ovtensor
from devices import needs_bf16
from engine_graphs import plan_of
from ovtensor import Backend
from ovtensor.pipelines import sources
from sdxl_scenes import SCENES, draw, load

F32 = Backend("openvino", precision="f32")
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
ALL = {"unet": F32, "vae": F32, "text_encoders": F32, "progress": False}


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def model(request, tmp_path_factory):
    """A folder of the embedded model in 16 bits."""
    folder = tmp_path_factory.mktemp("model")
    pipe = load(request.param)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide(model):
    """Pictures from the same weights, widened before they are converted, and their bytes."""
    own = load()
    for name in COMPONENTS:
        source = sources.folder_sources(model, COMPONENTS)[name]
        setattr(own, name, source.load(torch.float32))
    with ovtensor.split_backends(own, **ALL) as pipe:
        pictures = [draw(pipe, scene, num_inference_steps=4) for scene in SCENES[:2]]
        return pictures, {row.component: row.weight_bytes for row in pipe.ovtensor.report()}


def test_every_byte_is_that_of_wide_weights(model, wide, tmp_path):
    pictures, sizes = wide
    for state in ("miss", "hit"):
        with ovtensor.sdxl_pipeline(model, cache=tmp_path, **ALL) as pipe:
            for scene, picture in zip(SCENES, pictures, strict=False):
                np.testing.assert_array_equal(draw(pipe, scene, num_inference_steps=4), picture)
            rows = pipe.ovtensor.report().to_dict()
        assert {row["cache"] for row in rows.values()} == {state}
    # Linear layers are less of this UNet than of a large one; embeddings and convolutions stay.
    assert rows["unet"]["weight_bytes"] < 0.8 * sizes["unet"]
    assert rows["text_encoder_2"]["weight_bytes"] < 0.7 * sizes["text_encoder_2"]


@needs_bf16
def test_float16_is_cast_to_bfloat16_in_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setenv("OVTENSOR_MEMORY_LIMIT", "1")  # the embedded UNet counts as large
    stored = sources.folder_sources(model, COMPONENTS)
    bf16 = Backend("openvino", precision="bf16")
    kinds = {"unet": bf16, "vae": bf16, "text_encoders": bf16, "progress": False}
    loaded, load_folder = [], sources.FolderSource.load

    def watched(self, dtype):
        loaded.append((self._name, dtype))
        return load_folder(self, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(sources.FolderSource, "sixteen_bit", None)
        with ovtensor.sdxl_pipeline(model, **kinds) as pipe:
            picture = draw(pipe, SCENES[0], num_inference_steps=4)
            sizes = {row.component: row.weight_bytes for row in pipe.ovtensor.report()}
    monkeypatch.setattr(sources.FolderSource, "load", watched)
    for state in ("miss", "hit"):
        with ovtensor.sdxl_pipeline(model, cache=tmp_path, **kinds) as pipe:
            np.testing.assert_array_equal(draw(pipe, SCENES[0], num_inference_steps=4), picture)
            rows = pipe.ovtensor.report()
            assert {row.component: row.weight_bytes for row in rows} == sizes
            assert {row.cache for row in rows} == {state}
    assert {dtype for name, dtype in loaded if name != "vae"} == {stored["unet"].sixteen_bit}


def test_weights_are_not_widened_while_they_are_loaded(model, monkeypatch):
    loaded = []
    load_folder = sources.FolderSource.load

    def watched(self, dtype):
        if self._name == "vae":
            loaded.append(dtype)
        return load_folder(self, dtype)

    monkeypatch.setattr(sources.FolderSource, "load", watched)
    for verify in (False, True):
        with ovtensor.sdxl_pipeline(model, vae=F32, unet="torch", verify=verify, progress=False):
            pass
    assert loaded[0] in (torch.float16, torch.bfloat16)
    assert loaded[1] == torch.float32  # the reference is what torch computes from these


def test_what_a_folder_holds(model, tmp_path):
    found = sources.folder_sources(model, COMPONENTS)
    dtypes = {source.sixteen_bit for source in found.values()}
    assert len(dtypes) == 1
    assert dtypes <= {torch.float16, torch.bfloat16}
    unet = load(torch.float32).unet
    weights = sum(parameter.numel() for parameter in unet.parameters())
    assert found["unet"].size == weights
    shutil.copy(model / "model_index.json", tmp_path)
    unet.save_pretrained(tmp_path / "unet")
    wide = sources.folder_sources(tmp_path, COMPONENTS)["unet"]
    assert (wide.sixteen_bit, wide.size) == (None, weights)
    shutil.rmtree(tmp_path / "unet")
    unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    pickled = sources.folder_sources(tmp_path, COMPONENTS)["unet"]
    assert pickled.sixteen_bit is None
    assert pickled.size == pytest.approx(2 * weights, rel=0.05)  # as if of 16 bits


@pytest.mark.parametrize(
    ("device", "kept"),
    [("CPU", True), ("AUTO:CPU", True), ("GPU", False), ("NPU", False), ("AUTO:GPU,CPU", False)],
)
def test_a_gpu_gets_wide_weights(device, kept):
    """Importing what it has compiled of others ends the process (tests/pipelines/test_gpu.py)."""
    for stored in (torch.float16, torch.bfloat16):
        backend = Backend("openvino", device, precision="f32", static_shapes=False)
        plan = plan_of(backend, stored=stored)
        assert plan.stored_as == (str(stored).removeprefix("torch.") if kept else None)
        assert plan.load_dtype == (stored if kept else torch.float32)
