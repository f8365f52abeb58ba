"""Calls of an attached pipeline: in several threads, interrupted, cloned, and watched."""

from __future__ import annotations

import concurrent.futures
import gc
import inspect
import threading
import weakref

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.callbacks import SDXLCFGCutoffCallback

import ovtensor
from ovtensor import Backend, Event
from ovtensor.errors import InputError, SessionClosedError
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
STEPS = ([999, 700, 400, 100], [900, 600, 300, 50])


@pytest.fixture(scope="module")
def split(converted):
    own = load()
    own.scheduler = DPMSolverMultistepScheduler.from_config(own.scheduler.config)  # has a history
    with ovtensor.split_backends(
        own, unet=F32, vae=F32, text_encoders=F32, cache=converted
    ) as pipe:
        yield pipe


def test_threads_give_what_one_after_the_other_gives(split):
    expected = [draw(split, scene, num_inference_steps=6) for scene in SCENES]
    together = threading.Barrier(len(SCENES))

    def run(scene):
        together.wait()
        return draw(split, scene, num_inference_steps=6)

    with concurrent.futures.ThreadPoolExecutor(len(SCENES)) as pool:
        for _ in range(2):
            for picture, alone in zip(pool.map(run, SCENES), expected, strict=True):
                np.testing.assert_array_equal(picture, alone)


def test_threads_do_not_mix_up_their_timesteps(monkeypatch):
    """A UNet on torch in another precision is given the embedding of its timestep beforehand."""
    forward, met = UNet2DConditionModel.forward, threading.Barrier(2)

    def wait(self, *args, **kwargs):
        if self.dtype == torch.bfloat16:
            met.wait(60)  # until both threads have given theirs
        return forward(self, *args, **kwargs)

    bf16 = Backend("torch", precision="bf16")
    with ovtensor.split_backends(load(), unet=bf16, progress=False) as pipe:

        def run(steps):
            return draw(pipe, SCENES[0], num_inference_steps=4, timesteps=steps)

        expected = [run(steps) for steps in STEPS]
        monkeypatch.setattr(UNet2DConditionModel, "forward", wait)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for picture, alone in zip(pool.map(run, STEPS), expected, strict=True):
                np.testing.assert_array_equal(picture, alone)


def test_calls_at_once_have_tokenizers_of_their_own(split):
    """A tokenizer keeps its padding: another call's makes 10 tokens of a prompt instead of 77."""
    together = threading.Barrier(3)
    used = []

    def look(pipe, _step, _timestep, tensors):
        used.append((pipe.tokenizer, pipe.tokenizer_2))
        together.wait(timeout=60)
        return tensors

    def run(scene):
        return draw(split, scene, num_inference_steps=1, callback_on_step_end=look)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(run, SCENES[:3]))
    assert len({id(tokenizer) for pair in used for tokenizer in pair}) == 6
    given = {"padding": "max_length", "max_length": 77}
    expected = split.tokenizer("a large red circle", **given)["input_ids"]
    for tokenizer, _ in used:
        assert tokenizer("a large red circle", **given)["input_ids"] == expected


def test_a_clone_has_a_scheduler_of_its_own_and_the_same_weights(split):
    clone = split.ovtensor.clone()
    assert type(clone) is type(split)
    assert clone.unet is split.unet
    assert clone.vae is split.vae
    assert clone.scheduler is not split.scheduler
    assert clone.scheduler.config == split.scheduler.config
    assert clone.tokenizer is not split.tokenizer
    np.testing.assert_array_equal(
        draw(clone, SCENES[1], num_inference_steps=3), draw(split, SCENES[1], num_inference_steps=3)
    )


def test_clones_end_with_their_session(converted):
    session = ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet=F32, progress=False, cache=converted
    )
    with pytest.raises(SessionClosedError, match="only an open session can be cloned"):
        session.clone()
    with session:
        clone, forgotten = session.clone(), weakref.ref(session.clone())
        gc.collect()
        assert forgotten() is None  # the session does not keep those that nobody uses
    with pytest.raises(SessionClosedError, match="inside the `with` block"):
        clone(SCENES[0].prompt, num_inference_steps=1)
    with pytest.raises(SessionClosedError, match="only an open session can be cloned"):
        session.clone()


