"""All that loading reads is in the key of the cache, and lies in the model's folder."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import ovtensor
from ovtensor import Backend
from ovtensor.errors import ModelError
from ovtensor.pipelines.sources import folder_sources
from sdxl_scenes import SCENES, draw

F32 = Backend("openvino", precision="f32")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    """The embedded model, with two whole shards of its text encoder, one of them at half."""
    model = shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")
    folder = model / "text_encoder"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number, factor in ((1, 1.0), (2, 0.5)):
        tensors = {name: tensor * factor for name, tensor in weights.items()}
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
    point(model, "model-00001-of-00002.safetensors", weights)
    return model, weights


def point(model, shard, names):
    """Have the index of shards point to one of them."""
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (model / "text_encoder" / INDEX).write_text(json.dumps(content))


def drawn(model, cache):
    with ovtensor.sdxl_pipeline(
        model, unet="torch", text_encoders=F32, cache=cache, progress=False
    ) as pipe:
        state = {row.component: row.cache for row in pipe.ovtensor.report()}["text_encoder"]
        return state, draw(pipe, SCENES[0], num_inference_steps=2).tobytes()


def test_the_index_of_shards_is_in_the_key(sharded, tmp_path):
    model, names = sharded
    cold, first = drawn(model, tmp_path / "cache")
    warm, again = drawn(model, tmp_path / "cache")
    assert (cold, warm) == ("miss", "hit")
    assert again == first
    point(model, "model-00002-of-00002.safetensors", names)
    state, other = drawn(model, tmp_path / "cache")
    assert state == "miss"
    assert other != first


@pytest.mark.parametrize("name", ["adapter_config.json", INDEX, "other.index.json"])
def test_what_else_is_read_is_in_the_key(name, sharded, tmp_path):
    model, _ = sharded
    store = ovtensor.ModelCache(tmp_path / "cache")  # which looks into files

    def fields():
        (source,) = folder_sources(model, ["text_encoder"]).values()
        return source.key_fields(store)

    before = fields()
    path = model / "text_encoder" / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, "more": 1}))
    assert fields() != before
    path.write_text(json.dumps(content)) if content else path.unlink()
    again = fields()
    assert again["config"] == before["config"]


@pytest.mark.parametrize(
    "name",
    [
        "../unet/diffusion_pytorch_model.safetensors",
        "/etc/passwd",
        "..\\unet\\diffusion_pytorch_model.safetensors",
        "C:model.safetensors",
        "..",
        ".",
        "",
        "missing.safetensors",
        5,
        None,
    ],
)
@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_an_index_that_leads_out_of_the_folder_is_refused(name, kind, sharded):
    model, names = sharded
    point(model, name, names)
    with pytest.raises(ModelError, match="which is no file beside it"):
        ovtensor.sdxl_pipeline(
            model, unet="torch", text_encoders=Backend(kind), progress=False
        ).__enter__()


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": 5}', "[]", "no"])
def test_an_index_of_shards_that_is_none(content, sharded):
    model, _ = sharded
    (model / "text_encoder" / INDEX).write_text(content)
    with pytest.raises(ModelError, match=r"index\.json"):
        ovtensor.sdxl_pipeline(model, unet="torch", progress=False).__enter__()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "5", "", '{"norm_eps": '], ids=lambda text: text[:3]
)
@pytest.mark.parametrize("part", ["unet", "text_encoder_2", "vae"])
@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_a_config_that_is_none(kind, part, text, tmp_path):
    model = shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")
    (model / part / "config.json").write_text(text)
    kinds = dict.fromkeys(("unet", "vae", "text_encoders"), kind)
    with pytest.raises(ModelError):
        ovtensor.sdxl_pipeline(model, **kinds, cache=tmp_path / "c", progress=False).__enter__()
