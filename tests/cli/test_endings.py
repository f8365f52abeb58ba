"""How a run ends: interrupted wherever it is, with nobody reading, or with names of odd bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ovtensor import cli

posix = pytest.mark.skipif(os.name == "nt", reason="signals and descriptors as POSIX has them")


def run(
    *arguments: str | bytes, code: str = "", shell: str = "", cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command, or what stands before it, in a process of its own."""
    start = f"{code}\nimport sys\nfrom ovtensor.cli import main\nsys.exit(main())"
    command = [sys.executable, "-c", start, *arguments]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=300,
    )


# Interrupts

INTERRUPT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@posix
@pytest.mark.parametrize(
    "module",
    [
        "ovtensor.errors",
        "argparse",
        "ovtensor.cli.cache",
        "ovtensor.pipelines",
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("openvino", marks=pytest.mark.slow),
        pytest.param("diffusers.utils.logging", marks=pytest.mark.slow),
        pytest.param("transformers.utils.logging", marks=pytest.mark.slow),
        pytest.param("diffusers.models.unets.unet_2d_condition", marks=pytest.mark.slow),
        pytest.param("transformers.models.clip.modeling_clip", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_while_something_is_imported(module, tmp_path):
    arguments = ("generate", "x", "--steps", "1")
    done = run(*arguments, code=INTERRUPT.format(name=module), cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ovtensor")]
    assert (done.returncode, done.stdout, lines) == (130, "", ["ovtensor: interrupted"])
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.slow
@pytest.mark.parametrize("place", ["openvino.Core.compile_model", "PIL.Image.Image.save"])
def test_an_interrupt_while_it_works(place, tmp_path):
    owner, _, name = place.rpartition(".")
    code = f"""
import os, signal, {owner.rpartition(".")[0]}
works = {place}
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return works(*args, **kwargs)
{owner}.{name} = interrupted
"""
    done = run("generate", "x", "--steps", "1", code=code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "ovtensor: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_this_process(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["cache", "list"]) == 130
    assert capsys.readouterr() == ("", "ovtensor: interrupted\n")


@posix
def test_an_interrupt_that_becomes_another_error(tmp_path):
    """As a half-imported module makes it."""
    code = """
import os, signal, ovtensor.cli.cache
def swallowed(*args):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise AttributeError("partially initialized module") from None
ovtensor.cli.cache.add_commands = swallowed
"""
    done = run("cache", "where", code=code)
    assert (done.returncode, done.stderr) == (130, "ovtensor: interrupted\n")


@posix
def test_an_interrupt_of_code_in_a_string(tmp_path):
    (tmp_path / "command.py").write_text("""
import os, signal, sys
import ovtensor.cli.cache
def interrupted(*args):
    exec("os.kill(os.getpid(), signal.SIGINT)")
ovtensor.cli.cache.add_commands = interrupted
sys.exit(ovtensor.cli.main())
""")
    command = [sys.executable, "-m", "command"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "ovtensor: interrupted\n")


@posix
def test_interrupts_that_are_ignored_stay_so(tmp_path):
    code = INTERRUPT.format(name="ovtensor.cli.cache") + "signal.signal(2, signal.SIG_IGN)"
    done = run("cache", "where", code=code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["--version"]) == 0
    assert signal.getsignal(signal.SIGINT) is before


# Pipes and descriptors


@posix
@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("cache", "where"), ("cache", "list", "--json")]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_the_output(arguments, unbuffered, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ovtensor", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            env={**os.environ, "OVTENSOR_CACHE_DIR": str(tmp_path), "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writer)
    # Without a buffer argparse takes no notice, and help that nobody reads has not failed either.
    status = 0 if unbuffered and arguments[0].startswith("--") else 1
    assert (done.returncode, done.stderr) == (status, b"")


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_descriptors_that_are_closed(closed, tmp_path):
    environment = {"OVTENSOR_CACHE_DIR": str(tmp_path / "cache")}
    done = run("cache", "where", shell=closed, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("cache", "list", "--nonsense", shell=closed, **environment)
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(unbuffered):
    done = run("cache", "where", shell="> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "ovtensor: [Errno 28] No space left on device\n")


# Names


@posix
def test_names_that_are_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9\n"
    done = run("cache", "where", "--path", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\udce9" in done.stdout
    done = run("cache", "prune", "--max-size", b"\xff")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    done = run("generate", b"\xff", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "UTF-8" in done.stderr


def test_a_terminal_that_shows_ascii_alone(tmp_path):
    done = run("cache", "where", "--path", str(tmp_path / "é"), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\\xe9\n")


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("cache", "--help")])
def test_help_loads_no_framework(arguments):
    code = "import atexit, sys; atexit.register(lambda: print(sorted(HEAVY & set(sys.modules))))"
    heavy = "HEAVY = {'numpy', 'torch', 'openvino', 'diffusers', 'transformers', 'PIL'}"
    done = run(*arguments, code=f"{heavy}\n{code}")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_docstrings():
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "ovtensor", "--help"], capture_output=True, check=False
    )
    assert done.returncode == 0
