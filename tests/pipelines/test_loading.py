"""From hub ids and from folders that hold a variant of the weights only."""

from __future__ import annotations

import gc
import shutil

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import ovtensor
from ovtensor import Backend
from ovtensor.errors import ModelError
from ovtensor.pipelines.folders import variant_of
from sdxl_scenes import SCENES, draw
from single_file import unet_checkpoint

F32 = Backend("openvino", precision="f32")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's local cache that holds one model, by its usual layout of links to files."""
    repository, commit = tmp_path / "models--someone--tiny", "0123456789abcdef" * 2 + "01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    blobs = shutil.copytree(ovtensor.tiny_sdxl_path(), repository / "blobs")
    for path in blobs.rglob("*"):
        if path.is_file():
            link = repository / "snapshots" / commit / path.relative_to(blobs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_the_embedded_model_has_the_names_that_every_transformers_reads(name):
    names = load_file(f"{ovtensor.tiny_sdxl_path()}/{name}/model.safetensors")
    assert {name.partition(".")[0] for name in names} <= {"text_model", "text_projection"}


@pytest.mark.slow
def test_a_hub_id(hub, eager_pictures, converted):
    for _ in range(2):
        with ovtensor.sdxl_pipeline(
            "someone/tiny", unet=F32, progress=False, cache=converted
        ) as pipe:
            report = pipe.ovtensor.report().to_dict()
            picture = draw(pipe, SCENES[0])
        assert np.abs(picture.astype(int) - eager_pictures[0]).max() <= 2
    assert report["unet"]["cache"] == "hit"


def test_a_hub_id_that_cannot_be_had(hub):
    with pytest.raises(ModelError, match="could not download 'someone/other'"):
        ovtensor.sdxl_pipeline("someone/other", progress=False).__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("unet", ["torch", F32], ids=["torch", "openvino"])
def test_a_folder_of_one_variant(unet, tmp_path, eager_pictures):
    model = shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")
    for path in model.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with ovtensor.sdxl_pipeline(model, unet=unet, progress=False) as pipe:
        picture = draw(pipe, SCENES[0])
    assert np.abs(picture.astype(int) - eager_pictures[0]).max() <= 2


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["diffusion_pytorch_model.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors"], "fp16"),
        (["model.fp16.safetensors", "model.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["model-00001-of-00002.safetensors"], None),
        (["pytorch_model.bin", "model.fp16.safetensors"], None),
        (["model.non_ema.safetensors", "model.fp16.safetensors"], "fp16"),
        ([], None),
    ],
)
def test_variants(names, variant, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant


@pytest.mark.slow
def test_the_garbage_collector_is_left_alone(tmp_path):
    seen = []
    before = gc.get_threshold(), gc.get_freeze_count()
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(),
        unet="torch",
        progress=False,
        on_event=lambda event: seen.append((event.stage, event.component, gc.isenabled())),
    ):
        assert gc.isenabled()
    assert ("load", "pipeline", True) in seen
    assert all(enabled for _, _, enabled in seen)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    with pytest.raises(ModelError), ovtensor.sdxl_pipeline(tmp_path):
        pass
    assert gc.isenabled()


@pytest.mark.slow
def test_a_pipeline_from_a_single_file(tmp_path, eager_pipeline, eager_pictures):
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_file(unet_checkpoint(eager_pipeline.unet), checkpoint)
    others = {
        key: part for key, part in eager_pipeline.components.items() if key != "unet" and part
    }
    own = StableDiffusionXLPipeline.from_single_file(
        str(checkpoint), config=str(ovtensor.tiny_sdxl_path()), **others
    )
    own.set_progress_bar_config(disable=True)
    unet = own.unet
    kinds = {"unet": F32, "vae": F32, "text_encoders": F32, "progress": False}
    for state in ("miss", "hit"):
        with ovtensor.split_backends(own, **kinds, cache=tmp_path / "cache") as pipe:
            assert pipe.ovtensor.report().to_dict()["unet"]["cache"] == state
            picture = draw(pipe, SCENES[0])
        assert np.abs(picture.astype(int) - eager_pictures[0]).max() <= 2
    assert own.unet is unet
