"""Repeat one world: `python -m fleet.repeat SEED MODE ['[EVENTS]']`.

Prints every event of the world's trace, and the promise that is broken in the end. With `--quiet`
only the end.
"""

import argparse
import sys
from collections.abc import Callable

import msgspec

from fleet.faults import Event
from fleet.nemesis import ALL_MODES, try_seed
from fleet.world import World


def main() -> int:
    """Play one world and say what happened in it."""
    parser = argparse.ArgumentParser(prog="python -m fleet.repeat", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("mode", choices=ALL_MODES)
    parser.add_argument("events", nargs="?", help="a JSON list, as a broken seed prints it")
    parser.add_argument("--quiet", action="store_true", help="print the end alone")
    parser.add_argument(
        "--described", action="store_true", help="devices have their model from the coordinator"
    )
    arguments = parser.parse_args()
    events = None
    if arguments.events is not None:
        events = msgspec.json.decode(arguments.events, type=tuple[Event, ...])
    tell: Callable[[World, str], None] | None = None if arguments.quiet else _tell
    trial = try_seed(
        arguments.seed, arguments.mode, events=events, tell=tell, described=arguments.described
    )
    for event in trial.events:
        sys.stdout.write(f"nemesis: {event}\n")
    sys.stdout.write(f"trace {trial.trace_digest}, {trial.happened} events\n")
    sys.stdout.write(f"{trial.violation or 'no promise was broken'}\n")
    return 0 if trial.violation is None else 1


def _tell(world: World, name: str) -> None:
    sys.stdout.write(f"{world.now_s:14.6f}  {name}\n")


if __name__ == "__main__":
    sys.exit(main())
