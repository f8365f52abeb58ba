"""The reversible swap, on owners of our own."""

from __future__ import annotations

import types
from unittest import mock

import pytest

from ovtensor.diffusers._swaps import ABSENT, Patch, Swap
from ovtensor.errors import PatchConflictError


class Base:
    @staticmethod
    def shape():
        return "base"

    def colour(self):
        return "base"


def make_owner():
    class Owner(Base):
        @staticmethod
        def shape():
            return "owner"

    return Owner


def entries(owner):
    return dict(vars(owner))


def test_raw_entries_come_back_exactly():
    owner = make_owner()
    before = entries(owner)
    patch = Patch(
        [
            Swap(owner, "shape", staticmethod(lambda: "new")),
            Swap(owner, "colour", lambda self: "new"),
        ]
    )
    patch.apply()
    assert (owner.shape(), owner().shape(), owner().colour()) == ("new", "new", "new")
    assert patch.applied
    patch.undo()
    assert entries(owner) == before
    assert isinstance(vars(owner)["shape"], staticmethod)
    assert "colour" not in vars(owner), "an inherited entry was pinned"
    assert not patch.applied


def test_the_code_of_a_function_can_be_swapped_wherever_it_is_bound():
    def original(x):
        return x + 1

    bound_by_name = original
    code = original.__code__

    def replacement(x):
        return x * 10

    patch = Patch([Swap(original, "__code__", replacement.__code__)])
    patch.apply()
    assert bound_by_name(2) == 20
    patch.undo()
    assert original.__code__ is code
    assert bound_by_name(2) == 3


def test_apply_and_undo_twice_change_nothing():
    owner = make_owner()
    before = entries(owner)
    patch = Patch([Swap(owner, "shape", staticmethod(lambda: "new"))])
    patch.apply()
    patch.apply()
    patch.undo()
    assert entries(owner) == before
    patch.undo()
    assert entries(owner) == before


def test_a_later_patch_is_not_undone_and_nothing_is_half_undone():
    owner = make_owner()
    before = entries(owner)
    patch = Patch([Swap(owner, "colour", lambda self: "new"), Swap(owner, "shape", "new")])
    patch.apply()
    ours = entries(owner)
    owner.shape = "theirs"
    with pytest.raises(PatchConflictError, match=r"Owner\.shape was replaced by somebody else"):
        patch.undo()
    assert vars(owner)["shape"] == "theirs"
    assert vars(owner)["colour"] is ours["colour"]
    assert patch.applied
    owner.shape = "new"
    patch.undo()
    assert entries(owner) == before


@pytest.mark.parametrize(("name", "own"), [("shape", "shape"), ("colour", ABSENT)])
def test_what_an_earlier_patch_has_put_back_already_stays(name, own):
    owner = make_owner()
    before = entries(owner)
    earlier = mock.patch.object(owner, name)
    earlier.start()
    patch = Patch([Swap(owner, name, "new", before.get(own, ABSENT))])
    patch.apply()
    earlier.stop()
    patch.undo()
    assert entries(owner) == before
    assert not patch.applied


def test_our_function_in_another_wrapper_is_still_ours():
    owner = make_owner()
    before = entries(owner)
    patch = Patch([Swap(owner, "shape", staticmethod(lambda: "new"))])
    patch.apply()
    saved = owner.shape
    owner.shape = staticmethod(lambda: "theirs")
    owner.shape = staticmethod(saved)
    patch.undo()
    assert entries(owner) == before


def test_a_swap_that_fails_takes_back_those_before_it():
    owner = make_owner()
    before = entries(owner)
    patch = Patch([Swap(owner, "shape", "new"), Swap(int, "real", "immutable")])
    with pytest.raises(TypeError):
        patch.apply()
    assert entries(owner) == before
    assert not patch.applied


def test_a_module_can_be_the_owner():
    module = types.ModuleType("some_module")
    module.value = 1
    patch = Patch([Swap(module, "value", 2), Swap(module, "other", 3)])
    patch.apply()
    assert (module.value, module.other) == (2, 3)
    patch.undo()
    assert module.value == 1
    assert not hasattr(module, "other")
