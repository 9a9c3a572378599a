"""`potluck bench codec`: what codecs cost in accuracy and time, and save in bytes.

`bench aggregate` is in `bench_aggregate`.
"""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from potluck import bench_aggregate
from potluck.bench_footprint import add_footprint
from potluck.bench_litert import add_litert
from potluck.bench_round import add_round
from potluck.output import add_json, print_json
from wire import PotluckError

if TYPE_CHECKING:
    from benchmarks.codecs import Outcome

SEEDS_DEFAULT: Final = 3


class BenchError(PotluckError):
    """A benchmark cannot be run; the text says what to do."""


def add_commands(commands: Any) -> None:
    """Add `bench`."""
    bench = commands.add_parser("bench", help="measure potluck on this machine").add_subparsers(
        dest="bench_command", required=True, metavar="WHAT"
    )
    codec = bench.add_parser(
        "codec",
        help="codecs: accuracy, bytes and time on federated workloads",
        description="Train federated workloads on real data with each codec and with float32, and"
        " say what each loses and saves; then time the codecs on an update of a million values."
        " All of it takes about half an hour on two cores; --workload, --codec and --seeds take"
        " less, --speed only times.",
    )
    codec.add_argument(
        "--workload",
        action="append",
        metavar="NAME",
        help="A digits-mlp, B mnist-cnn, C next-char, W next-word; may be given again (all)",
    )
    codec.add_argument(
        "--codec",
        action="append",
        metavar="NAME",
        help="for the way up, as in [uplink] codec; may be given again",
    )
    codec.add_argument(
        "--down",
        action="append",
        metavar="NAME",
        help="for the way down, as in [downlink] codec; may be given again",
    )
    codec.add_argument(
        "--secagg",
        action="store_true",
        help="secure aggregation's integers too (default: if no --codec and no --down is given)",
    )
    codec.add_argument(
        "--seeds", type=_count, default=SEEDS_DEFAULT, help=f"of each (default: {SEEDS_DEFAULT})"
    )
    codec.add_argument("--rounds", type=_count, help="instead of a workload's own")
    codec.add_argument("--jobs", type=_count, help="processes (default: all cores)")
    codec.add_argument("--speed", action="store_true", help="time the codecs, train nothing")
    add_json(codec)
    codec.set_defaults(run=run_codec)
    bench_aggregate.add_command(bench)
    add_round(bench)
    add_footprint(bench)
    add_litert(bench)


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return number


def run_codec(arguments: argparse.Namespace) -> int:
    """Run what was asked for, and print it."""
    from benchmarks import codec_speed, codecs  # noqa: PLC0415 - NumPy reads its threads' number
    from benchmarks.workloads import LETTERS  # noqa: PLC0415 - as above

    began_s = time.monotonic()
    # When codecs are named, only what was named is run.
    default = not (arguments.codec or arguments.down or arguments.secagg)
    uplinks = arguments.codec or (codecs.UPLINKS if default else ())
    downlinks = arguments.down or (codecs.DOWNLINKS if default else ())
    workloads = [codecs.workload_of(name) for name in arguments.workload or LETTERS]
    rows: list[codecs.Row] = []
    if not arguments.speed:
        wanted = codecs.cells(
            workloads,
            uplinks,
            downlinks,
            secagg=arguments.secagg or default,
            seeds=arguments.seeds,
            rounds=arguments.rounds,
        )
        progress = _Progress(len(wanted))
        rows = codecs.rows(
            codecs.play_all(wanted, jobs=arguments.jobs or os.cpu_count() or 1, tell=progress)
        )
    speeds = []
    for spec in dict.fromkeys((*uplinks, *(["ecq"] if default else []))):
        print(f"timing {spec}", file=sys.stderr, flush=True)
        speeds.append(codec_speed.measure(spec))
    if arguments.json:
        print_json(
            {
                "codecs": [msgspec.to_builtins(row) for row in rows],
                "speed": [msgspec.to_builtins(speed) for speed in speeds],
                "wall_s": time.monotonic() - began_s,
            }
        )
        return 0
    for line in [*codecs.table(rows), ""] if rows else []:
        print(line)
    for line in codec_speed.lines(speeds):
        print(line)
    return 0


class _Progress:
    """A line for each run that has ended, on stderr."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __call__(self, outcome: "Outcome") -> None:
        self._done += 1
        cell = outcome.cell
        print(
            f"{self._done} of {self._total}: {cell.workload} {cell.direction} {cell.codec}"
            f" seed {cell.seed}: accuracy {outcome.accuracy:.4f},"
            f" {outcome.bits_per_parameter:.3f} bits a parameter",
            file=sys.stderr,
            flush=True,
        )
