"""The error tree: what each error carries, and that it survives the way between processes."""

from __future__ import annotations

import builtins
import concurrent.futures
import copy
import inspect
import multiprocessing
import pickle
import re

import pytest

import ovtensor
from ovtensor import errors

ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.OvtensorError)
]
FIELDS = {
    "component": "unet",
    "device": "GPU",
    "step": 3,
    "tensor": ovtensor.describe([1.0, 2.0]),
}
each_error = pytest.mark.parametrize("error_type", ERRORS)


def fields(error):
    return {name: getattr(error, name) for name in FIELDS}


def copies_of(error):
    yield from (pickle.loads(pickle.dumps(error, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1))
    yield copy.copy(error)
    yield copy.deepcopy(error)


@each_error
def test_fields_are_kept_by_every_copy(error_type):
    error = error_type("what happened", **FIELDS)
    error.__notes__ = ["and where"]
    for twin in copies_of(error):
        assert type(twin) is error_type
        assert str(twin) == "what happened"
        assert twin.args == ("what happened",)
        assert fields(twin) == FIELDS
        assert twin.__notes__ == ["and where"]


@each_error
def test_what_is_unknown_is_none(error_type):
    with pytest.raises(error_type, match=r"^only words$") as caught:
        raise error_type("only words")
    for error in (caught.value, *copies_of(caught.value)):
        assert fields(error) == dict.fromkeys(FIELDS)
    with pytest.raises(error_type) as caught:
        raise error_type
    assert caught.value.args == ()
    assert fields(caught.value) == dict.fromkeys(FIELDS)


@each_error
def test_a_field_that_does_not_exist_is_refused(error_type):
    with pytest.raises(TypeError, match="compnent"):
        error_type("a typing error", compnent="unet")


def test_a_field_can_be_added_on_the_way_up():
    error = errors.ConversionError("of a tensor", tensor="float32 (2, 3)")
    error.component = "vae"
    assert all(fields(twin) == fields(error) for twin in copies_of(error))


def test_a_missing_extra_keeps_its_name():
    for error in (
        errors.MissingExtraError.of("ovtensor.to_torch", "torch"),
        errors.MissingExtraError("no torch", name="torch", component="unet"),
    ):
        for twin in (error, *copies_of(error)):
            assert twin.name == "torch"
            assert str(twin) == twin.msg
            assert twin.component == error.component


def test_the_tree_in_the_docstring_is_the_tree():
    tree = re.findall(r"^([ |`-]+)([A-Z]\w+)(?: +\((\w+)\))?", errors.__doc__, re.MULTILINE)
    parents = {}  # by how far the name is to the right
    for lead, name, builtin in tree:
        error_type = getattr(errors, name)
        parents[len(lead)] = error_type
        if "-" in lead:
            assert error_type.__bases__[0] is parents[len(lead) - 3], name
        if builtin:
            assert issubclass(error_type, getattr(builtins, builtin)), name
    assert sorted(name for _, name, _ in tree) == sorted(errors.__all__)
    assert {e.__name__ for e in ERRORS} | {"CacheWarning"} == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_each_is_importable_from_the_package(name):
    assert getattr(ovtensor, name) is getattr(errors, name)
    assert name in ovtensor.__all__


def test_errors_come_back_from_another_process():
    sent = [errors.ComponentError("in the worker", **FIELDS), errors.CacheWarning("broken")]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for error in sent:
            with pytest.raises(type(error)) as caught:
                pool.submit(exec, "raise error", {"error": error}).result(timeout=120)
            assert caught.value.args == error.args
            assert vars(caught.value).items() >= vars(error).items()
