"""The commands ``ovtensor cache list | verify | prune | clear | where``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from typing import TYPE_CHECKING, Any

from ovtensor.cli.arguments import Parser, one_line, path

if TYPE_CHECKING:
    from ovtensor.cache import CachedModel, ModelCache


def add_commands(commands: Any) -> None:
    """Add ``cache`` to a parser's sub-commands."""
    cache = commands.add_parser(
        "cache",
        help="look at and look after the cache of models",
        description="Look at and look after the cache of converted and compiled models.",
    )
    actions = cache.add_subparsers(required=True, metavar="ACTION")
    common = Parser(add_help=False)
    common.add_argument(
        "--path",
        type=path,
        help="the cache's folder (default: $OVTENSOR_CACHE_DIR or the platform's)",
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    for name, run, text in (
        ("list", _list, "list the entries: what each is, its size and age"),
        ("verify", _verify, "compare every byte of every entry with its checksums"),
        ("prune", _prune, "remove the least recently used entries beyond a size"),
        ("clear", _clear, "remove every entry that is not in use"),
        ("where", _where, "print the cache's folder"),
    ):
        action = actions.add_parser(name, parents=[common], help=text, description=f"{text}.")
        action.set_defaults(run=_with_cache(run))
        if name == "prune":
            action.add_argument(
                "--max-size", type=_size, required=True, help="such as 10GB, 500MiB or 0"
            )


def _with_cache(action: Any) -> Any:
    def run(args: argparse.Namespace) -> int:
        import ovtensor

        return int(action(ovtensor.ModelCache(args.path), args))

    return run


def _list(cache: ModelCache, args: argparse.Namespace) -> int:
    entries = cache.entries()
    if args.json:
        _print_json(cache, entries=[_as_dict(entry) for entry in entries])
        return 0
    _print_table(entries)
    print(_total(entries, f"in {cache.path}"))
    return 0


def _verify(cache: ModelCache, args: argparse.Namespace) -> int:
    problems = cache.verify()
    if args.json:
        _print_json(cache, problems=problems)
    else:
        for key, problem in problems.items():
            print(f"{key}  {one_line(problem)}")
        print(f"{len(problems)} broken, to be made anew when next needed" if problems else "sound")
    return 1 if problems else 0


def _prune(cache: ModelCache, args: argparse.Namespace) -> int:
    return _removed(cache, cache.prune(args.max_size), args)


def _clear(cache: ModelCache, args: argparse.Namespace) -> int:
    return _removed(cache, cache.clear(), args)


def _where(cache: ModelCache, args: argparse.Namespace) -> int:
    if args.json:
        _print_json(cache)
    else:
        print(cache.path)
    return 0


def _removed(cache: ModelCache, removed: list[CachedModel], args: argparse.Namespace) -> int:
    left = cache.entries()
    if args.json:
        _print_json(
            cache,
            removed=[_as_dict(entry) for entry in removed],
            left=[_as_dict(entry) for entry in left],
        )
        return 0
    print(_total(removed, "removed"))
    if ours := [entry for entry in left if entry.size]:
        in_use = sum(entry.in_use for entry in ours)
        print(_total(ours, "left") + (f", {in_use} of them in use" if in_use else ""))
    for entry in left:
        if not entry.size:
            problem = one_line(entry.problem or "")
            print(f"{entry.key}  stays, for nothing proves it to be an entry: {problem}")
    return 0


def _as_dict(entry: CachedModel) -> dict[str, Any]:
    return dataclasses.asdict(entry)


def _print_json(cache: ModelCache, **found: Any) -> None:
    print(json.dumps({"path": str(cache.path), "max_bytes": cache.max_bytes, **found}, indent=2))


def _print_table(entries: list[CachedModel]) -> None:
    rows = [("key", "size", "used", "what")]
    for entry in reversed(entries):  # the last used first
        what = (
            entry.problem
            or entry.label
            or ", ".join(f"{k}={v}" for k, v in entry.key_fields.items())
        )
        used = "in use" if entry.in_use else f"{_age(time.time() - entry.last_used)} ago"
        rows.append((entry.key[:12], _bytes(entry.size), used, one_line(what[:100])))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    if entries:
        for key, size, used, what in rows:
            print(
                f"{key.ljust(widths[0])}  {size.rjust(widths[1])}  {used.ljust(widths[2])}  {what}"
            )


def _total(entries: list[CachedModel], where: str) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun}, {_bytes(sum(entry.size for entry in entries))} {where}"


def _bytes(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} B"
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is no size such as 10GB, 500MiB or 0")
    power = " kmgt".index(match[2]) if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
