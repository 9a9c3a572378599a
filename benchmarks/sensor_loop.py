"""How late is an app's own loop while potluck trains and uploads beside it?

`python -m benchmarks.sensor_loop` runs `pilots.sensor_loop` as a process of its own, against a real
broker and a coordinator that plans one round after the other: the device trains, encodes and
uploads without a pause, which no federation does. Beside it stands the same loop alone, on the same
machine in the same minute, because a machine that is busy with other work makes every loop late.

Where the system lets us (Linux, as root), every case runs once more in real time: before all other
programs, so that only what the loop and potluck do to each other is left. Without that the figures
of a busy machine say more about its other work.

A deadline is missed when a reading is not done before the next one is due: 10 ms.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from coordinator import EmbeddedBroker

ROOT: Final = Path(__file__).parents[1]
HISTORY: Final = 600
_QUICK: Final = (1, 5.0)
_WHOLE: Final = (3, 20.0)
_WAIT_S: Final = 120.0
_FEDERATION: Final = """
[federation]
name = "gaits"
task = "pilots.sensor_loop:{task}"
[rounds]
count = 1000000
cohort = 1
quorum = 1.0
deadline_s = 60.0
"""


@dataclass(frozen=True)
class Case:
    """A way to run the loop.

    `task` is an object of `pilots.sensor_loop`, empty for no device; `hidden` is its size.
    """

    name: str
    task: str = ""
    hidden: int = 0
    options: tuple[str, ...] = ()
    real_time: bool = False


_SWITCHING: Final = ("--switch-interval-s", "0.001")
_SMALL: Final = ("task", 55)
_LARGE: Final = ("big", 3_300)
CASES: Final = (
    Case("the loop alone"),
    Case("collecting each reading", options=("--collect",)),
    Case("17k parameters", *_SMALL),
    Case("1M parameters", *_LARGE),
    Case("17k, low priority", *_SMALL, options=("--low-priority",)),
    Case("the loop alone", real_time=True),
    Case("collecting each reading", options=("--collect",), real_time=True),
    Case("17k parameters", *_SMALL, real_time=True),
    Case("1M parameters", *_LARGE, real_time=True),
    Case("17k, switch interval 1 ms", *_SMALL, options=_SWITCHING, real_time=True),
    Case("1M, switch interval 1 ms", *_LARGE, options=_SWITCHING, real_time=True),
)


@dataclass(frozen=True)
class Row:
    """A case over its repeats: medians, but for what is summed.

    `readings`, `missed` and `updates` are sums; `gap_worst_ms` and `add_max_ms` the worst of all.
    """

    case: str
    real_time: bool
    readings: int
    missed: int
    updates: int
    gap_max_ms: float
    gap_worst_ms: float
    gap_p999_ms: float
    late_p50_ms: float
    add_max_ms: float
    add_p50_us: float


def may_run_in_real_time() -> bool:
    """Whether this system lets this user put a process before all others."""
    if not hasattr(os, "sched_setscheduler"):
        return False
    probe = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    command = [sys.executable, "-c", probe]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - our own words


def _environment() -> dict[str, str]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **one, "PYTHONPATH": str(ROOT)}


def _potluck(directory: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "potluck", *arguments]
    subprocess.run(  # noqa: S603 - our own command
        command, cwd=directory, env=_environment(), check=True, stdout=subprocess.DEVNULL
    )


@contextmanager
def _federation(task: str, broker: str, tokens: int) -> Iterator[Path]:
    """A coordinator with nothing to do but plan rounds; yields the file of tokens."""
    with tempfile.TemporaryDirectory(prefix="potluck-loop-") as name:
        directory = Path(name)
        (directory / "federation.toml").write_text(_FEDERATION.format(task=task))
        _potluck(directory, "coordinator", "init", "state", "--broker", broker)
        _potluck(directory, "enroll", "state", "-n", str(tokens), "-o", "tokens")
        command = [sys.executable, "-m", "potluck", "coordinator", "run", "federation.toml"]
        coordinator = subprocess.Popen(  # noqa: S603 - as above
            [*command, "--state-dir", "state", "--broker", broker],
            cwd=directory,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # It would be another machine.
            preexec_fn=(lambda: os.nice(10)) if hasattr(os, "nice") else None,  # noqa: PLW1509 - no threads yet
        )
        try:
            yield directory / "tokens"
        finally:
            coordinator.terminate()
            coordinator.wait(_WAIT_S)


def _run(case: Case, seconds: float, seed: int, tokens: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "pilots.sensor_loop", "--seconds", str(seconds)]
    command += [*case.options, *(["--real-time"] if case.real_time else [])]
    with tempfile.TemporaryDirectory(prefix="potluck-loop-") as state_dir:
        command += ["--state-dir", state_dir]
        if tokens is not None:
            command += ["--token-file", str(tokens)]
            command += ["--hidden", str(case.hidden), "--history", str(HISTORY)]
        done = subprocess.run(  # noqa: S603 - as above
            [*command, "--seed", str(seed)],
            cwd=ROOT,
            env=_environment(),
            check=True,
            capture_output=True,
            text=True,
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def _busy_programs(count: int) -> Iterator[None]:
    """Other work on the machine, which wants all the processor that it can have."""
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(count)]  # noqa: S603 - our own words
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def sensor_loop_table(
    *,
    quick: bool = False,
    cases: Sequence[Case] = CASES,
    seconds: float | None = None,
    busy: int = 0,
) -> list[Row]:
    """Run every case, in turns, and say how the loop kept its time.

    Args:
        quick: one repeat of 5 s each instead of three of 20 s.
        cases: which.
        seconds: of a repeat, instead of those.
        busy: so many other programs that do nothing but compute run beside.
    """
    repeats, usual_s = _QUICK if quick else _WHOLE
    seconds = seconds or usual_s
    if not may_run_in_real_time():
        cases = [case for case in cases if not case.real_time]
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    with EmbeddedBroker() as broker, _busy_programs(busy):
        for repeat in range(repeats):
            for case in cases:
                if not case.task:
                    found[case].append(_run(case, seconds, repeat, None))
                    continue
                with _federation(case.task, broker.url, 1) as tokens:
                    found[case].append(_run(case, seconds, repeat, tokens))
    return [_row(case, runs) for case, runs in found.items()]


def _row(case: Case, runs: Sequence[dict[str, Any]]) -> Row:
    def middle(key: str) -> float:
        return float(median(run[key] for run in runs))

    return Row(
        case=case.name,
        real_time=case.real_time,
        readings=sum(run["ticks"] for run in runs),
        missed=sum(run["missed"] for run in runs),
        updates=sum(run["reports"].get("settled", 0) for run in runs),
        gap_max_ms=middle("gap_max_ms"),
        gap_worst_ms=max(run["gap_max_ms"] for run in runs),
        gap_p999_ms=middle("gap_p999_ms"),
        late_p50_ms=middle("late_p50_ms"),
        add_max_ms=max(run["add_max_ms"] for run in runs),
        add_p50_us=middle("add_p50_us"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensor_loop", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument(
        "--only", action="append", help="cases whose name has this in it; may be repeated"
    )
    parser.add_argument("--busy", type=int, default=0, help="other programs that only compute")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    cases = [c for c in CASES if not options.only or any(w in c.name for w in options.only)]
    rows = sensor_loop_table(
        quick=options.quick, cases=cases, seconds=options.seconds, busy=options.busy
    )
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return 0
    print(
        f"{'':38} readings missed updates  longest gap: median, worst     p99.9  late p50"
        "  add p50, longest"
    )
    for row in rows:
        name = f"{row.case}{', in real time' if row.real_time else ''}"
        print(
            f"{name:38} {row.readings:8} {row.missed:6} {row.updates:7}"
            f" {row.gap_max_ms:16.1f} ms {row.gap_worst_ms:7.1f} ms {row.gap_p999_ms:6.1f} ms"
            f" {row.late_p50_ms:6.2f} ms {row.add_p50_us:6.0f} us {row.add_max_ms:6.2f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
