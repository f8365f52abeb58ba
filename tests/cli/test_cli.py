"""The command line: pictures, tables, exit statuses, and one clear line for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import shapes
from ovtensor import cli
from ovtensor.cli import drawing


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder; gives status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(arguments)
        except SystemExit as stop:
            status = int(stop.code)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def parse(prompt: str) -> shapes.Scene:
    _, size, colour, shape, _, _, background, _ = prompt.split()
    return shapes.Scene(size, colour, shape, background)


@pytest.mark.slow
def test_demo_draws_what_it_says_twice(run, tmp_path):
    status, out, _ = run("demo", "--out", "grid.png")
    assert status == 0
    assert "run 2 equals run 1 byte for byte: yes" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line[:4].strip()}
    assert rows["unet"][1:3] == ["openvino", "CPU"]
    assert "compilations: 1 up to the end of run 1, 0 in run 2" in out
    assert rows["vae"][1] == "torch"
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    grid = np.asarray(Image.open("grid.png"))
    assert grid.shape == (256, 256, 3)
    for index, prompt in enumerate(drawing.DEMO_PROMPTS):
        top, left = 128 * (index // 2), 128 * (index % 2)
        scene = parse(prompt)
        verdict = shapes.judge(grid[top : top + 128, left : left + 128], scene)
        assert verdict.right(scene), (prompt, verdict)


@pytest.mark.slow
def test_generate_draws_with_a_seed(run):
    prompt = "a large red circle on a white background"
    arguments = ("--steps", "4", "--size", "136x128", "--precision", "f32")
    assert run("generate", prompt, *arguments, "--seed", "1")[:2] == (0, "ovtensor.png\n")
    picture = Image.open("ovtensor.png")
    assert picture.size == (136, 128)
    first = np.asarray(picture)
    run("generate", prompt, *arguments, "--seed", "1", "--out", "again.png")
    run("generate", prompt, *arguments, "--seed", "2", "--out", "other.png", "--unet", "torch")
    np.testing.assert_array_equal(np.asarray(Image.open("again.png")), first)
    assert not np.array_equal(np.asarray(Image.open("other.png")), first)


def test_generate_keeps_converted_models_if_asked(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OVTENSOR_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ("generate", "a large red circle on a white background", "--steps", "1")
    assert run(*arguments)[0] == 0
    assert not (tmp_path / "cache").exists()
    for _ in range(2):
        assert run(*arguments, "--cache")[0] == 0
        assert len([*tmp_path.glob("cache/entries/*/model.xml")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--size", "100x100"], "multiples of 8 pixels, which 100 is not"),
        (["generate", "x", "--size", "big"], "'big' is not of the form 1024x768"),
        (["generate", "x", "--steps", "0"], "0 is not a positive number"),
        (["generate", "x", "--unet", "onnx"], "--unet='onnx' is no backend"),
        (["generate", "x", "--precision", "f8"], "unknown precision 'f8'"),
        (["generate", "x", "--device", "TPU"], "no device 'TPU' here; it has \"CPU\""),
        (["generate", "x", "--model", "./nowhere"], "there is no folder './nowhere'"),
        (["generate", "x", "--model", ""], "--model: an empty path names nothing"),
        (["generate", "x", "--model", "a b"], "it is no hub id"),
        (["generate", "x", "--model", "x" * 300], "--model: 'xxx"),
        (["generate", "x", "--seed", "1e30"], "1e30 is not a whole number from -2**63"),
        (["generate", "x", "--guidance", "nan"], "nan is not a number from -1000 to 1000"),
        (["demo", "--device", "TPU"], "no device 'TPU' here"),
        (["demo", "--out", "nowhere/grid.png"], "does not exist"),
        (["demo", "--out", "."], "should end in .png"),
        (["demo", "--out", "grid.tiff"], "should end in .png"),
        (["draw"], "invalid choice: 'draw'"),
        ([], "required"),
    ],
)
def test_bad_arguments_are_status_two_and_a_clear_line(run, tmp_path, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    # frameworks may log on standard error when they are imported; ours is one line
    (line,) = (line for line in err.splitlines() if line.startswith("ovtensor"))
    assert message in line
    assert "usage" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_status_one_and_leaves_no_file(run, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    status, _, err = run("generate", "a small red circle", "--steps", "1", "--unet", "torch")
    assert status == 1
    assert err == "ovtensor: [Errno 28] No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_python_dash_m(tmp_path):
    command = [sys.executable, "-m", "ovtensor", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("ovtensor 0.")


def test_a_quiet_run_prints_nothing_but_the_result(tmp_path):
    """Standard output is a pipe here, so no bars: not ours, diffusers' or transformers'."""
    environment = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-m", "ovtensor", "generate", "a small red circle", "--steps", "1"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    assert done.stdout == "ovtensor.png\n"
    assert "%|" not in done.stderr
    assert "it/s" not in done.stderr
