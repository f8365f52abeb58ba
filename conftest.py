"""Runs the examples in the README and the documentation."""

import pytest
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"]
).pytest()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the examples of a page back their order, in which a reader runs them."""
    places = [index for index, item in enumerate(items) if isinstance(item, SybilItem)]
    examples = sorted(
        (items[index] for index in places), key=lambda item: (item.path, item.example.line)
    )
    for index, example in zip(places, examples, strict=True):
        items[index] = example
