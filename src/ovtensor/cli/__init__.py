"""The command ``ovtensor``: its sub-commands, and how a run of it ends.

Exit status 0 for success, 2 with one line on standard error for arguments that cannot be right,
1 with one line for a run that failed, and 130 for one that was interrupted. Nothing is said where
nobody reads standard output any more; the status is 1 then, but for help and version.

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
    from collections.abc import Sequence

# modules in this folder, each with sub-commands that its `add_commands` adds
_COMMANDS = ("drawing", "cache")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130


def _run(argv: Sequence[str] | None) -> int:
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
    except InputError as error:
        _tell(str(error))
        return 2
    except (OvtensorError, OSError) as error:
        _drop_output()
        _tell(str(error))
    except (MemoryError, RuntimeError) as error:  # as torch raises them for too large a picture
        _tell(f"{type(error).__name__}: {error}")
    else:
        return status
    return 1


def _parser() -> argparse.ArgumentParser:
    import ovtensor
    from ovtensor.cli.arguments import Parser

    parser = Parser(
        prog="ovtensor",
        description="Pictures from diffusion models on OpenVINO, and the cache of their models.",
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
