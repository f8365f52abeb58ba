"""A plan is made once, cannot change, and is the key of what was made by it."""

from __future__ import annotations

import dataclasses
import json

import psutil
import pytest
import torch

from engine_graphs import CONVOLUTIONAL, EVERY_STEP, plan_of
from ovtensor import Backend
from ovtensor.engine import ConversionPlan, MemoryPolicy
from ovtensor.engine.graph import NO_TRAITS
from ovtensor.engine.passes import PASSES
from ovtensor.engine.runners import ActivationMemory
from ovtensor.errors import InputError

F32 = Backend("openvino", precision="f32", static_shapes=False)
INT8 = dataclasses.replace(F32, weights="int8")
BF16 = dataclasses.replace(F32, precision="bf16")
AUTO = dataclasses.replace(F32, device="AUTO:CPU")
F16_WEIGHTS = {"stored": torch.float16, "verify": False}

# Another value of each field, and the part of the key that it changes: what is written, what is
# compiled of that, or both. A new field has to be told here.
CONVERSION, COMPILATION = "conversion", "compilation"
FIELDS = {
    "graph": ("another", {CONVERSION, COMPILATION}),
    "device": ("GPU", {COMPILATION}),
    "precision": ("bf16", {CONVERSION}),
    "compression": ("int8", {CONVERSION}),
    "stored_as": ("float16", {CONVERSION}),
    "passes": (("drop_ones",), {CONVERSION}),
    "verify": (True, {CONVERSION}),
    # What is compiled for sizes has these themselves in its key, as `test_modules.py` shows.
    "shapes": ("static", set()),
    "properties": ((("NUM_STREAMS", "1"),), {COMPILATION}),
    "inputs": ((("x", [1, 3]),), {CONVERSION}),
}
# Where a pass applies, if not everywhere.
APPLIES = {
    "upsample": (F32, CONVOLUTIONAL, {}),
    "int8": (INT8, NO_TRAITS, {}),
    "group_norms": (F32, CONVOLUTIONAL, {}),
    "sixteen_bit": (F32, NO_TRAITS, F16_WEIGHTS),
    "startup_fallback": (AUTO, NO_TRAITS, {}),
}
NAMES = [one.name for one in PASSES]


@pytest.fixture(autouse=True)
def _nothing_switched_off(monkeypatch):
    monkeypatch.delenv("OVTENSOR_DISABLE_PASSES", raising=False)
    monkeypatch.delenv("OVTENSOR_MEMORY_LIMIT", raising=False)


def keys(plan: ConversionPlan) -> dict[str, str]:
    """Both parts of the key, as they are hashed."""
    told = {CONVERSION: plan.conversion_fields(), COMPILATION: plan.compilation_fields()}
    return {name: json.dumps(fields, sort_keys=True) for name, fields in told.items()}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ConversionPlan)])
def test_every_field_changes_the_key(name):
    plan = plan_of(F32)
    value, where = FIELDS[name]
    assert getattr(plan, name) != value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(plan, name, value)
    other = dataclasses.replace(plan, **{name: value})
    assert other != plan
    before, after = keys(plan), keys(other)
    assert {part for part in before if before[part] != after[part]} == where


def test_equal_questions_have_equal_plans():
    one, two = (plan_of(BF16, CONVOLUTIONAL, inputs=(("x", (1, 2)),)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, plan_of(F32), dataclasses.replace(one, verify=not one.verify)}) == 3
    assert keys(one) == keys(two)


def test_the_key_is_what_json_can_say():
    plan = plan_of(
        dataclasses.replace(F32, properties={"NUM_STREAMS": 2}), inputs=(("x", (1, -1)),)
    )
    for fields in (plan.conversion_fields(), plan.compilation_fields()):
        assert json.loads(json.dumps(fields, allow_nan=False)).keys() == fields.keys()


@pytest.mark.parametrize(
    ("backend", "verify", "compared"),
    [
        (F32, None, False),
        (BF16, None, True),
        (INT8, None, True),
        (F32, True, True),
        (BF16, False, False),
    ],
)
def test_what_rounds_is_compared_with_torch(backend, verify, compared):
    assert plan_of(backend, verify=verify).verify is compared