def test_it_is_the_pipeline_in_everything_else(split, eager_pipeline):
    kind = type(split)
    assert issubclass(kind, StableDiffusionXLPipeline)
    assert kind.__name__ == "StableDiffusionXLPipeline"
    assert kind.__module__ == StableDiffusionXLPipeline.__module__
    assert set(split.components) == set(eager_pipeline.components)
    with pytest.raises(InputError, match="Provide either `prompt` or `prompt_embeds`"):
        split()
    positional = split([SCENES[0].prompt], None, 128, 128, 1).images
    named = split(prompt=[SCENES[0].prompt], height=128, width=128, num_inference_steps=1).images
    assert positional[0].size == named[0].size
    with pytest.raises(InputError, match="callback_on_step_end_tensor_inputs"):
        split(SCENES[0].prompt, callback_on_step_end_tensor_inputs=["nothing"])


def test_the_callers_pipeline_has_its_own_class_all_the_time(eager_pipeline):
    with ovtensor.split_backends(eager_pipeline, unet="torch") as pipe:
        assert type(pipe) is not StableDiffusionXLPipeline
        assert type(eager_pipeline) is StableDiffusionXLPipeline
    assert type(eager_pipeline) is StableDiffusionXLPipeline
    assert "check_inputs" not in vars(eager_pipeline)


def test_callbacks_see_and_change_what_they_ask_for(split, eager_pipeline):
    def halve(pipe, step, timestep, tensors):
        assert set(tensors) == {"prompt_embeds"}
        assert pipe.num_timesteps == 4
        seen.append((step, float(timestep)))
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}

    options = {"num_inference_steps": 4, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    pictures, steps = [], []
    for pipe in (eager_pipeline, split):
        seen: list[tuple[int, float]] = []
        pictures.append(draw(pipe, SCENES[0], callback_on_step_end=halve, **options))
        steps.append(seen)
    scheduler = split.scheduler
    assert [step for step, _ in steps[1]] == [0, 1, 2, 3]
    assert steps[1] == [(step, float(scheduler.timesteps[step])) for step in range(4)]
    assert not np.array_equal(pictures[1], draw(split, SCENES[0], num_inference_steps=4))


def test_diffusers_callback_objects(split, eager_pipeline):
    own, eager_pipeline.scheduler = (
        eager_pipeline.scheduler,
        DPMSolverMultistepScheduler.from_config(eager_pipeline.scheduler.config),
    )
    try:
        expected, result = (
            draw(
                pipe,
                SCENES[0],
                num_inference_steps=5,
                callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.4),
            )
            for pipe in (eager_pipeline, split)
        )
    finally:
        eager_pipeline.scheduler = own
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 2


def test_an_interrupt_ends_the_steps(split):
    before = draw(split, SCENES[2], num_inference_steps=6)
    steps = []

    def interrupt(pipe, step, _timestep, _tensors):
        steps.append(step)
        pipe._interrupt = step == 2
        return {}

    draw(split, SCENES[2], num_inference_steps=6, callback_on_step_end=interrupt)
    assert steps == [0, 1, 2]
    np.testing.assert_array_equal(draw(split, SCENES[2], num_inference_steps=6), before)


def test_an_interrupt_from_outside_is_for_every_running_call(split):
    running = threading.Barrier(3)
    steps: dict[int, list[int]] = {0: [], 1: []}

    def run(worker):
        def watch(_pipe, step, _timestep, _tensors):
            steps[worker].append(step)
            if step == 1:
                running.wait()  # both calls are at their second step
                running.wait()  # and now they are interrupted
            return {}

        draw(split, SCENES[worker], num_inference_steps=8, callback_on_step_end=watch)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(run, worker) for worker in steps]
        running.wait()
        split._interrupt = True
        running.wait()
        for call in calls:
            call.result()
    assert steps == {0: [0, 1], 1: [0, 1]}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", [0, 3])
