"""Pipelines from tiny random parts: the same output with and without `patch_diffusers`."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    MotionAdapter,
    PixArtTransformer2DModel,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
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

pytestmark = [
    # diffusers' Euler scheduler hands tensors to NumPy 2 in the way of NumPy 1
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
    # one of diffusers' pipelines calls what diffusers deprecated
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),
]

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


def vae(channels=3):
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
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
    sizes = {
        "sample_size": SIDE // 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": 32 if xl else 16,
    }
    return UNet2DConditionModel(**sizes | (extra if xl else {}) | kwargs).eval()


def motion_adapter(xl):
    return MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=not xl,
    ).eval()


def build(cls):
    """Make a pipeline of tiny random parts, each chosen by the name of its parameter."""
    torch.manual_seed(0)
    name = cls.__name__
    xl = "XL" in name
    tokens = tokenizer()
    parts = {
        "vae": vae(6 if "LDM3D" in name else 3),
        "text_encoder": text_encoder(CLIPTextModel, len(tokens)),
        "text_encoder_2": text_encoder(CLIPTextModelWithProjection, len(tokens)),
        "tokenizer": tokens,
        "tokenizer_2": tokens,
        "scheduler": EulerDiscreteScheduler(steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    if name.startswith(("DDIM", "DDPM")):
        parts["unet"] = UNet2DModel(
            sample_size=SIDE,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
        ).eval()
        parts["scheduler"] = DDIMScheduler() if name.startswith("DDIM") else DDPMScheduler()
    elif name.startswith("PixArt"):
        parts |= {"tokenizer": None, "text_encoder": None, "scheduler": DDIMScheduler()}
        parts["transformer"] = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=SIDE // 2,
            norm_num_groups=4,
            use_additional_conditions=False,
        ).eval()
    elif name.startswith("TextToVideoSD"):
        parts["scheduler"] = DDIMScheduler(steps_offset=1, clip_sample=False)
        parts["unet"] = UNet3DConditionModel(
            sample_size=SIDE // 2,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=8,
            cross_attention_dim=16,
        ).eval()
    else:
        more = {"time_cond_proj_dim": 8} if "LatentConsistency" in name else {}
        if "InstructPix2Pix" in name:
            more = {"in_channels": 8}
        elif "Adapter" in name:
            more = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
            more["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
        parts["unet"] = unet(xl, **more)
        parts["controlnet"] = ControlNetModel.from_unet(
            unet(xl), conditioning_embedding_out_channels=(8, 16)
        ).eval()
        parts["adapter"] = T2IAdapter(
            channels=(8, 16), num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        ).eval()
        parts["motion_adapter"] = motion_adapter(xl)
        if "LatentConsistency" in name:
            parts["scheduler"] = LCMScheduler(steps_offset=1)
        elif any(word in name for word in ("AnimateDiff", "SAG")):
            parts["scheduler"] = DDIMScheduler(steps_offset=1, clip_sample=False)
    wanted = inspect.signature(cls.__init__).parameters
    pipe = cls(**{key: part for key, part in parts.items() if key in wanted})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, output_type):
    """Run a pipeline with whatever it takes of these arguments."""
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    )
    mask = Image.fromarray(np.eye(SIDE, dtype=np.uint8) * 255)
    embeddings = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    name = type(pipe).__name__
    given = {
        "prompt": "a red circle",
        "image": picture,
        "mask_image": mask,
        "control_image": picture,
        "video": [picture, picture],
        "conditioning_frames": [picture, picture],
        "strength": 0.9,
        "num_frames": 2,
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "output_type": output_type,
    }
    if name.startswith("PixArt"):
        given |= {"prompt": None, "prompt_embeds": embeddings, "negative_prompt": None}
        given |= {"negative_prompt_embeds": embeddings, "use_resolution_binning": False}
        given |= dict.fromkeys(
            ("prompt_attention_mask", "negative_prompt_attention_mask"), torch.ones(1, 5)
        )
    wanted = set(inspect.signature(type(pipe).__call__).parameters)
    if "video" in wanted:
        wanted.discard("num_frames")
    result = pipe(**{key: value for key, value in given.items() if key in wanted})
    if "LDM3D" in name:
        return [np.stack([np.asarray(one) for one in part]) for part in (result.rgb, result.depth)]
    output = result.frames if hasattr(result, "frames") else result.images
    if output_type == "pil" and isinstance(output[0], list):
        output = output[0]
    return [np.stack([np.asarray(one) for one in output])]


# Those of diffusers that these parts make up.
PIPELINES = [
    "AnimateDiffControlNetPipeline",
    "AnimateDiffPAGPipeline",
    "AnimateDiffPipeline",
    "AnimateDiffSDXLPipeline",
    "AnimateDiffVideoToVideoControlNetPipeline",
    "AnimateDiffVideoToVideoPipeline",
    "AltDiffusionPipeline",
    "DDIMPipeline",
    "DDPMPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPAGPipeline",
    "PixArtSigmaPipeline",
    "SemanticStableDiffusionPipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPAGInpaintPipeline",
    "StableDiffusionControlNetPAGPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionLDM3DPipeline",
    "StableDiffusionModelEditingPipeline",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPAGInpaintPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPanoramaPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionSAGPipeline",
    "StableDiffusionXLAdapterPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPAGImg2ImgPipeline",
    "StableDiffusionXLControlNetPAGPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "StableDiffusionXLPAGImg2ImgPipeline",
    "StableDiffusionXLPAGInpaintPipeline",
    "StableDiffusionXLPAGPipeline",
    "StableDiffusionXLPipeline",
    "TextToVideoSDPipeline",
]


THOROUGHLY = (
    "AnimateDiffPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_the_output_is_unchanged(name):
    pipe = build(getattr(diffusers, name))
    output_types = ("pil", "np", "pt") if name in THOROUGHLY else ("pil",)
    if "LDM3D" in name:
        output_types = ("np",)  # diffusers fails to make pictures of depth on Pillow 13
    for output_type in output_types:
        expected = call(pipe, output_type)
        with patch_diffusers():
            actual = call(pipe, output_type)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert other.std() > 0
            assert np.array_equal(one, other)


@pytest.fixture
def pipe():
    return build(StableDiffusionXLPipeline)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_vae_that_overflows_is_named(pipe):
    pipe.vae.decoder.conv_out.bias.data[0] = float("inf")
    with patch_diffusers(), pytest.raises(NonFiniteError, match="image 0 of a batch of 1"):
        call(pipe, "pil")
