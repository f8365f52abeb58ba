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
