"""Fields that differ have keys that differ, and fields that cannot be told apart are refused."""

from __future__ import annotations

import enum
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovtensor.cache.manifest import key_of
from ovtensor.errors import InputError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def exactly(value):
    """A form that is equal for two values only where both type and value are."""
    if isinstance(value, dict):
        return "dict", tuple(sorted((key, exactly(entry)) for key, entry in value.items()))
    if isinstance(value, list):
        return "list", tuple(exactly(entry) for entry in value)
    return type(value).__name__, repr(value)


@given(json_values, json_values)
def test_keys_are_equal_exactly_where_the_fields_are(one, other):
    assert (key_of({"x": one}) == key_of({"x": other})) == (exactly(one) == exactly(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale": 0.8}, {"scale": 0.81}),
        ({"scale": 0.1}, {"scale": math.nextafter(0.1, 1)}),
        ({"scale": 1}, {"scale": 1.0}),
        ({"scale": 1}, {"scale": True}),
        ({"scale": "1"}, {"scale": 1}),
        ({"lora": None}, {}),
        ({"lora": None}, {"lora": "null"}),
        ({"loras": ["a", "b"]}, {"loras": ["b", "a"]}),
        ({"loras": ["a,b"]}, {"loras": ["a", "b"]}),
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"name": "\u00e9"}, {"name": "e\u0301"}),
        ({"name": 'a", "b": "c'}, {"name": "a", "b": "c"}),
    ],
)
def test_fields_that_look_alike(one, other):
    assert key_of(one) != key_of(other)


def test_order_and_kind_of_container_do_not_matter():
    assert key_of({"a": [1, 2], "b": {"c": 1, "d": 2}}) == key_of(
        {"b": {"d": 2, "c": 1}, "a": (1, 2)}
    )


class Colour(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({1: "x"}, "the key 1 in fields is no string"),
        ({"a": {True: 1}}, r"the key True in fields\['a'\]"),
        ({"a": [math.nan]}, r"fields\['a'\]\[0\] is nan"),
        ({"a": math.inf}, "is inf"),
        ({"a": np.float32(0.5)}, r"fields\['a'\] is a float32"),
        ({"a": Colour.RED}, "is a Colour"),
        ({"a": b"x"}, "is a bytes"),
        ({"a": {1, 2}}, "is a set"),
    ],
)
def test_what_json_cannot_say_exactly_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        key_of(fields)
