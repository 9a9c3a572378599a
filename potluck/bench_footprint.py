"""`potluck bench footprint`: what a device's owner pays for taking part, beside the limits."""

import argparse
import sys
import time
from typing import Any, Final

import msgspec

from potluck.output import add_json, print_json

# As `benchmarks.footprint.PARTS`, which is an extra: a test holds them together.
PARTS: Final = ("install", "import", "memory", "idle", "cpu", "round", "resume", "loop")


def add_footprint(bench: Any) -> None:
    """Add `footprint`."""
    parser = bench.add_parser(
        "footprint",
        help="what a device costs its owner: disk, memory, traffic, CPU",
        description="Measure what taking part costs a device: the install, the import, memory at"
        " work, traffic and CPU with nothing to do, CPU of a round, bytes of an upload that is"
        " resumed, and deadlines of an app's own loop. Real processes, a real broker. Every figure"
        " stands beside its limit. About fifteen minutes, four with --quick.",
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="may be given again (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats, shorter looks")
    add_json(parser)
    parser.set_defaults(run=run_footprint)


def run_footprint(arguments: argparse.Namespace) -> int:
    """Measure what was asked for, and print it; missed limits are said, and are no failure."""
    from benchmarks import footprint  # noqa: PLC0415 - an extra

    began_s = time.monotonic()
    wanted = arguments.part or PARTS
    figures = [
        figure
        for part in PARTS
        if part in wanted
        for figure in footprint.PARTS[part](_tell, quick=arguments.quick)
    ]
    missed = [figure.what for figure in figures if figure.missed]
    if arguments.json:
        rows = [
            {
                **msgspec.to_builtins(figure),
                "within": None if figure.limit is None else not figure.missed,
            }
            for figure in figures
        ]
        about = {"python": footprint.python_name(), "quick": arguments.quick}
        wall_s = time.monotonic() - began_s
        print_json({"figures": rows, "missed": missed, **about, "wall_s": wall_s})
    else:
        print("\n".join(footprint.lines(figures)))
    return 0


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
