"""`potluck bench round`: how long rounds take over a real broker, and what they cost."""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from potluck.output import add_json, print_json
from wire import PotluckError

ROUNDS_DEFAULT: Final = 5
_QUICK_ROUNDS: Final = 2
MEASURED: Final = ("processes", "connected", "memory")
PARTS: Final = (*MEASURED, "restart", "selection", "async")
DEFAULT_PARTS: Final = (*MEASURED, "restart")
# Parts that are tables of their own: a module of `benchmarks`, and its function.
_TABLES: Final = {
    "selection": ("benchmarks.selection", "selection_table"),
    "async": ("benchmarks.asynchrony", "async_table"),
}


def add_round(bench: Any) -> None:
    """Add `round`."""
    parser = bench.add_parser(
        "round",
        help="rounds over a real broker: time, CPU, memory",
        description="Run rounds with real processes over a real broker and training that takes no"
        " time: 32 device processes and a model of a million parameters, 1,000 connected devices,"
        " the coordinator's memory by cohort, and its return after kill -9. About five minutes on"
        " two cores.",
    )
    parser.add_argument(
        "--part",
        action="append",
        choices=PARTS,
        help="may be given again (default: processes, connected, memory and restart)",
    )
    parser.add_argument(
        "--rounds", type=_count, help=f"steady rounds of each (default: {ROUNDS_DEFAULT})"
    )
    parser.add_argument("--quick", action="store_true", help="small models, few devices")
    parser.add_argument(
        "--peer",
        choices=("flower",),
        help="install this peer in an environment of its own, and run the same rounds with it",
    )
    add_json(parser)
    parser.set_defaults(run=run_round)


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return number


def run_round(arguments: argparse.Namespace) -> int:
    """Run what was asked for, and print it."""
    from benchmarks import rounds  # noqa: PLC0415 - an extra; NumPy reads its threads' number

    began_s = time.monotonic()
    parts = arguments.part or DEFAULT_PARTS
    count = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else ROUNDS_DEFAULT)
    made: dict[str, Any] = {}
    text: list[str] = []
    rows = []
    for part in (name for name in MEASURED if name in parts):
        for setting in rounds.SETTINGS[part](quick=arguments.quick):
            _tell(f"{part}: {setting.devices} devices, a cohort of {setting.cohort}")
            rows.append(rounds.measure(setting, rounds=count))
            _tell(f"  {rows[-1].round_s[0]:.2f} s a round")
    if rows:
        made["rounds"] = [msgspec.to_builtins(row) for row in rows]
        text += rounds.lines(rows)
    if "restart" in parts:
        from benchmarks.restart import restart_seconds  # noqa: PLC0415 - as above

        _tell("restart: kill -9 to collecting again")
        restart = restart_seconds()
        made["restart"] = msgspec.to_builtins(restart)
        text.append(
            f"kill -9 to collecting again: {restart.ready_s:.2f} s, {restart.bare_s:.2f} of them"
            f" Python's; {restart.updates} updates of {restart.parameters:,} parameters on disk"
        )
    for part in (name for name in _TABLES if name in parts):
        _tell(part)
        made[part] = msgspec.to_builtins(_table(part)(quick=arguments.quick))
        text.append(f"{part}: {msgspec.json.encode(made[part]).decode()}")
    if arguments.peer is not None:
        from benchmarks.peers import flower  # noqa: PLC0415 - as above

        peers = flower.rows(quick=arguments.quick, tell=_tell)
        made["peer"] = [msgspec.to_builtins(row) for row in peers]
        text += flower.lines(peers)
    made["wall_s"] = time.monotonic() - began_s
    if arguments.json:
        print_json(made)
    else:
        print("\n".join(text))
    return 0


def _table(part: str) -> Callable[..., Any]:
    """The function that makes a part's table."""
    module, name = _TABLES[part]
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PotluckError(
            f"--part {part}: {module} is not there: run from the repository"
        ) from error
    return found


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
