"""Several blocks over one pipeline of the caller's, at once and nested, and what they leave."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
)

import ovtensor
from ovtensor import Backend
from ovtensor.errors import SessionClosedError
from ovtensor.pipelines.proxies import is_proxy
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
TORCH = dict.fromkeys(("unet", "vae", "text_encoders"), "torch")
SPLITS = (
    (TORCH | {"unet": F32}, DDIMScheduler),
    (TORCH | {"vae": F32}, EulerDiscreteScheduler),
    (TORCH | {"text_encoders": F32}, DPMSolverMultistepScheduler),
    (dict.fromkeys(TORCH, F32), UniPCMultistepScheduler),
)
STEPS = 4


@pytest.fixture
def own():
    return load()


@pytest.fixture(scope="module")
def expected():
    """What the eager pipeline draws with the scheduler of each split."""
    pipe, pictures = load(), []
    config = pipe.scheduler.config
    for _, kind in SPLITS:
        pipe.scheduler = kind.from_config(config)
        pictures.append(draw(pipe, SCENES[0], num_inference_steps=STEPS).astype(int))
    return pictures


def drawn(pipe, scheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return draw(pipe, SCENES[0], num_inference_steps=STEPS).astype(int)


def test_nested_blocks_with_other_splits_and_schedulers(own, expected, converted):
    before, modules = dict(vars(own)), dict(own.components)
    sessions = [
        ovtensor.split_backends(own, **kinds, cache=converted, progress=False)
        for kinds, _ in SPLITS
    ]
    pipes = [session.__enter__() for session in sessions]
    try:
        for pipe, (_, scheduler), picture in zip(pipes, SPLITS, expected, strict=True):
            assert np.abs(drawn(pipe, scheduler) - picture).max() <= 2
        assert vars(own) == before
        sessions[0].close()  # the first one: not as blocks are nested
        with pytest.raises(SessionClosedError):
            draw(pipes[0], SCENES[0], num_inference_steps=1)
        for pipe, (_, scheduler), picture in [*zip(pipes, SPLITS, expected, strict=True)][1:]:
            assert np.abs(drawn(pipe, scheduler) - picture).max() <= 2
    finally:
        for session in sessions:
            session.close()
    assert vars(own) == before
    assert own.components == modules
    assert not any(map(is_proxy, modules.values()))


def test_blocks_in_threads(own, expected, converted):
    before = dict(vars(own))
    together = threading.Barrier(len(SPLITS))

    def run(split):
        kinds, scheduler = split
        together.wait(timeout=120)
        with ovtensor.split_backends(own, **kinds, cache=converted, progress=False) as pipe:
            together.wait(timeout=120)  # all of them are open
            return drawn(pipe, scheduler), drawn(pipe, scheduler)

    with concurrent.futures.ThreadPoolExecutor(len(SPLITS)) as pool:
        for (first, second), picture in zip(pool.map(run, SPLITS), expected, strict=True):
            assert np.abs(first - picture).max() <= 2
            np.testing.assert_array_equal(first, second)
    assert vars(own) == before
    assert gc.isenabled()


def test_the_callers_pipeline_draws_inside_the_block_and_after_it(own, eager_pictures, converted):
    everything = dict.fromkeys(TORCH, F32)
    with ovtensor.split_backends(own, **everything, cache=converted, progress=False) as pipe:
        assert np.abs(draw(pipe, SCENES[0]).astype(int) - eager_pictures[0]).max() <= 2
        np.testing.assert_array_equal(draw(own, SCENES[0]), eager_pictures[0])
        own.scheduler = DDIMScheduler.from_config(own.scheduler.config)
        assert not isinstance(pipe.scheduler, DDIMScheduler)
    own.scheduler = type(pipe.scheduler).from_config(own.scheduler.config)
    np.testing.assert_array_equal(draw(own, SCENES[0]), eager_pictures[0])


def test_from_pipe_inside_the_block(own, converted):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    options = {"image": picture, "strength": 0.6, "num_inference_steps": 5}
    eager = StableDiffusionXLImg2ImgPipeline.from_pipe(own)
    eager.set_progress_bar_config(disable=True)
    wanted = draw(eager, SCENES[0], **options).astype(int)
    everything = dict.fromkeys(TORCH, F32)
    with ovtensor.split_backends(own, **everything, cache=converted, progress=False) as pipe:
        other = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        assert is_proxy(other.unet)
        assert np.abs(draw(other, SCENES[0], **options).astype(int) - wanted).max() <= 2
        assert is_proxy(pipe.unet)
    assert not is_proxy(own.unet)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_after_the_block_only_its_own_pipeline_is_closed(name, own, converted):
    with ovtensor.split_backends(own, unet=F32, cache=converted, progress=False) as pipe:
        pass
    with pytest.raises(SessionClosedError, match=f"the pipeline's {name} was released"):
        getattr(pipe, name).config  # noqa: B018
    with pytest.raises(SessionClosedError, match=name):
        getattr(pipe, name)()
    assert getattr(own, name).config is not None


def test_a_session_keeps_nothing_of_the_callers_alive(converted):
    own = load()
    watched = [weakref.ref(one) for one in (own, own.unet, own.vae, own.text_encoder)]
    session = ovtensor.split_backends(own, unet=F32, cache=converted, progress=False)
    with session as pipe:
        del own
    gc.collect()
    assert [one() for one in watched] == [None] * len(watched)
    assert session.report()
    assert pipe.tokenizer is not None
