"""`potluck bench aggregate`: what robust rules cost, and what they are worth under attack."""

import argparse
import os
import sys
import time
from typing import Any

import msgspec

from potluck.output import add_json, print_json


def add_command(bench: Any) -> None:
    """Add `aggregate` to the commands of `bench`."""
    aggregate = bench.add_parser(
        "aggregate",
        help="robust rules: time, memory, and accuracy under attack",
        description="Time each rule on 100 and on 1,000 updates of a million parameters, with its"
        " peak memory; then train on the digits with a fifth of the devices attacking, under each"
        " rule and each attack. About fifteen minutes on two cores; --quick takes one.",
    )
    aggregate.add_argument(
        "--quick", action="store_true", help="20 updates, two attacks, the default rule alone"
    )
    aggregate.add_argument("--speed", action="store_true", help="time the rules, train nothing")
    aggregate.add_argument("--attacks", action="store_true", help="train, time nothing")
    aggregate.add_argument("--seed", type=int, default=0, help="of the attacked federations (0)")
    aggregate.add_argument("--jobs", type=int, help="processes for training (default: all cores)")
    add_json(aggregate)
    aggregate.set_defaults(run=run_aggregate)


def run_aggregate(arguments: argparse.Namespace) -> int:
    """Run what was asked for, and print it."""
    from benchmarks import aggregate_speed, attacks  # noqa: PLC0415 - NumPy reads its threads' number

    began_s = time.monotonic()
    both = arguments.speed == arguments.attacks
    speeds: list[aggregate_speed.Speed] = []
    if arguments.speed or both:
        counts = aggregate_speed.COUNTS_QUICK if arguments.quick else aggregate_speed.COUNTS
        for count in counts:
            for rule in (aggregate_speed.PLAIN, *aggregate_speed.RULE_NAMES):
                print(f"timing {rule} on {count} updates", file=sys.stderr, flush=True)
                speeds.append(aggregate_speed.measure(rule, count))
    outcomes: list[attacks.Outcome] = []
    if arguments.attacks or both:
        wanted = attacks.cells(quick=arguments.quick, seed=arguments.seed)
        for outcome in attacks.play_all(wanted, jobs=arguments.jobs or os.cpu_count() or 1):
            outcomes.append(outcome)
            cell = outcome.cell
            print(
                f"{len(outcomes)} of {len(wanted)}: {cell.robust} {cell.attack or 'clean'}"
                f" x{cell.amount:g}: accuracy {outcome.accuracy:.4f}",
                file=sys.stderr,
                flush=True,
            )
    if arguments.json:
        print_json(
            {
                "speed": [msgspec.to_builtins(speed) for speed in speeds],
                "attacks": [msgspec.to_builtins(outcome) for outcome in outcomes],
                "wall_s": time.monotonic() - began_s,
            }
        )
        return 0
    for line in [*aggregate_speed.lines(speeds), ""] if speeds else []:
        print(line)
    for line in attacks.table(outcomes) if outcomes else []:
        print(line)
    return 0
