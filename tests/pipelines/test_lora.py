"""LoRA: fused before conversion, checked against what diffusers draws with the same files."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ovtensor
from ovtensor import Backend
from ovtensor.errors import InputError, ModelError
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
SCENE = SCENES[0]
LAYERS = {
    "unet": ("attn1.to_q", "attn2.to_v", "ff.net.2"),
    "text_encoder": ("self_attn.q_proj", "mlp.fc1"),
    "text_encoder_2": ("self_attn.out_proj",),
}


def lora(pipe, components=tuple(LAYERS), seed=0, layers=LAYERS) -> dict[str, torch.Tensor]:
    """Random adapters of rank 4 for some layers, in the format that diffusers saves."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for component in components:
        for name, layer in getattr(pipe, component).named_modules():
            if name.endswith(layers[component]):
                down = torch.randn(4, layer.in_features, generator=generator) * 0.2
                up = torch.randn(layer.out_features, 4, generator=generator) * 0.2
                state[f"{component}.{name}.lora_A.weight"] = down
                state[f"{component}.{name}.lora_B.weight"] = up
    return state


@pytest.fixture(scope="module")
def style(eager_pipeline):
    return lora(eager_pipeline)


@pytest.fixture(scope="module")
def with_style(style):
    """What diffusers draws with the adapters at scale 0.7."""
    own = load()
    own.load_lora_weights(dict(style))
    own.fuse_lora(lora_scale=0.7)
    return draw(own, SCENE)


def near(picture, expected) -> bool:
    return bool(np.abs(picture.astype(int) - expected.astype(int)).max() <= 2)


def test_the_style_shows(with_style, eager_pictures):
    assert not near(with_style, eager_pictures[0])


@pytest.mark.parametrize("kind", ["torch", "openvino"])
@pytest.mark.parametrize("owned", [True, False])
def test_a_lora_is_fused_before_conversion(
    kind, owned, style, with_style, eager_pipeline, eager_pictures, tmp_path, converted
):
    path = tmp_path / "style.safetensors"
    save_file(style, path)
    backend = Backend(kind, precision="f32")
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path() if owned else eager_pipeline,
        unet=backend, text_encoders=backend, loras=[(path, 0.7)], progress=False, cache=converted,
    ) as pipe:  # fmt: skip
        assert near(draw(pipe, SCENE), with_style)
    if not owned:  # the caller's weights never had it
        np.testing.assert_array_equal(draw(eager_pipeline, SCENE), eager_pictures[0])
        assert not hasattr(eager_pipeline.unet, "peft_config")


def in_kohyas_format(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same adapters, as kohya's scripts and most sites have them, at half their strength."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    found = {}
    for key, tensor in state.items():
        component, _, rest = key.partition(".")
        layer, _, part = rest.removesuffix(".weight").rpartition(".")
        if component != "unet":
            layer = f"text_model.{layer.removeprefix('text_model.')}"
        name = f"{prefixes[component]}_{layer.replace('.', '_')}"
        found[f"{name}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = tensor
        found[f"{name}.alpha"] = torch.tensor(2.0)  # of rank 4
    return found


def test_a_file_of_kohyas_scripts(eager_pipeline, converted, tmp_path, recwarn):
    attention = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    text = (*attention, "mlp.fc1", "mlp.fc2")
    layers = {**LAYERS, "text_encoder": text, "text_encoder_2": text}
    state = {key: value / 2 for key, value in lora(eager_pipeline, layers=layers).items()}
    own = load()
    own.load_lora_weights(dict(state))
    own.fuse_lora(lora_scale=0.7)
    expected = draw(own, SCENE)

    path = tmp_path / "kohya.safetensors"
    save_file(in_kohyas_format(state), path)
    recwarn.clear()
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet=F32, text_encoders=F32, loras=[(path, 1.4)],
        progress=False, cache=converted,
    ) as pipe:  # fmt: skip
        assert near(draw(pipe, SCENE), expected)
    assert not [w for w in recwarn if "belong to no layer" in str(w.message)]


def test_several_loras_add_up(style, eager_pipeline, converted):
    other = lora(eager_pipeline, seed=1)
    own = load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a second adapter
        for name, state in (("one", style), ("two", other)):
            own.load_lora_weights(dict(state), adapter_name=name)
    own.set_adapters(["one", "two"], [0.5, 0.3])
    expected = draw(own, SCENE)
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet=F32, text_encoders=F32, progress=False, cache=converted,
        loras=[(style, 0.5), (other, 0.3)],
    ) as pipe:  # fmt: skip
        assert near(draw(pipe, SCENE), expected)


