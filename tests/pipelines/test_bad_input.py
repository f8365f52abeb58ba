"""What a session says when it is given something that cannot work."""

from __future__ import annotations

import json
import shutil

import openvino as ov
import pytest
import torch
from diffusers import AutoencoderKL, AutoPipelineForImage2Image, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

import ovtensor
from ovtensor import Backend
from ovtensor.errors import (
    BackendError,
    ComponentError,
    DatalessTensorError,
    InputError,
    ModelError,
    SessionClosedError,
)
from sdxl_scenes import load


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded model, to be broken."""
    return shutil.copytree(ovtensor.tiny_sdxl_path(), tmp_path / "model")


def open_error(model, error=ModelError) -> str:
    with pytest.raises(error) as caught:
        ovtensor.sdxl_pipeline(model, unet="torch", progress=False).__enter__()
    return str(caught.value)


def test_unknown_backends_devices_and_precisions():
    for arguments, message in [
        ({"unet": "onnx"}, r"unet='onnx'.*\"torch\", \"openvino\""),
        ({"text_encoders": 3}, r"text_encoders is a int.*\"torch\", \"openvino\""),
        ({"vae": Backend("openvino", device="TPU")}, r"no device 'TPU' here; it has \"CPU\""),
        ({"unet": Backend("openvino", device="AUTO:TPU,CPU")}, "no device 'TPU'"),
    ]:
        with pytest.raises(BackendError, match=message):
            ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), **arguments)
    with pytest.raises(BackendError, match=r'unknown precision \'f8\'.*"auto", "f32", "bf16"'):
        Backend("openvino", precision="f8")
    with pytest.raises(BackendError, match="unknown backend"):
        Backend("tensorrt")
    with pytest.raises(BackendError, match="stays on the device it is on"):
        Backend("torch", device="GPU")
    with pytest.raises(BackendError, match="a device is a string"):
        Backend("openvino", device=0)


def test_a_precision_that_the_device_does_not_execute():
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    lacking = {"bf16": "BF16", "f16": "FP16"}
    precision = next((name for name, key in lacking.items() if key not in able), None)
    if precision is None:
        pytest.skip("this CPU executes every precision")
    with pytest.raises(BackendError, match=rf"CPU \(.*\) does not execute {precision}; it has"):
        ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), unet=Backend("openvino", precision=precision)
        )


@pytest.mark.slow
def test_auto_precision_is_what_the_device_executes():
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet="torch", text_encoders="openvino", vae="openvino",
        progress=False,
    ) as pipe:  # fmt: skip
        precision = {row.component: row.precision for row in pipe.ovtensor.report()}
    native = "bf16" if "BF16" in able else "f32"
    assert precision == {
        "unet": "f32",
        "vae": "f32",
        "text_encoder": native,
        "text_encoder_2": native,
    }


@pytest.mark.slow
def test_folders_that_are_no_sdxl_model(tmp_path, model):
    assert "there is no folder" in open_error(tmp_path / "nowhere")
    assert "no hub id" in open_error("just-a-name")
    assert "no model_index.json" in open_error(tmp_path)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    assert "from_single_file" in open_error(weights)

    index = model / "model_index.json"
    content = json.loads(index.read_text())
    content["_class_name"] = "StableDiffusionPipeline"
    index.write_text(json.dumps(content))
    # A folder of parts that the other family does not have, and a UNet of another one.
    assert "Stable Diffusion 1.5 and 2" in open_error(model)
    index.write_text("not json")
    assert "cannot be read as JSON" in open_error(model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler"])
def test_a_folder_with_a_missing_part_says_which(model, part):
    shutil.rmtree(model / part)
    assert f"has no {part} folder" in open_error(model)


def test_a_folder_with_missing_or_broken_weights(model):
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "do not load" in open_error(model)
    weights.unlink()
    assert "no weights (*.safetensors) in vae" in open_error(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "openvino"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_weights_that_lack_a_tensor_are_not_made_up(kind, part, model, tmp_path):
    """Left to their libraries, it would be what lay in memory, or drawn anew by each process."""
    (path,) = (model / part).glob("*.safetensors")
    tensors = load_file(path)
    lacking = next(name for name in sorted(tensors) if "norm" in name)
    del tensors[lacking]
    save_file(tensors, path, {"format": "pt"})
    backends = dict.fromkeys(("unet", "vae", "text_encoders"), kind)
    cache = tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(ModelError, match=rf"{part}.* lack 1 of .*norm"):
            ovtensor.sdxl_pipeline(model, progress=False, cache=cache, **backends).__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fake", "meta", "freed"])
@pytest.mark.parametrize("cached", [False, True])
def test_weights_without_values_are_not_converted(how, cached, tmp_path):
    pipe = load()
    layer = pipe.unet.conv_out
    if how == "fake":
        fake = FakeTensorMode().from_tensor(layer.weight.detach())
        layer.weight = torch.nn.Parameter(fake, requires_grad=False)
    elif how == "meta":
        layer.to("meta")
    else:
        layer.weight.untyped_storage().resize_(0)
    cache = tmp_path if cached else None
    with pytest.raises(
        DatalessTensorError, match=r"the unet's conv_out\.weight, .*has no values to"
    ):
        ovtensor.split_backends(pipe, progress=False, cache=cache).__enter__()
    assert type(pipe.unet) is UNet2DConditionModel
    with ovtensor.split_backends(pipe, unet="torch", vae="openvino", progress=False):
        pass  # on torch it may have hooks that bring the values back


def test_objects_that_are_no_pipeline(eager_pipeline):
    # what stands where a path could stand is a path to Python, so these are the other things
    assert "has addition_embed_type=None" in open_error(_with_unet(eager_pipeline))
    for nonsense in (None, 7, torch.nn.Linear(1, 1)):
        message = open_error(nonsense)
        assert type(nonsense).__name__ in message
        assert "a folder, a hub id or a loaded pipeline of diffusers" in message


def _with_unet(pipeline):
    """A pipeline like ``pipeline`` with a UNet that has no SDXL conditioning."""
    small = {
        "sample_size": 16,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
    }
    return type(pipeline)(**{**pipeline.components, "unet": UNet2DConditionModel(**small)})


def test_sizes_that_are_not_divisible_by_eight(eager_pipeline):
    with (
        ovtensor.sdxl_pipeline(eager_pipeline, unet="torch") as pipe,
        pytest.raises(InputError, match=r"divisible by 8 but are 128 and 100"),
    ):
        pipe("a small red circle", height=128, width=100)


@pytest.mark.slow
def test_what_a_compiled_graph_does_not_take_is_refused_not_dropped(eager_pipeline, tmp_path):
    with ovtensor.sdxl_pipeline(eager_pipeline, text_encoders="openvino") as pipe:
        with pytest.raises(ComponentError, match=r"cross_attention_kwargs.*unet=\"torch\""):
            pipe("a small red circle", cross_attention_kwargs={"gligen": {}})
        with pytest.raises(ComponentError, match=r"attention_mask.*text_encoders=\"torch\""):
            pipe.text_encoder(
                torch.zeros(1, 77, dtype=torch.long), attention_mask=torch.ones(1, 77)
            )
        with pytest.raises(ComponentError, match="time_ids"):
            pipe.unet(
                torch.zeros(1, 4, 16, 16),
                1,
                encoder_hidden_states=torch.zeros(1, 77, 96),
                added_cond_kwargs={"text_embeds": torch.zeros(1, 64)},
            )
        with pytest.raises(ComponentError, match="has no weights here"):
            pipe.unet.save_pretrained(tmp_path)


@pytest.mark.slow
def test_an_empty_batch_gives_no_empty_pictures(eager_pipeline):
    with ovtensor.split_backends(eager_pipeline, vae="openvino", progress=False) as pipe:
        other = AutoPipelineForImage2Image.from_pipe(pipe)
        # Of 3 steps with a strength of 0.3 none is left, and diffusers goes on with empty latents.
        with pytest.raises(ComponentError, match=r"\(0, 4, 8, 8\).*empty.*strength"):
            other("a", image=torch.zeros(1, 3, 64, 64), num_inference_steps=3, strength=0.3)


@pytest.mark.slow
def test_a_vae_that_has_no_small_convolutions(eager_pipeline):
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(
        {**eager_pipeline.vae.config, "use_quant_conv": False, "use_post_quant_conv": False}
    ).eval()
    plain = type(eager_pipeline)(**{**eager_pipeline.components, "vae": vae})
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    f32 = Backend("openvino", precision="f32")
    with ovtensor.sdxl_pipeline(plain, unet="torch", vae=f32) as pipe:
        torch.testing.assert_close(pipe.vae.decode(latents).sample, expected, rtol=0, atol=1e-4)


def test_what_a_proxy_lacks_is_told_with_what_to_do(eager_pipeline):
    openvino = {"unet": "openvino", "vae": "openvino", "text_encoders": "openvino"}
    with ovtensor.split_backends(eager_pipeline, progress=False, **openvino) as pipe:
        for ask, message in [
            (lambda: pipe.enable_freeu(0.6, 0.4, 1.1, 1.2), r'enable_freeu.*unet="torch"'),
            (lambda: pipe.unet.attn_processors, r'attn_processors.*unet="torch"'),
            (lambda: pipe.text_encoder.get_input_embeddings, r'text_encoders="torch"'),
            (lambda: pipe.vae.decoder.mid_block, r'vae_decoder .*mid_block.*vae="torch"'),
            (lambda: pipe.vae.encoder.conv_in, r'vae_encoder .*conv_in.*vae="torch"'),
        ]:
            with pytest.raises(AttributeError, match=message):
                ask()
        assert not hasattr(pipe.unet, "enable_freeu")


@pytest.mark.slow
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoders", None])
def test_a_pipeline_with_compiled_components_is_not_saved(component, eager_pipeline, tmp_path):
    def parts():
        return {name: eager_pipeline.config[name] for name in eager_pipeline.components}

    before = parts()
    options = dict.fromkeys(("unet", "vae", "text_encoders"), "torch")
    if component is not None:
        options[component] = "openvino"
    with ovtensor.split_backends(eager_pipeline, progress=False, **options) as pipe:
        if component is None:
            pipe.save_pretrained(tmp_path / "saved")
        else:
            for saved in (pipe, pipe.ovtensor.clone()):
                with pytest.raises(ComponentError, match="outside of the `with` block"):
                    saved.save_pretrained(tmp_path / "saved")
            assert not (tmp_path / "saved").exists()
        if component == "vae":
            with pytest.raises(ComponentError, match="outside of the `with` block"):
                pipe.vae.save_pretrained(tmp_path / "vae")
    assert parts() == before
    eager_pipeline.save_pretrained(tmp_path / "after")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        file = (
            "diffusion_pytorch_model.safetensors"
            if name in ("unet", "vae")
            else "model.safetensors"
        )
        kept = (tmp_path / "after" / name / file).read_bytes()
        if component is None:
            assert (tmp_path / "saved" / name / file).read_bytes() == kept


@pytest.mark.slow
def test_a_guarded_vae_shows_what_the_callers_has(eager_pipeline):
    vae = eager_pipeline.vae
    calls = []
    hook = vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        with ovtensor.split_backends(eager_pipeline, progress=False, unet="torch") as pipe:
            assert pipe.vae.decoder.conv_in is vae.decoder.conv_in
            assert pipe.vae.state_dict().keys() == vae.state_dict().keys()
            pipe("a", num_inference_steps=1)
            assert calls == [1]
    finally:
        hook.remove()
    assert "forward" not in vars(vae.decoder)


@pytest.mark.slow
def test_a_pipeline_of_proxies_of_another_session(eager_pipeline):
    with ovtensor.split_backends(eager_pipeline, progress=False) as pipe:
        other = AutoPipelineForImage2Image.from_pipe(pipe)
        with pytest.raises(InputError, match=r"unet .* of another session.*clone"):
            ovtensor.split_backends(other, progress=False).__enter__()
        assert getattr(other, "ovtensor", None) is None


@pytest.mark.slow
def test_a_closed_pipeline_is_not_saved(tmp_path):
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), progress=False) as pipe:
        clone = pipe.ovtensor.clone()
    for closed in (pipe, clone):
        with pytest.raises(SessionClosedError, match="released when its session was closed"):
            closed.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
