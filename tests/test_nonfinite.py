"""The one policy for NaN and infinity, which sessions, processors and the patch share."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from ovtensor import nonfinite
from ovtensor.errors import InputError, NonFiniteError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(nonfinite.ENVIRONMENT, raising=False)
    yield
    nonfinite.set_process_policy(None)


def test_the_first_word_counts(monkeypatch):
    assert nonfinite.policy_in_force() == "raise"
    assert nonfinite.policy_in_force(None, None) == "raise"
    monkeypatch.setenv(nonfinite.ENVIRONMENT, "ignore")
    assert nonfinite.policy_in_force(None) == "ignore"
    nonfinite.set_process_policy("warn")
    assert nonfinite.policy_in_force(None) == "warn"
    assert nonfinite.policy_in_force(None, "raise") == "raise"
    assert nonfinite.policy_in_force("ignore", "raise") == "ignore"
    nonfinite.set_process_policy(None)
    assert nonfinite.policy_in_force() == "ignore"


@pytest.mark.parametrize("word", ["rasie", "", "RAISE", 1, True])
def test_another_word_is_refused(word, monkeypatch):
    with pytest.raises(InputError, match="must be 'raise', 'warn' or 'ignore'"):
        nonfinite.checked_policy(word)
    with pytest.raises(InputError, match="nonfinite is"):
        nonfinite.policy_in_force(word)
    if word and isinstance(word, str):
        monkeypatch.setenv(nonfinite.ENVIRONMENT, word)
        with pytest.raises(InputError, match=nonfinite.ENVIRONMENT):
            nonfinite.policy_in_force()


def test_raising_keeps_the_fields():
    with pytest.raises(NonFiniteError, match=r"^2 latents$") as caught:
        nonfinite.act("raise", "2 latents", component="unet", step=4, device="GPU", tensor="f16")
    error = caught.value
    assert (error.component, error.step, error.device, error.tensor) == ("unet", 4, "GPU", "f16")


def test_warning_points_where_it_is_told():
    def checks(stacklevel):
        nonfinite.act("warn", "2 latents", stacklevel=stacklevel, component="unet")

    here = test_warning_points_where_it_is_told.__code__.co_firstlineno
    for stacklevel, line in [(1, here + 2), (2, here + 7)]:
        with pytest.warns(RuntimeWarning, match=r"^2 latents$") as caught:
            checks(stacklevel)
        assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_ignoring_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nonfinite.act("ignore", "2 latents", component="unet")


def test_it_loads_no_framework():
    code = "import sys, ovtensor.nonfinite; print({'torch', 'diffusers', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_library_has_one_quiet_logger():
    code = "import ovtensor, logging; logging.getLogger('ovtensor.x').warning('not shown')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
