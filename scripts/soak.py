"""Play the nemesis for as long as you like (`make soak`): seeds by time, over all cores."""

import argparse
import multiprocessing
import os
import sys
import time
from functools import partial

import msgspec

from fleet.nemesis import ALL_MODES, MODES, Trial, shrink, try_seed


def main() -> int:
    """Play seeds; print what is broken, shrunk, with the line that repeats it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after (default: never)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes (default: cores)"
    )
    parser.add_argument(
        "--mode",
        choices=ALL_MODES,
        action="append",
        help="which world, may be repeated (default: all but week)",
    )
    parser.add_argument(
        "--described", action="store_true", help="devices have their model from the coordinator"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    started_s = time.monotonic()
    jobs = [
        (seed, mode)
        for seed in range(arguments.first, arguments.first + arguments.seeds)
        for mode in arguments.mode or MODES
    ]
    broken: list[Trial] = []
    played = 0
    with multiprocessing.Pool(arguments.jobs) as pool:
        play = partial(_play, described=arguments.described)
        for trial in pool.imap_unordered(play, jobs, chunksize=4):
            played += 1
            if trial.violation is not None:
                broken.append(shrink(trial, described=arguments.described))
                more = " --described" if arguments.described else ""
                print(_repro(broken[-1]) + more, file=sys.stderr, flush=True)
            if played % 100 == 0:
                print(f"{played} of {len(jobs)} worlds, {len(broken)} broken", file=sys.stderr)
            if arguments.minutes and time.monotonic() - started_s > 60.0 * arguments.minutes:
                pool.terminate()
                break
    if arguments.json:
        found = [msgspec.to_builtins(trial) for trial in broken]
        wall_s = time.monotonic() - started_s
        print(msgspec.json.encode({"worlds": played, "wall_s": wall_s, "broken": found}).decode())
    else:
        print(f"{played} worlds, {len(broken)} broken, {time.monotonic() - started_s:.0f} s")
    return 1 if broken else 0


def _play(job: tuple[int, str], *, described: bool) -> Trial:
    seed, mode = job
    return try_seed(seed, mode, described=described)  # type: ignore[arg-type] # one of MODES


def _repro(trial: Trial) -> str:
    """One line that repeats a broken world, with as few events as break it."""
    events = msgspec.json.encode(list(trial.events)).decode()
    return (
        f"seed {trial.seed} {trial.mode}: {trial.violation}\n"
        f"  repeat: python -m fleet.repeat {trial.seed} {trial.mode} '{events}'"
    )


if __name__ == "__main__":
    sys.exit(main())