def test_after_an_exception_at_any_step_the_next_run_is_as_good_as_new(split, error, step):
    before = draw(split, SCENES[1], num_inference_steps=5)

    def stop(_pipe, at, _timestep, _tensors):
        if at == step:
            raise error
        return {}

    with pytest.raises(error):
        draw(split, SCENES[1], num_inference_steps=5, callback_on_step_end=stop)
    np.testing.assert_array_equal(draw(split, SCENES[1], num_inference_steps=5), before)


def test_a_pipeline_without_step_callbacks_runs_too(eager_pipeline, eager_pictures):
    class Plain(StableDiffusionXLPipeline):
        def __call__(self, prompt, *, steps):
            return super().__call__(
                prompt, num_inference_steps=steps, generator=torch.Generator().manual_seed(0)
            )

    assert "callback_on_step_end" not in inspect.signature(Plain.__call__).parameters
    plain = Plain(**eager_pipeline.components)
    plain.set_progress_bar_config(disable=True)
    with ovtensor.split_backends(plain, unet="torch") as pipe:
        picture = pipe(SCENES[0].prompt, steps=20).images[0]
    np.testing.assert_array_equal(np.asarray(picture), eager_pictures[0])


def test_events_tell_every_stage_in_order(converted):
    events: list[Event] = []
    with ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet=F32, vae=F32, verify=True, progress=False,
        on_event=events.append,
    ) as pipe:  # fmt: skip
        opening, events[:] = list(events), []
        draw(pipe, SCENES[0], num_inference_steps=2)
    stages = [(event.component, event.stage) for event in opening if event.state == "finished"]
    assert stages == [
        ("pipeline", "load"),
        *(
            (graph, stage)
            for graph in ("unet", "vae_decoder")
            for stage in ("load", "convert", "compile", "warm-up")
        ),
    ]
    for started, finished in zip(opening[::2], opening[1::2], strict=True):
        assert (started.stage, started.component) == (finished.stage, finished.component)
        assert (started.state, started.seconds) == ("started", None)
        assert finished.seconds > 0
    steps = [event for event in events if event.stage == "step"]
    assert [(event.step, event.steps, event.state) for event in steps] == [
        (0, 2, "started"),
        (0, 2, "finished"),
        (1, 2, "started"),
        (1, 2, "finished"),
    ]
    assert all(event.seconds > 0 for event in steps if event.state == "finished")
    assert [(event.stage, event.state) for event in events[-2:]] == [
        ("decode", "started"),
        ("decode", "finished"),
    ]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_step_begins_after_what_was_called_at_the_end_of_the_last_one(
    eager_pipeline, interrupted
):
    told = []

    def listen(event):
        if event.stage == "step":
            told.append((event.step, event.steps, event.state))

    def called(pipe, step, _timestep, tensors):
        told.append(step)
        pipe._interrupt = interrupted and step == 1
        return tensors

    with ovtensor.split_backends(eager_pipeline, unet="torch", on_event=listen) as pipe:
        for _ in range(2):
            draw(pipe, SCENES[0], num_inference_steps=3, callback_on_step_end=called)
        pipe.progress_bar(total=3)  # of somebody else
    steps = range(2 if interrupted else 3)
    expected = [((n, 3, "started"), (n, 3, "finished"), n) for n in steps]
    assert told == 2 * [entry for step in expected for entry in step]


def test_what_a_listener_raises_ends_the_work_and_leaves_nothing(eager_pipeline):
    components = dict(eager_pipeline.components)

    def refuse(event):
        if event.stage == "compile":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ovtensor.split_backends(eager_pipeline, unet=F32, on_event=refuse).__enter__()
    assert eager_pipeline.components == components
    assert type(eager_pipeline) is StableDiffusionXLPipeline
