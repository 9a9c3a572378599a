"""What a device costs at work: memory of its process tree, and CPU of a round beyond training.

Real processes and a real broker; one round follows the other.
"""

import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.footprint import MIB, Figure, Tell
from benchmarks.footprint_process import DeviceProcess, federation
from benchmarks.gateway_process import RoundBenchError

PSS_MIB_MAX: Final = 90.0
ROUND_CPU_S_MAX: Final = 0.25
PARAMETERS: Final = {"small": 17_260, "million": 1_000_120}
_LOOK_EVERY_S: Final = 0.02
_AFTER_S: Final = 3.0
_PATIENCE_S: Final = 120.0
_TOML: Final = """
[federation]
name = "footprint"
task = "benchmarks.footprint_device:{task}"
[rounds]
count = {rounds}
cohort = 1
quorum = 1.0
deadline_s = 120.0
"""


def tree_bytes(pid: int) -> tuple[int, int]:
    """(proportional, resident) bytes of a process and all that it has started, now.

    Proportional where the kernel says so (Linux): pages that several processes have count by parts.
    Elsewhere both are what is resident.
    """
    proportional = resident = 0
    try:
        whole = psutil.Process(pid)
        tree = [whole, *whole.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in tree:
        try:
            rss = process.memory_info().rss
            resident += rss
            rollup = Path("/proc") / str(process.pid) / "smaps_rollup"
            proportional += _pss_bytes(rollup.read_text()) if rollup.exists() else rss
        except (psutil.Error, OSError):  # ended meanwhile
            continue
    return proportional, resident


def _pss_bytes(rollup: str) -> int:
    """The kernel's `Pss:` line, in kB."""
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0


def memory_figures(tell: Tell, *, quick: bool) -> list[Figure]:
    """Peaks over rounds, and what is left when they are over.

    Raises:
        RoundBenchError: a process ended, or rounds did not come.
    """
    rounds = 4 if quick else 12
    made = []
    for task in ("small",) if quick else ("small", "million"):
        tell(f"memory: {rounds} rounds, {PARAMETERS[task]:,} parameters")
        toml = _TOML.format(task=task, rounds=rounds)
        with federation(toml) as running, running.device(task) as device:
            peak = _peaks_until(device, rounds)
            time.sleep(_AFTER_S)
            rest = tree_bytes(device.pid)
        limit = PSS_MIB_MAX if task == "small" else None
        name = f"{PARAMETERS[task]:,} parameters"
        shared = "pages shared with the other processes of this benchmark count in part"
        made += [
            Figure("memory", f"PSS at work, {name}", peak[0] / MIB, "MiB", limit, shared),
            Figure(
                "memory",
                f"resident at work, {name}",
                peak[1] / MIB,
                "MiB",
                limit,
                "all of it counts; the most that PSS can be where nothing else runs",
            ),
            Figure("memory", f"resident after rounds, {name}", rest[1] / MIB, "MiB"),
        ]
    return made


def _peaks_until(device: DeviceProcess, rounds: int) -> tuple[int, int]:
    peaks = (0, 0)
    until_s = time.monotonic() + _PATIENCE_S
    while len(device.events("settled")) < rounds:
        if device.process.poll() is not None or time.monotonic() > until_s:
            raise RoundBenchError(f"memory: rounds did not come; it last said {device.said[-1:]}")
        now = tree_bytes(device.pid)
        peaks = (max(peaks[0], now[0]), max(peaks[1], now[1]))
        time.sleep(_LOOK_EVERY_S)
    return peaks


def beyond_training_s(settled: list[dict[str, Any]]) -> list[float]:
    """CPU seconds from one settlement to the next that were not the trainer's.

    Args:
        settled: what the device said at each: `cpu_s` and `trainer_s` since it began.
    """
    spent = [said["cpu_s"] - said["trainer_s"] for said in settled]
    return [after - before for before, after in pairwise(spent)]


def round_figures(tell: Tell, *, quick: bool) -> list[Figure]:
    """CPU of a round: check-in, fetch, decode, encode, seal, upload and settlement.

    Raises:
        RoundBenchError: a process ended, or rounds did not come.
    """
    rounds = 3 if quick else 8
    tell(f"round: {rounds} rounds, {PARAMETERS['million']:,} parameters")
    toml = _TOML.format(task="million", rounds=rounds)
    with federation(toml) as running, running.device("million") as device:
        device.wait_for("settled", rounds)
        settled = device.events("settled")
    # The first round has no delta to fetch, and loads what is loaded when it is used.
    each_s = beyond_training_s(settled)
    trainer_s = (settled[-1]["trainer_s"] - settled[0]["trainer_s"]) / len(each_s)
    return [
        Figure(
            "round",
            f"CPU of a round beyond training, {PARAMETERS['million']:,} parameters",
            median(each_s),
            "s",
            ROUND_CPU_S_MAX,
            f"median of {len(each_s)}, {min(each_s):.3f} to {max(each_s):.3f};"
            f" training beside it {trainer_s:.3f}",
        )
    ]
