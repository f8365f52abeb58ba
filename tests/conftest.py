"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import os
import re
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