@pytest.mark.parametrize(
    ("backend", "given", "words"),
    [
        (F32, {}, ["net: f32 on CPU", "dynamic shapes", "mapped float32 weights", "not compared"]),
        (BF16, {"stored": torch.float16}, ["bf16 on CPU", "mapped float16 weights"]),
        (F32, F16_WEIGHTS, ["f32", "mapped float16 weights", "sixteen_bit"]),
        (INT8, {}, ["f32 on CPU", "constant int8 weights", "compared with torch", "int8"]),
        (
            Backend("openvino", "GPU", precision="f16", static_shapes=True),
            {},
            ["f16 on GPU", "static shapes", "constant float16 weights"],
        ),
        (AUTO, {}, ["AUTO:CPU", "startup_fallback"]),
    ],
    ids=lambda value: f"{value.device} {value.precision}" if isinstance(value, Backend) else "",
)
def test_a_line_says_what_was_decided(backend, given, words):
    plan = plan_of(backend, **given)
    line = str(plan)
    assert len(line.splitlines()) == 1
    for word in (*words, *plan.passes):
        assert word in line
    assert ("not compared with torch" in line) is not plan.verify


def test_a_line_says_that_nothing_is_done(monkeypatch):
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", ",".join(NAMES))
    assert str(plan_of(F32)).endswith("passes: none")


def test_passes_have_names_of_their_own_and_say_what_they_are_for():
    assert len(set(NAMES)) == len(NAMES)
    for one in PASSES:
        assert one.__doc__, one.name
        assert one.releases, one.name
        assert one.upstream, one.name


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_can_be_switched_off(name, monkeypatch):
    backend, traits, given = APPLIES.get(name, (F32, NO_TRAITS, {}))
    passes = plan_of(backend, traits, **given).passes
    assert name in passes
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", name)
    off = plan_of(backend, traits, **given)
    assert off.passes == tuple(one for one in passes if one != name)


def test_what_is_switched_off_is_not_planned(monkeypatch):
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", "int8, sixteen_bit")
    assert plan_of(INT8).compression is None
    assert "int8" not in str(plan_of(INT8))
    plan = plan_of(F32, **F16_WEIGHTS)
    assert plan.stored_as is None
    assert plan.load_dtype == torch.float32
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", "startup_fallback")
    assert "ENABLE_STARTUP_FALLBACK" not in dict(plan_of(AUTO).properties)


def test_several_passes_are_switched_off_with_commas(monkeypatch):
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", " gated ,short_keys,, drop_ones,")
    assert plan_of(F32).passes == ("plain_attention", "mapped_weights")
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", "")
    assert set(plan_of(F32).passes) == {
        "plain_attention",
        "gated",
        "drop_ones",
        "mapped_weights",
        "short_keys",
    }


def test_a_pass_that_there_is_not(monkeypatch):
    monkeypatch.setenv("OVTENSOR_DISABLE_PASSES", "gated,groupnorms")
    with pytest.raises(InputError, match=r"names groupnorms; the passes are .*group_norms"):
        plan_of(F32)


@pytest.mark.parametrize("limit", [None, 10**6])
def test_each_part_of_the_memory_policy_acts(limit, monkeypatch):
    if limit is None:
        monkeypatch.setenv("OVTENSOR_MEMORY_LIMIT", str(10**6))
    policy = MemoryPolicy(limit, map_weights=0.5, file_weights=0.25)
    assert policy.maps_weights(500_001)
    assert not policy.maps_weights(500_000)
    assert policy.files_weights(250_001)
    assert not policy.files_weights(250_000)
    resident = psutil.Process().memory_info().rss
    assert MemoryPolicy(2 * resident, free_activations=0.25).is_scarce()
    assert not MemoryPolicy(2 * resident, free_activations=0.75).is_scarce()


def test_the_plan_asks_the_policy():
    for part, mapped in ((0.0, True), (0.003, True), (0.005, False), (1.0, False)):
        policy = MemoryPolicy(10**6, map_weights=part)
        plan = plan_of(F32, EVERY_STEP, size=1000, memory=policy)  # 4000 bytes
        assert ("mapped_weights" in plan.passes) is mapped


class Model:
    """In place of a compiled model, of which only this is asked."""

    def __init__(self) -> None:
        self.freed = 0

    def free_activations(self) -> None:
        self.freed += 1


@pytest.mark.parametrize("scarce", [True, False])
def test_activation_memory_goes_where_the_policy_says_so(scarce):
    policy = MemoryPolicy(free_activations=0.0 if scarce else 1000.0)
    memory, first, second = ActivationMemory(policy), Model(), Model()
    for model in (first, first, second):
        memory.take(model, NO_TRAITS)
    assert (first.freed, second.freed) == (int(scarce), 0)
    memory.end()
    memory.end()
    assert (first.freed, second.freed) == (int(scarce), int(scarce))
