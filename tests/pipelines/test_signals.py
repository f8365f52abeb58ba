"""Whatever ends the opening half-way arrives as what it was, and leaves all as it was before."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import warnings
import weakref

import numpy as np
import openvino as ov
import pytest
import torch
from openvino.frontend import FrontEnd
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

import ovtensor
from ovtensor import Backend
from ovtensor.cache import store
from ovtensor.engine import compiled, convert
from ovtensor.engine.process import EXCLUSIVE, handed_on
from ovtensor.pipelines import sources
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")
ALL = {"unet": F32, "vae": F32, "text_encoders": F32, "progress": False}
VAE = {"unet": "torch", "vae": F32, "verify": True, "progress": False}

posix = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX")


class AlarmError(Exception):
    """What an alarm handler raises."""


ERRORS = (KeyboardInterrupt, SystemExit, AlarmError, MemoryError)

# A function of each stage; during a call of it the signal comes.
STAGES = {
    "load": (sources.LoadedSource, "load"),
    "trace": (convert, "_traced"),
    "reference": (convert, "_computed"),
    "in OpenVINO's callback": (TorchScriptPythonDecoder, "get_op_type"),
    "convert": (FrontEnd, "convert"),
    "write": (ov, "save_model"),
    "compile": (ov.Core, "compile_model"),
    "warm-up": (compiled.Compiled, "check"),
}


@contextlib.contextmanager
def handler_raises(error):
    """Have ``SIGUSR1`` raise an exception, with a handler that stays the same object."""
    made = []

    def handler(*_):
        made.append(error("of the handler"))
        raise made[-1]

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield made
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def process_state():
    return (
        gc.isenabled(),
        list(warnings.filters),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        threading.active_count(),
        [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        os.environ.copy(),
    )


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where scratch folders of this process go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(store, "temporary_folder", lambda: folder)
    return folder


@posix
@pytest.mark.parametrize(
    ("stage", "error"),
    [
        *((stage, error) for stage in STAGES for error in (SystemExit, AlarmError)),
        ("in OpenVINO's callback", KeyboardInterrupt),
        ("in OpenVINO's callback", MemoryError),
    ],
)
def test_the_exception_of_a_handler_arrives_and_nothing_is_left(
    stage, error, eager_pipeline, scratch, monkeypatch
):
    owner, name = STAGES[stage]
    works, came = getattr(owner, name), []

    def signalled(*args, **kwargs):
        result = works(*args, **kwargs)
        if not came:
            came.append(stage)
            signal.raise_signal(signal.SIGUSR1)
        return result

    made = weakref.WeakSet()
    begin = compiled.Compiled.__init__

    def watched(self, *args):
        made.add(self)
        begin(self, *args)

    before, attributes = process_state(), dict(vars(eager_pipeline))
    modules = dict(eager_pipeline.components)
    session = ovtensor.split_backends(eager_pipeline, **VAE)
    with monkeypatch.context() as patch, handler_raises(error) as raised:
        patch.setattr(owner, name, signalled)
        patch.setattr(compiled.Compiled, "__init__", watched)
        with pytest.raises(error, match="of the handler") as caught:
            session.__enter__()
        assert caught.value is raised[0]
        assert came
    assert process_state() == before
    assert vars(eager_pipeline) == attributes
    assert eager_pipeline.components == modules
    assert not [*scratch.iterdir()]
    del caught, raised
    gc.collect()
    assert not made


@posix
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["load_pipeline", "meta_module", "load"])
def test_while_a_folder_is_loaded(name, error, monkeypatch):
    """What is called within the library's own functions: as it says of itself, it was not them."""
    import diffusers
    import transformers

    owner, function = {
        "load_pipeline": (diffusers.DiffusionPipeline, "load_config"),
        "meta_module": (diffusers.UNet2DConditionModel, "load_config"),
        "load": (transformers.CLIPTextModel, "get_init_context"),
    }[name]
    works, came = getattr(owner, function), []

    def signalled(*args, **kwargs):
        if not came:
            came.append(name)
            signal.raise_signal(signal.SIGUSR1)
        return works(*args, **kwargs)

    before = process_state()
    session = ovtensor.sdxl_pipeline(
        ovtensor.tiny_sdxl_path(), unet=F32, text_encoders="torch", progress=False
    )
    with monkeypatch.context() as patch, handler_raises(error) as raised:
        patch.setattr(owner, function, staticmethod(signalled))
        with pytest.raises(error, match="of the handler") as caught:
            session.__enter__()
        assert caught.value is raised[0]
    assert process_state() == before
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().item()  # not on the meta device


