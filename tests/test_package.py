"""What importing the package loads, how long it takes, and what it says about missing extras."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ovtensor

HEAVY = ("torch", "openvino", "diffusers", "transformers", "PIL")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def loaded_after(statement: str) -> set[str]:
    listing = f"print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    return set(json.loads(python(f"import json, sys\n{statement}\n{listing}")))


def test_importing_loads_no_framework():
    assert loaded_after("import ovtensor") == set()
    assert loaded_after("import ovtensor; ovtensor.tiny_sdxl_path()") == set()
    assert loaded_after("import ovtensor; ovtensor.to_numpy([1.0])") == set()
    assert loaded_after("import ovtensor.cli") == set()


def test_the_import_check_sees_a_framework():
    assert "torch" in loaded_after("import ovtensor, torch; ovtensor.to_numpy(torch.ones(1))")


@pytest.mark.parametrize("name", ovtensor.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ovtensor, name) is not None
    assert name in dir(ovtensor)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'to_jax'"):
        ovtensor.to_jax  # noqa: B018


@pytest.mark.parametrize("package", ["torch", "openvino", "diffusers"])
def test_a_missing_extra_names_the_command_that_installs_it(package):
    code = f"""
import sys
sys.modules[{package!r}] = None  # importing it raises ModuleNotFoundError
import ovtensor
try:
    ovtensor.sdxl_pipeline
except ImportError as error:
    print(type(error).__qualname__, error.name, error)
"""
    printed = python(code)
    assert printed.startswith(f"MissingExtraError {package} ovtensor.sdxl_pipeline needs {package}")
    assert 'pip install "ovtensor[all]"' in printed


def test_every_command_in_the_measurements_names_tests_that_exist():
    root = Path(__file__).parents[1]
    text = (root / "docs" / "measurements.md").read_text(encoding="utf-8")
    tests = list((root / "tests").rglob("test_*.py"))
    there = {path.stem for path in tests}
    for path in tests:
        there.update(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"-k (test_\w+)", text))
    assert named
    assert named <= there
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (root / script).is_file()