def test_adapters_that_are_loaded_already_are_converted_in_effect(style, converted):
    own = load()
    own.load_lora_weights(dict(style), adapter_name="style")
    own.set_adapters(["style"], [0.7])
    expected = draw(own, SCENE)
    weights = {key: value.clone() for key, value in own.unet.state_dict().items()}
    with ovtensor.split_backends(own, unet=F32, text_encoders=F32, cache=converted) as pipe:
        assert near(draw(pipe, SCENE), expected)
    for key, value in own.unet.state_dict().items():
        assert torch.equal(value, weights[key])
    np.testing.assert_array_equal(draw(own, SCENE), expected)
    own.disable_lora()
    without = draw(own, SCENE)
    assert not near(without, expected)
    with ovtensor.split_backends(own, unet=F32, text_encoders=F32, cache=converted) as pipe:
        assert near(draw(pipe, SCENE), without)


def test_only_what_a_lora_touches_is_built_again(style, eager_pipeline, tmp_path):
    unet_only = {key: value for key, value in style.items() if key.startswith("unet.")}

    def rows(loras):
        with ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), unet=F32, vae=F32, text_encoders=F32, loras=loras,
            progress=False, cache=tmp_path,
        ) as pipe:  # fmt: skip
            return {row.component: row.cache for row in pipe.ovtensor.report()}

    everything = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "unet"), "miss")
    assert rows([]) == everything
    again = dict.fromkeys(everything, "hit")
    assert rows([]) == again
    assert rows([(unet_only, 0.7)]) == {**again, "unet": "miss"}
    assert rows([(unet_only, 0.71)]) == {**again, "unet": "miss"}
    assert rows([(unet_only, 0.7)]) == again
    assert rows([(style, 0.7)]) == {**again, "text_encoder": "miss", "text_encoder_2": "miss"}


def test_tensors_without_a_layer_are_listed(style):
    stray = {"unet.mid_block.no_such_layer.lora_A.weight": torch.zeros(4, 8)}
    stray["unet.mid_block.no_such_layer.lora_B.weight"] = torch.zeros(8, 4)
    with (
        pytest.warns(UserWarning, match=r"2 tensors of the LoRA \(a state dict\).*no_such_layer"),
        ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), unet="torch", loras=[({**style, **stray}, 1.0)],
            progress=False,
        ) as pipe,
    ):  # fmt: skip
        assert pipe.unet is not None


def open_error(loras, kind, model=None) -> str:
    with pytest.raises(kind) as caught:
        ovtensor.sdxl_pipeline(
            model if model is not None else ovtensor.tiny_sdxl_path(),
            unet="torch", loras=loras, progress=False,
        ).__enter__()  # fmt: skip
    return str(caught.value)


def test_loras_that_are_none(style, tmp_path, eager_pipeline):
    foreign = {"unet.nothing.lora_A.weight": torch.zeros(4, 8)}
    assert "none of the 1 tensors of the LoRA (a state dict)" in open_error(
        [(foreign, 1.0)], ModelError
    )
    assert "could not be read" in open_error([(tmp_path / "missing.safetensors", 1.0)], ModelError)
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    assert "could not be read" in open_error([(tmp_path / "broken.safetensors", 1.0)], ModelError)
    key = next(key for key in style if key.endswith("lora_A.weight"))
    misfit = {**style, key: torch.zeros(4, 7)}
    components = dict(eager_pipeline.components)
    assert "does not fit the unet" in open_error([(misfit, 1.0)], ModelError, eager_pipeline)
    assert eager_pipeline.components == components
    for nonsense in (["style.safetensors"], [(style,)], [(style, "much")]):
        assert "loras takes pairs" in open_error(nonsense, InputError)


def test_fused_copies_go_with_the_session(style, eager_pipeline):
    own = eager_pipeline.unet
    with ovtensor.split_backends(eager_pipeline, unet="torch", loras=[(style, 0.7)]) as pipe:
        assert pipe.unet is not own
        fused = weakref.ref(pipe.unet)
    gc.collect()
    assert fused() is None
    assert eager_pipeline.unet is own
