"""Pipelines from tiny random parts: the same output with and without `patch_diffusers`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    MotionAdapter,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch._subclasses import FakeTensorMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ovtensor import patch_diffusers
from ovtensor.diffusers import VaeImageProcessor
from ovtensor.errors import DatalessTensorError, NonFiniteError

# diffusers' Euler scheduler hands tensors to NumPy 2 in the way of NumPy 1
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SIDE = 32


def tokenizer():
    trained = CLIPTokenizer().train_new_from_iterator(
        ["a red circle", "a blue square"], 300, show_progress=False
    )
    trained.model_max_length = 77
    return trained


def text_encoder(cls, vocabulary):
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return cls(config).eval()


def vae():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIDE,
    ).eval()


def unet(xl, **kwargs):
    extra = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
    }
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=32 if xl else 16,
        **(extra if xl else {}),
        **kwargs,
    ).eval()


def build(cls):
    torch.manual_seed(0)
    tokens = tokenizer()
    parts = {
        "vae": vae(),
        "text_encoder": text_encoder(CLIPTextModel, len(tokens)),
        "tokenizer": tokens,
        "scheduler": EulerDiscreteScheduler(steps_offset=1),
    }
    if "XL" in cls.__name__:
        parts["unet"] = unet(xl=True)
        parts["text_encoder_2"] = text_encoder(CLIPTextModelWithProjection, len(tokens))
        parts["tokenizer_2"] = tokens
    else:
        lcm = cls is LatentConsistencyModelPipeline
        parts["unet"] = unet(xl=False, **({"time_cond_proj_dim": 8} if lcm else {}))
        if lcm:
            parts["scheduler"] = LCMScheduler(steps_offset=1)
        if cls is AnimateDiffPipeline:
            parts["scheduler"] = DDIMScheduler(steps_offset=1, clip_sample=False)
            parts["motion_adapter"] = MotionAdapter(
                block_out_channels=(8, 16),
                motion_layers_per_block=1,
                motion_norm_num_groups=4,
                motion_num_attention_heads=2,
                use_motion_mid_block=False,
            ).eval()
        else:
            parts |= {"safety_checker": None, "feature_extractor": None}
            parts["requires_safety_checker"] = False
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, output_type):
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    )
    mask = Image.fromarray(np.eye(SIDE, dtype=np.uint8) * 255)
    name = type(pipe).__name__
    extra = {"num_frames": 2} if name == "AnimateDiffPipeline" else {}
    if "Img2Img" in name:
        extra = {"image": picture, "strength": 0.9}
    elif "Inpaint" in name:
        extra = {"image": picture, "mask_image": mask, "strength": 0.9}
    if "Img2Img" not in name:
        extra |= {"height": SIDE, "width": SIDE}
    result = pipe(
        "a red circle",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
        **extra,
    )
    output = result.frames if hasattr(result, "frames") else result.images
    if output_type == "pil" and isinstance(output[0], list):
        output = output[0]
    return np.stack([np.asarray(one) for one in output])


PIPELINES = (
    StableDiffusionXLPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    LatentConsistencyModelPipeline,
    AnimateDiffPipeline,
)


@pytest.mark.parametrize("cls", PIPELINES, ids=lambda cls: cls.__name__)
def test_the_output_is_unchanged(cls):
    pipe = build(cls)
    for output_type in ("pil", "np", "pt"):
        expected = call(pipe, output_type)
        assert expected.std() > 0
        with patch_diffusers():
            actual = call(pipe, output_type)
        assert np.array_equal(actual, expected)


@pytest.fixture
def pipe():
    return build(StableDiffusionXLPipeline)


@pytest.mark.parametrize("way", ["patch", "processor"])
def test_a_vae_whose_weights_are_fake_is_named(pipe, way):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in pipe.vae.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                fake = mode.from_tensor(weight.detach())
                setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))
    with pytest.raises(RuntimeError, match="not supported for tensor subclasses"):
        call(pipe, "pil")
    if way == "patch":
        with patch_diffusers(), pytest.raises(DatalessTensorError, match="FakeTensor"):
            call(pipe, "pil")
    else:
        pipe.image_processor = VaeImageProcessor.from_config(pipe.image_processor.config)
        with pytest.raises(DatalessTensorError, match="FakeTensor"):
            call(pipe, "pil")


def test_a_vae_that_overflows_is_named(pipe):
    pipe.vae.decoder.conv_out.bias.data[0] = float("inf")
    with patch_diffusers(), pytest.raises(NonFiniteError, match="image 0 of a batch of 1"):
        call(pipe, "pil")
