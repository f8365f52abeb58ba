"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

# Read when the libraries are first imported: no hub, no bars.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
# nncf and openvino.convert_model report to their makers unless they run in CI.
os.environ.setdefault("CI", "true")

# Processes side by side that each take all cores wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def listed(package: str) -> bool:
    """Tell whether the test extra promises a package on this platform."""
    extra = re.search(
        r"^test = \[(.*?)^\]", _PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert extra is not None
    name = package.replace("_", "-")
    wanted = [Requirement(line) for line in re.findall(r'"(.*)"', extra[1])]
    return any(
        one.name.startswith(name) and (one.marker is None or one.marker.evaluate())
        for one in wanted
    )


@pytest.fixture
def need() -> Any:
    """Import a package: missing, it fails the test if it is listed, and else skips it visibly."""

    def need(package: str, module: str | None = None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what foreign packages say while they are imported
            if listed(package):
                return importlib.import_module(module or package)
            return pytest.importorskip(module or package)

    return need


_SUPPORT = Path(__file__).parent / "support"


@pytest.fixture
def build() -> Any:
    """Write the same two files each time."""
    from cache_entries import Builder

    return Builder()


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    """Make an empty cache."""
    from ovtensor.cache import ModelCache

    return ModelCache(tmp_path / "cache")


@pytest.fixture
def python() -> Any:
    """Start Python on some code; what is still running at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(_SUPPORT), os.environ.get("PYTHONPATH", ""))),
            },
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_metadata(monkeypatch: Any) -> Any:
    """Packages that were bundled without their metadata; nothing read before or here stays."""
    from ovtensor.engine import identity

    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    def forget():
        identity._version.cache_clear()
        identity._version_of.cache_clear()

    monkeypatch.setattr(importlib.metadata, "version", absent)
    forget()
    yield
    forget()
