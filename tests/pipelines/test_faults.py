"""A fault at every stage: a clear error, nothing left behind, and the next run right."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from diffusers import StableDiffusionXLPipeline
from openvino.frontend import FrontEnd

import ovtensor
from ovtensor import Backend
from ovtensor._disk import temporary_folder
from ovtensor.cache import store
from ovtensor.cache.locks import try_hold
from ovtensor.engine import compiled
from ovtensor.errors import ComponentError
from sdxl_scenes import SCENES, draw, load

pytestmark = pytest.mark.slow

F32 = Backend("openvino", precision="f32")


def left_by_the_dead() -> set[Path]:
    """Scratch folders whose process is gone; others on this machine may be at work."""
    left = set()
    for lock in temporary_folder().glob("ovtensor-scratch-*.lock"):
        with contextlib.suppress(OSError):
            if (hold := try_hold(lock)) is not None:
                hold.release()
                left.add(lock)
    return left


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where scratch folders of this process go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(store, "temporary_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("owner", "stage"),
    [(FrontEnd, "convert"), (ov, "save_model"), (ov.Core, "compile_model")],
)
def test_any_conversion_or_compilation_may_fail(
    owner, stage, number, eager_pipeline, eager_pictures, scratch, monkeypatch
):
    components, attributes = dict(eager_pipeline.components), dict(vars(eager_pipeline))
    calls = []
    works = getattr(owner, stage)

    def fails_at_last(*args, **kwargs):
        calls.append(stage)
        if len(calls) == number:
            raise RuntimeError("broken in this test")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, stage, fails_at_last)
    name = ("unet", "text_encoder_2", "text_encoder", "vae_decoder")[number - 1]
    with pytest.raises(ComponentError, match=rf"could not \w+ {name}\b.*broken in this test"):
        ovtensor.split_backends(
            eager_pipeline, unet=F32, vae=F32, text_encoders=F32
        ).__enter__()  # fmt: skip
    assert len(calls) == number
    assert eager_pipeline.components == components
    assert vars(eager_pipeline) == attributes
    assert type(eager_pipeline) is StableDiffusionXLPipeline
    assert not [*scratch.iterdir()]
    monkeypatch.undo()
    if number == 4:
        np.testing.assert_array_equal(draw(eager_pipeline, SCENES[0]), eager_pictures[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_inference_that_fails_at_some_step(error, converted, monkeypatch):
    with ovtensor.split_backends(load(), unet=F32, cache=converted) as pipe:
        expected = draw(pipe, SCENES[1], num_inference_steps=4)
        infer, calls = compiled._Requests.infer, []

        def fails_at_the_third(self, arrays):
            calls.append(self)
            if len(calls) == 3:
                raise error("broken in this test")
            return infer(self, arrays)

        monkeypatch.setattr(compiled._Requests, "infer", fails_at_the_third)
        wanted = ComponentError if error is RuntimeError else error
        with pytest.raises(wanted, match="broken in this test"):
            draw(pipe, SCENES[1], num_inference_steps=4)
        monkeypatch.undo()
        np.testing.assert_array_equal(draw(pipe, SCENES[1], num_inference_steps=4), expected)


def run_python(code: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_a_disk_that_is_full():
    """Files of this process may not grow beyond one megabyte, less than the UNet's weights."""
    before = left_by_the_dead()
    process = run_python(
        """
        import resource, signal
        import ovtensor
        from ovtensor import Backend

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        f32 = Backend("openvino", precision="f32")
        try:
            ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), unet=f32, progress=False).__enter__()
        except ovtensor.errors.ComponentError as error:
            print(error)
        """
    )
    output, errors = process.communicate(timeout=300)
    assert "could not write unet to" in output, errors
    assert "disk is full" in output
    assert left_by_the_dead() <= before


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("part", [0.2, 0.7, 0.9])  # tracing, and OpenVINO's own of the conversion
def test_control_c_while_it_converts_and_while_it_draws(part):
    before = left_by_the_dead()
    process = run_python(
        """
        import signal
        import ovtensor
        from ovtensor import Backend

        # Where tests run in the background the shell has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def tell(event):
            print(event.stage, event.state, flush=True)

        f32 = Backend("openvino", precision="f32")
        try:
            while True:
                with ovtensor.sdxl_pipeline(
                    ovtensor.tiny_sdxl_path(), unet=f32, vae="torch", text_encoders="torch",
                    progress=False, on_event=tell,
                ):
                    pass
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        with ovtensor.sdxl_pipeline(
            ovtensor.tiny_sdxl_path(), unet="torch", progress=False, on_event=tell
        ) as pipe:
            try:
                pipe("a small red circle", num_inference_steps=10_000)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            pipe("a small red circle", num_inference_steps=1)
            print("drawn", flush=True)
        """
    )

    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line.strip()) for line in process.stdout])
    reader.start()

    def wait_for(wanted: str, seconds: float = 120.0) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if lines.get(timeout=left) == wanted:
                    return True
        return False

    try:
        for _ in range(2):  # the second time it loads no libraries
            assert wait_for("convert started")
            start = time.monotonic()
            assert wait_for("convert finished")
            seconds = time.monotonic() - start
        assert wait_for("convert started")
        time.sleep(part * seconds)
        process.send_signal(signal.SIGINT)
        assert wait_for("interrupted")
        assert wait_for("step finished")
        process.send_signal(signal.SIGINT)
        assert wait_for("interrupted")
        assert wait_for("drawn")
        process.wait(timeout=60)
    finally:
        process.kill()
        reader.join()
        process.communicate()
    assert process.returncode == 0
    assert left_by_the_dead() <= before


def test_what_a_killed_process_left_goes_with_the_next_session():
    process = run_python(
        """
        import ovtensor
        from ovtensor import Backend

        f32 = Backend("openvino", precision="f32")
        with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), vae=f32, unet="torch") as pipe:
            print("open", flush=True)
            input()
        """,
        stdin=subprocess.PIPE,
    )
    for line in process.stdout:
        if line.strip() == "open":
            break
    before = left_by_the_dead()
    process.kill()
    process.communicate()
    left = left_by_the_dead() - before
    assert left
    with ovtensor.sdxl_pipeline(ovtensor.tiny_sdxl_path(), vae=F32, unet="torch", progress=False):
        assert not any(lock.exists() or lock.with_suffix("").exists() for lock in left)
