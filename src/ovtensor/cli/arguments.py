"""What arguments can be: everything that cannot be right is one line, before any work."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from ovtensor._disk import checked_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Parser", "model", "number", "one_line", "path", "size", "text"]

_LARGEST = 16_000  # pixels; WebP has 16383 at most


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for those who ask with ``--help``."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}\n")


def one_line(message: str) -> str:
    """The message without line breaks, and without what moves a terminal's cursor."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(message.split())
    )


def number(
    kind: type[int] | type[float], least: float, most: float, what: str
) -> Callable[[str], float]:
    """A number from ``least`` to ``most``, which ``what`` says for people."""

    def convert(given: str) -> float:
        try:
            value = kind(given)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:  # NaN is not either
            raise argparse.ArgumentTypeError(f"{_shown(given)} is not {what}")
        return value

    return convert


def size(given: str) -> tuple[int, int]:
    """Width and height in pixels, as ``1024x768`` or ``1024`` for both."""
    width, _, height = given.lower().partition("x")
    try:
        sides = int(width), int(height or width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(given)!r} is not of the form 1024x768") from None
    for side in sides:
        if side < 8 or side % 8:
            raise argparse.ArgumentTypeError(
                f"width and height are multiples of 8 pixels, which {_shown(str(side))} is not"
            )
        if side > _LARGEST:
            raise argparse.ArgumentTypeError(
                f"width and height are {_LARGEST} pixels at most, not {_shown(str(side))}"
            )
    return sides


def text(given: str) -> str:
    """Text that every library takes: what UTF-8 can say, without the character of value 0."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"it is no text in UTF-8: {error.reason}") from None
    if "\0" in given:
        raise argparse.ArgumentTypeError("it has a character of value 0")
    return given


def path(given: str) -> Path:
    """A path that a file can have, with ``~`` expanded."""
    if not given:
        raise argparse.ArgumentTypeError("an empty path names nothing")
    try:
        return checked_path(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{_shown(given)!r}: {error}") from None


def model(given: str) -> str:
    """A folder or hub id, as it was given."""
    path(given)
    return text(given)


def _shown(given: str) -> str:
    return given if len(given) <= 60 else f"{given[:57]}..."
