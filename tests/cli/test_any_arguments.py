"""Whatever the command line is given: a result, or one line and a status that says which."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import ovtensor
from ovtensor import cli

ODD = [
    "",
    " ",
    "0",
    "-1",
    "1e30",
    "nan",
    "inf",
    "-inf",
    str(2**63),
    str(2**64),
    str(-(2**63) - 1),
    "9" * 5000,
    "٣",
    "1_000",
    "0x10",
    "1x",
    "8x8",
    "16000x8",
    "8x99999999999999999999",
    "~nosuchuser",
    "~nosuchuser/x.png",
    "a\0b",
    "a\0b.png",
    "a\nb",
    "\ud800",
    "\udcff.png",
    "\x1b[2J.png",
    ".",
    "..",
    "/",
    ".png",
    "a.png",
    "folder.png",
    "nowhere/a.png",
    "/proc/a.png",
    f"{'a' * 300}.png",
    f"{'a' * 240}.png",
    f"{'a/' * 3000}a.png",
    "--",
    "-x",
    "%s",
    "torch",
    "openvino",
    "f32",
]
odd = st.sampled_from(ODD) | st.text(max_size=8)
DRAWING = ["--steps", "--guidance", "--seed", "--size", "--model", "--out", "--device"]
DRAWING += ["--unet", "--vae", "--precision", "--cache", "--quiet", "--nonsense"]
CACHE = ["--path", "--json", "--max-size", "--nonsense"]


def call(arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(arguments)
    out.flush()
    return status, out.buffer.getvalue().decode(), err.getvalue()


def one_line_or_a_result(arguments: list[str]) -> int:
    status, out, err = call(arguments)
    lines = [line for line in err.splitlines() if line.startswith("ovtensor")]
    if status == 0:
        assert lines == []
    elif status == 2:
        assert (out, len(lines), err.count("\n")) == ("", 1, 1)
    else:
        assert len(lines) <= 1
        assert arguments[:1] == ["cache"]  # verify found something, or a folder cannot be used
    assert err.isprintable() or err[:-1].isprintable()
    return status


@pytest.fixture(scope="module")
def drawn():
    """Stand in for opening a pipeline, which takes seconds; everything before it is real."""
    calls = []

    @contextlib.contextmanager
    def pipeline(model, *, backends, cache, progress):
        def pipe(prompt, *, num_inference_steps, guidance_scale, width, height, generator):
            calls.append(num_inference_steps)
            assert str(model)
            assert prompt.encode().isascii() or prompt
            assert 1 <= num_inference_steps <= 1000
            assert math.isfinite(guidance_scale)
            assert isinstance(generator, torch.Generator)
            assert (width is None) == (height is None)
            assert width is None or (8 <= width <= 16000 and width % 8 == height % 8 == 0)
            return type("Result", (), {"images": [Image.new("RGB", (8, 8))]})

        yield pipe

    with pytest.MonkeyPatch.context() as patch:
        assert ovtensor.pipeline
        patch.setattr(ovtensor, "pipeline", pipeline)
        yield calls


@contextlib.contextmanager
def elsewhere():
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("folder.png").mkdir()
        try:
            yield
        finally:
            os.chdir(before)


options = st.lists(st.tuples(st.sampled_from(DRAWING), odd), max_size=4)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd, options)
@example("x", [("--seed", "1e30")])
@example("x", [("--seed", str(2**64))])
@example("x", [("--seed", str(-(2**63) - 1))])
@example("x", [("--guidance", "nan")])
@example("x", [("--guidance", "inf")])
@example("x", [("--model", "")])
@example("x", [("--model", "~nosuchuser/x")])
@example("x", [("--size", "8x99999999999999999999")])
@example("x", [("--steps", "9" * 5000)])
@example("x", [("--out", "a\0b.png")])
@example("x", [("--out", f"{'a' * 300}.png")])
@example("x", [("--device", "\ud800")])
@example("\ud800", [])
@example("x", [("--out", "folder.png")])
def test_generate(drawn, prompt, options):
    with elsewhere():
        drawn.clear()
        flat = [part for name, value in options for part in (name, value)]
        status = one_line_or_a_result(["generate", prompt, *flat])
        assert status in (0, 2)
        assert (len(drawn) == 1) == (status == 0 and "-h" not in flat and "--help" not in flat)
        pictures = [path.name for path in Path().rglob("*") if path.is_file()]
        assert len(pictures) == len(drawn)
        assert not [name for name in pictures if ".part" in name]


def test_what_is_right_at_the_edges(drawn):
    with elsewhere():
        for name, value in [
            ("--seed", str(2**64 - 1)),
            ("--seed", str(-(2**63))),
            ("--steps", "1000"),
            ("--guidance", "-1000"),
            ("--guidance", "1e2"),
            ("--size", "16000x8"),
            ("--size", "64"),
            ("--out", f"{'a' * 240}.png"),
            ("--out", "Über.JPG"),
        ]:
            assert call(["generate", "", f"{name}={value}"])[0] == 0, (name, value)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["list", "verify", "prune", "clear", "where"]) | odd,
    st.lists(st.tuples(st.sampled_from(CACHE), odd), max_size=3),
)
@example("prune", [("--max-size", "9" * 400)])
@example("prune", [("--max-size", "9" * 5000)])
@example("list", [("--path", "~nosuchuser/x")])
@example("list", [("--path", "")])
@example("where", [("--path", "a\0b")])
@example("where", [("--path", "\udcff")])
@example("clear", [("--path", f"{'a' * 300}")])
def test_cache(action, options):
    with elsewhere(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVTENSOR_CACHE_DIR", "cache")
        one_line_or_a_result(["cache", action, *(part for pair in options for part in pair)])
        assert [path.name for path in Path().iterdir()] == ["folder.png"]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(odd | st.sampled_from(["cache", "list", "--version", "--help"]), max_size=3))
def test_anything(arguments):
    if arguments[:1] not in (["demo"], ["generate"]):
        with elsewhere():
            one_line_or_a_result(arguments)


def test_a_folder_of_the_environment_that_cannot_be_one(monkeypatch):
    monkeypatch.setenv("OVTENSOR_CACHE_DIR", "~nosuchuser/x")
    assert one_line_or_a_result(["cache", "list"]) == 2