@posix
def test_a_pipeline_draws_after_each_of_them(eager_pictures, converted):
    own = load()
    for error in ERRORS:
        with handler_raises(error):

            def listen(event):
                if (event.stage, event.state) == ("convert", "started"):
                    signal.raise_signal(signal.SIGUSR1)

            with pytest.raises(error):
                ovtensor.split_backends(own, **ALL, on_event=listen).__enter__()
    np.testing.assert_array_equal(draw(own, SCENES[0]), eager_pictures[0])
    with ovtensor.split_backends(own, **ALL, cache=converted) as pipe:
        assert np.abs(draw(pipe, SCENES[0]).astype(int) - eager_pictures[0]).max() <= 2


def another_error():
    try:
        signal.raise_signal(signal.SIGUSR1)
    except BaseException as was:
        raise RuntimeError("what a library makes of it") from was


def dropped():
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGUSR1)


@posix
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("library", [another_error, dropped])
def test_what_becomes_another_error_or_is_dropped(library, error):
    with handler_raises(error) as raised:
        with pytest.raises(error, match="of the handler") as caught, handed_on():
            library()
        assert caught.value is raised[0]
    with pytest.raises(ZeroDivisionError), handed_on():
        1 / 0  # noqa: B018


@posix
def test_a_handler_that_was_set_meanwhile_stays_and_others_come_back():
    def other(*_):
        pass

    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    own = signal.getsignal(signal.SIGUSR2)
    try:
        with handed_on(), handed_on():
            signal.signal(signal.SIGUSR1, other)
        assert [signal.getsignal(number) for number in numbers] == [other, own]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@posix
def test_a_signal_while_the_handlers_are_put_back_is_not_lost(monkeypatch):
    set_handler = signal.signal

    def signalled(number, handler):
        if number == signal.SIGUSR1 and handler is own:
            signal.raise_signal(number)
        return set_handler(number, handler)

    with handler_raises(AlarmError) as raised:
        own = signal.getsignal(signal.SIGUSR1)
        with pytest.raises(AlarmError) as caught, handed_on():
            monkeypatch.setattr(signal, "signal", signalled)
        monkeypatch.undo()
        assert caught.value is raised[0]
        assert signal.getsignal(signal.SIGUSR1) is own


def test_in_other_threads_no_handlers_are_watched():
    seen = []

    def look():
        with handed_on():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize(
    ("state", "error"),
    [("started", SystemExit), ("finished", KeyboardInterrupt), ("finished", AlarmError)],
)
@pytest.mark.parametrize("stage", ["load", "convert", "compile", "warm-up"])
def test_what_a_listener_raises_at_each_stage(stage, state, error, eager_pipeline, scratch):
    before, attributes = process_state(), dict(vars(eager_pipeline))

    def listen(event):
        if (event.stage, event.state, event.component) == (stage, state, "vae_decoder"):
            raise error("of the listener")

    with pytest.raises(error, match="of the listener"):
        ovtensor.split_backends(eager_pipeline, **VAE, on_event=listen).__enter__()
    assert process_state() == before
    assert vars(eager_pipeline) == attributes
    assert not [*scratch.iterdir()]
    assert EXCLUSIVE.acquire(blocking=False)
    EXCLUSIVE.release()
