"""Run the tests with the oldest or the newest releases that ``pyproject.toml`` allows.

    pip install uv
    python tools/test_releases.py oldest --python 3.10
    python tools/test_releases.py newest --python 3.13 --only-resolve

Options that are not its own go to ``uv pip``. A plain torch from the package index brings several
GB of CUDA on Linux; ``--torch-backend cpu`` takes PyTorch's own build for CPUs. What uv is told by
its environment (``UV_FIND_LINKS``, ``UV_INDEX``) holds too.

Only what the extras of ``EXTRAS`` bring is installed, so a test of another package fails for that
alone. What other packages warn of is none of ours there, and no error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("all", "lora", "int8")
RUNNERS = ("coverage", "hypothesis", "pytest", "pytest-randomly", "pytest-timeout", "pytest-xdist")
RUNNERS += ("ml-dtypes", "scipy", "sybil")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}


def run(*command: str | Path) -> None:
    """Show a command and run it in the repository's root; end with its status if it fails."""
    words = [str(word) for word in command]
    print("+", shlex.join(words), flush=True)
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Resolve, install, test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=RESOLUTIONS)
    parser.add_argument("--python", default="3.10", help="version or path of the interpreter")
    parser.add_argument("--only-resolve", action="store_true", help="show the releases, and stop")
    parser.add_argument("--tests", default="", help="options of pytest, such as \"-m 'not slow'\"")
    parser.add_argument("--folder", type=Path, help="of the virtual environment; made anew")
    options, rest = parser.parse_known_args()
    folder = options.folder or ROOT / f".venv-{options.which}"
    releases = folder / "releases.txt"

    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--clear", "--python", options.python, folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(
        *(*uv, "pip", "compile", "--quiet", "--no-header", "--python", python),
        *("--resolution", RESOLUTIONS[options.which], "pyproject.toml", "--output-file", releases),
        *(word for extra in EXTRAS for word in ("--extra", extra)),
        *rest,
    )
    print(releases.read_text(encoding="utf-8"))
    if options.only_resolve:
        return
    install = (*uv, "pip", "install", "--quiet", "--python", python, *rest)
    run(*install, "--requirement", releases, "--constraint", releases, *RUNNERS)
    run(*install, "--no-deps", ROOT)
    run(
        *(python, "-m", "pytest", "-n", "2", "-o", "filterwarnings=default"),
        *shlex.split(options.tests),
    )


if __name__ == "__main__":
    main()
