"""The command ``ovtensor``: its sub-commands, and how a run of it ends.

Exit status 0 for success, 2 with one line on standard error for arguments that cannot be right,
1 with one line for a run that failed, and 130 for one that was interrupted. Nothing is said where
nobody reads standard output any more; the status is 1 then.

Whatever takes time is imported while `main` runs, so that an interrupt is heard meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    import types
    from collections.abc import Iterator, Sequence

# modules in this folder, each with sub-commands that its `add_commands` adds
_COMMANDS = ("drawing", "cache")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    with _interrupts() as heard:
        try:
            status, message = _run(argv)
        except BaseException as error:
            if not heard and not isinstance(error, KeyboardInterrupt):
                raise
            status, message = 130, "interrupted"
        if status and heard:
            status, message = 130, "interrupted"
        if message:
            _tell(message)
        if status == 130:
            # Where code from a string was interrupted, as extensions run some, `python -m` ends by
            # the signal, which has another number for who is no shell. The last such code counts.
            exec("")
        return status


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note interrupts: an import that one falls into can make any other error of it, or none."""
    import signal
    import threading

    heard: list[int] = []

    def hear(number: int, frame: types.FrameType | None) -> None:
        heard.append(number)
        signal.default_int_handler(number, frame)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield heard  # as under nohup, where interrupts are ignored
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(argv: Sequence[str] | None) -> tuple[int, str]:
    """Run the command line; gives its exit status and what to say about it."""
    from ovtensor.errors import InputError, OvtensorError

    try:
        if hasattr(sys.stdout, "reconfigure"):  # what a terminal cannot show is no reason to fail
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            args = _parser().parse_args(argv)
        except SystemExit as stop:  # after --help, and after a line about what cannot be right
            status = int(stop.code or 0)
        else:
            status = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 1, ""
    except InputError as error:
        return 2, str(error)
    except (OvtensorError, OSError) as error:
        _drop_output()
        return 1, str(error)
    except (MemoryError, RuntimeError) as error:  # as torch raises them for too large a picture
        return 1, f"{type(error).__name__}: {error}"
    return status, ""


def _parser() -> argparse.ArgumentParser:
    import ovtensor
    from ovtensor.cli.arguments import Parser

    parser = Parser(
        prog="ovtensor",
        description="Pictures from diffusion models on OpenVINO, and the cache of their models.",
        epilog="Exit status: 0 when done, 1 when it failed, 2 for arguments that cannot be right, "
        "130 when interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"ovtensor {ovtensor.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in _COMMANDS:
        importlib.import_module(f"{__name__}.{name}").add_commands(commands)
    return parser


def _tell(message: str) -> None:
    """Say one line on standard error, if somebody reads that."""
    from ovtensor.cli.arguments import one_line

    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"ovtensor: {one_line(message)}", file=sys.stderr)


def _drop_output() -> None:
    """Give up what could not be written, or Python tries once more at its end and says so."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
