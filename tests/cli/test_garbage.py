"""The command, and it alone, keeps Python from looking for garbage during its own imports."""

from __future__ import annotations

import gc
import weakref

import pytest

from ovtensor.cli.drawing import _uncollected as uncollected


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.ring = self


@pytest.fixture(autouse=True)
def _nothing_frozen_or_pending():
    gc.unfreeze()
    gc.collect()


def test_what_is_made_meanwhile_is_not_looked_through_afterwards():
    looked: list[str] = []

    def look(phase, _):
        looked.append(phase)

    gc.callbacks.append(look)
    try:
        with uncollected():
            made = [[number] for number in range(100_000)]
        count = len(looked)
    finally:
        gc.callbacks.remove(look)
    assert count == 0
    young = {id(one) for one in gc.get_objects(generation=0)}
    assert not young.intersection(map(id, made))


def test_garbage_that_is_made_meanwhile_is_found_later():
    with uncollected():
        gone = weakref.ref(Ring())
    gc.collect()
    assert gone() is None


def test_what_somebody_froze_stays_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with uncollected():
            gone = weakref.ref(Ring())
        assert gc.get_freeze_count() > frozen // 2
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_as_it_was(enabled):
    @uncollected()
    def fail():
        assert not gc.isenabled()
        raise KeyError

    if not enabled:
        gc.disable()
    try:
        with pytest.raises(KeyError):
            fail()
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


WATCH = """
import gc, sys
told = []

def watched(name):
    works = getattr(gc, name)

    def call(*args):
        caller = sys._getframe(1)
        while caller.f_globals["__name__"] == "contextlib":
            caller = caller.f_back
        if caller.f_globals["__name__"].startswith("ovtensor"):
            told.append((name, caller.f_globals["__name__"]))
        return works(*args)

    setattr(gc, name, call)

for name in ("disable", "enable", "freeze", "unfreeze", "set_threshold"):
    watched(name)

import ovtensor
for name in ovtensor.__all__:
    getattr(ovtensor, name)
with ovtensor.pipeline(ovtensor.tiny_sdxl_path(), cache=sys.argv[1], progress=False) as pipe:
    pipe("a small red circle", num_inference_steps=1)
ovtensor.ModelCache(sys.argv[1]).clear()
print(told, gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.slow
def test_the_library_leaves_it_alone(python, tmp_path):
    out, err = python(WATCH, tmp_path / "cache").communicate()
    assert out == "[] True 0\n", err
