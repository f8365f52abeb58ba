"""Components of no known kind, and pipelines of no known family: refused by name, or left alone."""

from __future__ import annotations

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from openvino.frontend import FrontEnd
from transformers import T5Config, T5EncoderModel

import ovtensor
from ovtensor import Backend
from ovtensor.errors import ComponentError, ModelError
from ovtensor.pipelines.families import family_called
from sdxl_scenes import SCENES, draw, load

F32 = Backend("openvino", precision="f32")
TORCH = dict.fromkeys(("unet", "vae", "text_encoders"), "torch")


@pytest.fixture
def own():
    return load()


@pytest.fixture
def no_conversion(monkeypatch):
    """Fail at once where anything is converted."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("nothing is to be converted before all is known to be convertible")

    monkeypatch.setattr(FrontEnd, "convert", refuse)


def changed_unet(pipe, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel.from_config({**pipe.unet.config, **changes}).eval()


def tiny_autoencoder(_pipe):
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


def asymmetric_autoencoder(_pipe):
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(8, 8, 8, 8),
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
    ).eval()


def motion_unet(pipe):
    width = pipe.unet.config.cross_attention_dim
    unet = UNetMotionModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        cross_attention_dim=width,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    unet.register_to_config(addition_embed_type="text_time")
    return unet.eval()


def class_unet(pipe):
    return changed_unet(pipe, num_class_embeds=3)


def class_projection_unet(pipe):
    return changed_unet(
        pipe, class_embed_type="simple_projection", projection_class_embeddings_input_dim=
        pipe.unet.config.projection_class_embeddings_input_dim,
    )  # fmt: skip


def hidden_unet(pipe):
    return changed_unet(pipe, encoder_hid_dim=8, encoder_hid_dim_type="text_proj")


def t5(_pipe):
    return T5EncoderModel(
        T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).eval()


REFUSED = {
    "tiny autoencoder": ("vae", tiny_autoencoder, "vae is a AutoencoderTiny, which cannot be"),
    "asymmetric": ("vae", asymmetric_autoencoder, "vae is a AsymmetricAutoencoderKL, which cannot"),
    "motion": ("unet", motion_unet, "unet is a UNetMotionModel, which cannot be converted"),
    "classes": ("unet", class_unet, "it has num_class_embeds=3, which its graph does not take"),
    "class projection": ("unet", class_projection_unet, "class_embed_type='simple_projection'"),
    "hidden": ("unet", hidden_unet, "encoder_hid_dim_type='text_proj'"),
    "t5": ("text_encoder_2", t5, "text_encoder_2 is a T5EncoderModel, which cannot be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_asked_onto_openvino_it_is_refused_by_name(case, own, no_conversion):
    name, make, message = REFUSED[case]
    own.register_modules(**{name: make(own)})
    before = dict(vars(own))
    argument = name if name in TORCH else "text_encoders"
    everything = dict.fromkeys(TORCH, F32)
    for asked in (everything, {**TORCH, argument: F32}):
        with pytest.raises(ComponentError, match=message) as caught:
            ovtensor.split_backends(own, **asked, progress=False).__enter__()
        assert f'run it on torch ({argument}="torch")' in str(caught.value)
        assert caught.value.component == name
        assert vars(own) == before


@pytest.mark.parametrize("case", REFUSED)
def test_not_asked_it_stays_on_torch(case, own, converted):
    name, make, _ = REFUSED[case]
    own.register_modules(**{name: make(own)})
    other = "vae" if name == "unet" else "unet"
    with ovtensor.split_backends(
        own, **{**TORCH, other: F32}, cache=converted, progress=False
    ) as pipe:
        rows = {row.component: row.backend for row in pipe.ovtensor.report()}
        assert rows[name] == "torch"
        assert rows[other] == "openvino"
        if name == "vae":
            expected = draw(own, SCENES[0], num_inference_steps=2).astype(int)
            assert np.abs(draw(pipe, SCENES[0], num_inference_steps=2) - expected).max() <= 2


@pytest.mark.parametrize("case", ["tiny autoencoder", "asymmetric", "classes", "t5"])
def test_in_a_folder_too(case, own, no_conversion, tmp_path):
    name, make, message = REFUSED[case]
    own.register_modules(**{name: make(own)})
    own.save_pretrained(tmp_path)
    with pytest.raises(ComponentError, match=message):
        ovtensor.sdxl_pipeline(tmp_path, **dict.fromkeys(TORCH, F32), progress=False).__enter__()


def test_subclasses_are_of_their_base_classes_kind(own):
    class OfSomebodys(UNet2DConditionModel):
        pass

    expected = draw(own, SCENES[0], num_inference_steps=2).astype(int)
    own.unet.__class__ = OfSomebodys
    with ovtensor.split_backends(own, unet=F32, progress=False) as pipe:
        assert np.abs(draw(pipe, SCENES[0], num_inference_steps=2) - expected).max() <= 2


def clip(pipe):
    return pipe.text_encoder, pipe.tokenizer


def sd3(pipe):
    encoder, tokenizer = clip(pipe)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=pipe.vae,
        text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux(pipe):
    encoder, tokenizer = clip(pipe)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=pipe.vae,
        text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip


@pytest.mark.parametrize("make", [sd3, flux])
@pytest.mark.parametrize("saved", [False, True])
def test_a_pipeline_of_an_unknown_family_is_one_error(make, saved, eager_pipeline, tmp_path):
    model = make(eager_pipeline)
    name = type(model).__name__
    if saved:
        model.save_pretrained(tmp_path)
        model = tmp_path
    with pytest.raises(ModelError) as caught:
        ovtensor.pipeline(model, progress=False).__enter__()
    message = str(caught.value)
    assert name in message
    for known in ("Stable Diffusion XL", "Stable Diffusion 1.5 and 2", "StableDiffusionPipeline"):
        assert known in message
    assert "is of no family that ovtensor runs" in message


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("StableDiffusionPipeline", "Stable Diffusion 1.5 and 2"),
        ("StableDiffusionXLInpaintPipeline", "Stable Diffusion XL"),
        *((name, None) for name in ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")),
        *((name, None) for name in ("StableVideoDiffusionPipeline", "FluxPipeline", "DiTPipeline")),
        *((name, None) for name in ("KolorsPipeline", "PixArtAlphaPipeline", "")),
    ],
)
def test_families_by_name(name, family):
    found = family_called(name)
    assert (found and found.name) == family


def test_every_pipeline_that_a_family_names_is_there():
    from ovtensor.pipelines.families import FAMILIES

    names = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    for family in FAMILIES:
        for begin in family.pipelines:
            assert any(name.startswith(begin) for name in names), begin
        for task in family.tasks.values():
            assert family_called(task) is family


def test_a_subclass_is_of_its_base_classes_family_and_a_strange_class_is_known_by_its_parts(
    eager_pipeline, converted
):
    class Mine(StableDiffusionXLPipeline):
        pass

    mine = Mine(**eager_pipeline.components)
    with ovtensor.split_backends(mine, unet=F32, cache=converted, progress=False) as pipe:
        assert isinstance(pipe, Mine)


def malformed(path, **changes):
    index = path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


NO_ENTRY = [5, None, "diffusers", [], ["diffusers"], ["diffusers", "A", "B"], {"a": 1}, [1, 2],
            [None, "UNet2DConditionModel"], True]  # fmt: skip


@pytest.mark.parametrize("entry", NO_ENTRY, ids=str)
@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_an_index_with_an_entry_that_is_none(part, entry, tmp_path):
    model = shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")
    malformed(model, **{part: entry})
    with pytest.raises(ModelError, match=rf"not the index of a pipeline: {part} is "):
        ovtensor.pipeline(model, progress=False).__enter__()


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, "[]", "5", '"text"', "null", "", "{", "\x00", '{"a": NaN'],
    ids=lambda text: text[:8],
)
def test_an_index_that_is_no_object(text, tmp_path):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        ovtensor.pipeline(tmp_path, progress=False).__enter__()


@pytest.mark.parametrize("name", [5, None, [], {}, ["StableDiffusionXLPipeline"]])
def test_an_index_without_the_name_of_a_class(name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ModelError, match="it has no _class_name"):
        ovtensor.pipeline(tmp_path, progress=False).__enter__()


def test_a_class_that_its_library_does_not_have(tmp_path):
    model = shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")
    malformed(model, unet=["diffusers", "NoSuchModel"])
    for unet in ("torch", F32):
        with pytest.raises((ModelError, ComponentError), match="NoSuchModel"):
            ovtensor.pipeline(model, backends={"unet": unet}, progress=False).__enter__()
