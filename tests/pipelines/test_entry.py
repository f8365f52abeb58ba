"""The ways in: what may be asked for, what is refused at once, and what sessions tell."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import ovtensor
from ovtensor import Backend
from ovtensor.engine.plan import ConversionPlan
from ovtensor.errors import BackendError, InputError, NonFiniteError
from sdxl_scenes import SCENES, draw, load

F32 = Backend("openvino", precision="f32")
TORCH = dict.fromkeys(("unet", "vae", "text_encoders"), "torch")


def test_public_names():
    from ovtensor import sdxl

    assert ovtensor.Event is sdxl.Event
    assert ovtensor.Backend is sdxl.Backend
    assert ovtensor.MemoryPolicy().total() > 0
    assert {"Event", "MemoryPolicy", "pipeline"} <= set(dir(ovtensor))


def backends_of(pipe):
    return {row.component: row.backend for row in pipe.ovtensor.report()}


@pytest.mark.parametrize("loaded", [False, True])
def test_a_component_by_its_own_name_counts_before_its_group(loaded, eager_pipeline, converted):
    model = eager_pipeline if loaded else ovtensor.tiny_sdxl_path()
    everything = {"unet": "torch", "vae": "torch", "text_encoder": "torch"}
    everything |= {"text_encoder_2": "torch"}
    for asked, expected in [
        ({"unet": "torch", "text_encoder_2": F32}, {"text_encoder_2"}),
        ({"unet": "torch", "text_encoders": F32, "text_encoder": "torch"}, {"text_encoder_2"}),
        ({"unet": "torch", "text_encoders": F32}, {"text_encoder", "text_encoder_2"}),
        ({"unet": "torch", "vae": F32}, {"vae"}),
    ]:
        with ovtensor.pipeline(model, backends=asked, cache=converted, progress=False) as pipe:
            assert backends_of(pipe) == everything | dict.fromkeys(expected, "openvino")


def test_by_default_the_unet_is_on_openvino(eager_pipeline, converted):
    with ovtensor.pipeline(eager_pipeline, cache=converted, progress=False) as pipe:
        assert [name for name, kind in backends_of(pipe).items() if kind == "openvino"] == ["unet"]


@pytest.mark.parametrize(
    "name", ["transformer", "text_encoder_3", "Unet", "unet ", "vae_decoder", "", 3, None]
)
def test_unknown_components_are_refused_at_once(name):
    with pytest.raises(InputError, match=r"backends names .*; give some of 'text_encoder', "):
        ovtensor.pipeline("there is no such model", backends={name: "torch"})


def test_a_component_of_another_family_is_refused_on_entering(eager_pipeline):
    parts = eager_pipeline.components
    plain = StableDiffusionPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        unet=type(parts["unet"]).from_config(
            {
                **parts["unet"].config,
                "addition_embed_type": None,
                "cross_attention_dim": parts["text_encoder"].config.hidden_size,
            }
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    before = dict(vars(plain))
    with pytest.raises(InputError, match=r"'text_encoder_2'; Stable Diffusion 1\.5 and 2 has"):
        ovtensor.pipeline(plain, backends={"text_encoder_2": "torch"}).__enter__()
    assert vars(plain) == before


def test_backends_are_checked_whatever_names_them():
    with pytest.raises(BackendError, match="text_encoder_2='onnx'"):
        ovtensor.pipeline(ovtensor.tiny_sdxl_path(), backends={"text_encoder_2": "onnx"})


def test_reports_and_the_log_have_the_plans(eager_pipeline, caplog):
    with (
        caplog.at_level(logging.INFO, logger="ovtensor"),
        ovtensor.pipeline(
            eager_pipeline, backends={"unet": "torch", "vae": F32}, progress=False
        ) as pipe,
    ):
        assert {row.component: len(row.plans) for row in pipe.ovtensor.report()} == {
            "unet": 0,
            "text_encoder": 0,
            "text_encoder_2": 0,
            "vae": 1,
        }
        pipe.vae.encode(torch.zeros(1, 3, 64, 64))
        report = pipe.ovtensor.report()
    plans = {row.component: row.plans for row in report}["vae"]
    assert all(isinstance(plan, ConversionPlan) for plan in plans)
    assert {plan.graph for plan in plans} == {"vae_decoder", "vae_encoder"}
    assert {plan.precision for plan in plans} == {"f32"}
    for plan in plans:
        assert str(plan) in caplog.messages
        assert plan.graph in str(plan)
        assert "f32 on CPU" in str(plan)
    assert report.to_dict()["vae"]["plans"][0]["graph"] == plans[0].graph


def spoiled(pipe):
    """A pipeline whose UNet, text encoder and decoder each give NaN once they are asked to."""

    def latents(_pipe, step, _timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")} if step == 0 else {}

    def pixels():
        return pipe.vae.decode(torch.full((1, 4, 4, 4), float("nan")))

    return {
        "latents": lambda: draw(
            pipe, SCENES[0], num_inference_steps=2, output_type="latent",
            callback_on_step_end=latents,
        ),
        "pixels": pixels,
        "text": lambda: pipe.encode_prompt(SCENES[0].prompt),
    }  # fmt: skip


@pytest.fixture(scope="module")
def broken():
    """A pipeline of which a text encoder has NaN among its weights."""
    pipe = load()
    with torch.no_grad():
        list(pipe.text_encoder.parameters())[-1][0] = float("nan")
    return pipe


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("said_by", ["session", "patch", "environment"])
@pytest.mark.parametrize("where", ["latents", "pixels", "text"])
def test_nan_does_what_was_said_first(
    where, said_by, broken, eager_pipeline, converted, monkeypatch
):
    own = broken if where == "text" else eager_pipeline
    kinds = {**TORCH, "text_encoders": F32 if where == "text" else "torch", "cache": converted}

    def session(policy):
        given = {"nonfinite": policy} if said_by == "session" else {}
        return ovtensor.split_backends(own, **kinds, **given, progress=False)

    def told(policy, run):
        if policy == "warn":
            with pytest.warns(RuntimeWarning, match="NaN or infinity"):
                run()
        elif policy == "raise":
            with pytest.raises(NonFiniteError, match="NaN or infinity"):
                run()
        else:
            run()

    for policy in ("raise", "warn", "ignore"):
        # What comes later in the order says something else, and is not asked.
        later = next(word for word in ("ignore", "raise", "warn") if word != policy)
        patch = None
        with monkeypatch.context() as context:
            if said_by == "environment":
                context.setenv("OVTENSOR_NONFINITE", policy)
            else:
                context.setenv("OVTENSOR_NONFINITE", later)
                patch = ovtensor.patch_diffusers(nonfinite=policy if said_by == "patch" else later)
            try:
                with session(policy) as pipe:
                    told(policy, spoiled(pipe)[where])
            finally:
                if patch is not None:
                    patch.undo()


def test_words_that_are_no_policy(eager_pipeline, monkeypatch):
    with pytest.raises(InputError, match="nonfinite is 'rasie'"):
        ovtensor.pipeline(eager_pipeline, nonfinite="rasie")
    monkeypatch.setenv("OVTENSOR_NONFINITE", "maybe")
    with (
        ovtensor.split_backends(eager_pipeline, **TORCH, progress=False) as pipe,
        pytest.raises(InputError, match="OVTENSOR_NONFINITE is 'maybe'"),
    ):
        pipe.vae.decode(torch.full((1, 4, 4, 4), float("nan")))
