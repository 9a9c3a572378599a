"""How long rounds take, and what they take: over real processes and a broker, without training.

Parts: `processes` (device processes and a model of a million), `connected` (a thousand connected
devices and a small model), `memory` (a thousand devices and a million parameters: what the
coordinator holds, by cohort). Steady rounds are those after the first in which everybody was there.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from msgspec import Struct

from benchmarks.gateway_process import (
    GatewayProcess,
    RoundBenchError,
    RoundSeen,
    environment,
)
from benchmarks.round_fleet import UP, admit
from benchmarks.round_floors import sum_s, wire_s
from coordinator import STORE_FILE, Store, load_identity, make_tokens, write_tokens
from wire import Ed25519, SystemSecrets

MIB: Final = 2.0**20
_PATIENCE_S: Final = 180.0
_FEDERATION: Final = """\
[federation]
name = "bench"
task = "benchmarks.round_task:{task}"
[rounds]
count = 1000000
cohort = {cohort}
over_select = {over_select}
quorum = {quorum}
deadline_s = 120.0
[uplink]
codec = "{codec}"
[downlink]
codec = "{codec}"
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One measurement: who takes part, in what.

    Attributes:
        processes: whether devices are processes of their own, or emulated in one.
        parameters: of the task's model.
        codec: of both ways.
    """

    part: str
    devices: int
    cohort: int
    task: str
    parameters: int
    processes: bool = False
    over_select: float = 1.3
    quorum: float = 0.7
    codec: str = "auto"


class RoundRow(Struct, frozen=True):
    """What rounds of one setting took; of times the median, the least and the most.

    Attributes:
        round_s: from a round's opening to its commit.
        cycle_s: from a commit to the next: with the time until a round could open.
        first_s: the first round's.
        coordinator_cpu_s, devices_cpu_s, broker_cpu_s: per round.
        device_cpu_s: per device that took part; the pause until the next invitation is in it.
        rss_bytes, rss_peak_bytes: of the coordinator, at the end and ever.
        down_bytes, up_bytes: of a round, through the coordinator's link.
        sum_s: what NumPy takes to add as many float32 updates, in the same run.
        wire_s: what plain paho takes to pass as many bytes through the same kind of broker.
    """

    part: str
    codec: str
    devices: int
    cohort: int
    parameters: int
    rounds: int
    round_s: tuple[float, float, float]
    cycle_s: tuple[float, float, float]
    first_s: float
    coordinator_cpu_s: float
    devices_cpu_s: float
    device_cpu_s: float
    broker_cpu_s: float
    rss_bytes: int
    rss_peak_bytes: int
    down_bytes: int
    up_bytes: int
    sum_s: float
    wire_s: float


def processes_settings(*, quick: bool) -> list[Setting]:
    """Real device processes, all of whom every round waits for."""
    count = 2 if quick else 32
    task, parameters = ("digits", 17_226) if quick else ("million", 1_000_000)
    everybody = {"processes": True, "over_select": 1.0, "quorum": 1.0}
    return [Setting("processes", count, count, task, parameters, **everybody)]  # type: ignore[arg-type] # as written above


def connected_settings(*, quick: bool) -> list[Setting]:
    """Many connected devices, of whom a round asks some."""
    devices, cohort = (30, 10) if quick else (1_000, 100)
    return [Setting("connected", devices, cohort, "digits", 17_226)]


def memory_settings(*, quick: bool) -> list[Setting]:
    """The same model and devices, growing cohorts; `raw` is the worst that can come."""
    if quick:
        return [Setting("memory", 30, 10, "digits", 17_226)]
    cells = [("auto", 20), ("auto", 100), ("auto", 300), ("raw", 20), ("raw", 100)]
    return [
        Setting("memory", 1_000, cohort, "million", 1_000_000, codec=codec)
        for codec, cohort in cells
    ]


SETTINGS: Final[dict[str, Callable[..., list[Setting]]]] = {
    "processes": processes_settings,
    "connected": connected_settings,
    "memory": memory_settings,
}


def federation_toml(setting: Setting) -> str:
    """The federation file of a setting; it has more rounds than anybody waits for."""
    return _FEDERATION.format(
        task=setting.task,
        cohort=setting.cohort,
        over_select=setting.over_select,
        quorum=setting.quorum,
        codec=setting.codec,
    )


def measure(setting: Setting, *, rounds: int) -> RoundRow:
    """Run one setting until `rounds` steady rounds are over.

    Raises:
        RoundBenchError: the coordinator or a device ended, or rounds did not come.
    """
    toml = federation_toml(setting)
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as name:
        directory = Path(name)
        devices: list[psutil.Process] = []
        with GatewayProcess(directory, toml, lambda: devices) as gateway:
            bring = _device_processes if setting.processes else emulated
            with bring(gateway, directory, setting, devices):
                # One more, whose commit is where the first one's cycle begins.
                first = gateway.wait_for_rounds(0, 1, _PATIENCE_S)[0]
                here = max(seen.number for seen in gateway.rounds)
                seen = gateway.wait_for_rounds(here - 1, rounds + 1, _PATIENCE_S)
                rss_bytes, peak_bytes = gateway.rss_bytes, gateway.rss_peak_bytes
            gateway.stop()
            traffic = gateway.traffic(seen[1:])
    return _row(setting, first, seen, traffic, (rss_bytes, peak_bytes))


def _row(
    setting: Setting,
    first: RoundSeen,
    seen: Sequence[RoundSeen],
    traffic: Sequence[tuple[int, int]],
    rss: tuple[int, int],
) -> RoundRow:
    marks = [round_seen.mark for round_seen in seen if round_seen.mark is not None]
    steady = seen[1:]
    count = len(steady)
    begin, end = marks[0], marks[-1]
    down, up = (int(median(way)) for way in zip(*traffic, strict=True))
    devices_s = (end.devices_s - begin.devices_s) / count
    taking_part = min(round(setting.cohort * setting.over_select), setting.devices)
    return RoundRow(
        part=setting.part,
        codec=setting.codec,
        devices=setting.devices,
        cohort=setting.cohort,
        parameters=setting.parameters,
        rounds=count,
        round_s=_spread([one.committed_s - one.opened_s for one in steady]),
        cycle_s=_spread([after.at_s - before.at_s for before, after in pairwise(marks)]),
        first_s=first.committed_s - first.opened_s,
        coordinator_cpu_s=(end.coordinator_s - begin.coordinator_s) / count,
        devices_cpu_s=devices_s,
        device_cpu_s=devices_s / taking_part,
        broker_cpu_s=(end.broker_s - begin.broker_s) / count,
        rss_bytes=rss[0],
        rss_peak_bytes=rss[1],
        down_bytes=down,
        up_bytes=up,
        sum_s=sum_s(setting.cohort, setting.parameters),
        wire_s=wire_s(down + up),
    )


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def lines(rows: Sequence[RoundRow]) -> list[str]:
    """The measurements as text."""
    head = (
        f"{'part':<10} {'codec':<6} {'devices':>7} {'cohort':>6} {'parameters':>10} {'round s':>19}"
        f" {'cycle s':>8} {'first s':>8} {'sum s':>7} {'wire s':>7}"
        f" {'CPU s: gateway, a device, broker':>34} {'RSS, peak MiB':>14} {'down, up kB':>15}"
    )
    made = [head]
    for row in rows:
        spread = f"{row.round_s[0]:.2f} ({row.round_s[1]:.2f}-{row.round_s[2]:.2f})"
        cpu = f"{row.coordinator_cpu_s:.3f}, {row.device_cpu_s:.3f}, {row.broker_cpu_s:.3f}"
        rss = f"{row.rss_bytes / MIB:.0f}, {row.rss_peak_bytes / MIB:.0f}"
        wire = f"{row.down_bytes / 1e3:.0f}, {row.up_bytes / 1e3:.0f}"
        made.append(
            f"{row.part:<10} {row.codec:<6} {row.devices:>7} {row.cohort:>6} {row.parameters:>10}"
            f" {spread:>19} {row.cycle_s[0]:>8.2f} {row.first_s:>8.2f} {row.sum_s:>7.3f}"
            f" {row.wire_s:>7.3f} {cpu:>34} {rss:>14} {wire:>15}"
        )
    return made


# -- devices -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _device_processes(
    gateway: GatewayProcess, directory: Path, setting: Setting, found: list[psutil.Process]
) -> Iterator[None]:
    """`potluck device run`, as often as that; the first round opens when all have come."""
    store = Store(gateway.state_dir / STORE_FILE)
    try:
        identity = load_identity(gateway.state_dir, Ed25519())
        tokens = make_tokens(
            store,
            identity,
            count=setting.devices,
            broker=gateway.broker.url,
            secrets=SystemSecrets(),
            now_s=0.0,
            lifetime_s=1e12,
        )
    finally:
        store.close()
    gateway.start()
    commands = []
    for number, token in enumerate(tokens):
        file = directory / f"token-{number}"
        write_tokens(file, [token])
        command = ["-m", "potluck", "device", "run", "--token-file", str(file)]
        command += ["--task", f"benchmarks.round_task:{setting.task}"]
        command += ["--state-dir", str(directory / f"device-{number}"), "--min-battery", "0"]
        commands.append([*command, "--index", str(number), "--allow-metered"])
    with _started(commands, found):
        yield


@contextlib.contextmanager
def emulated(
    gateway: GatewayProcess, _directory: Path, setting: Setting, found: list[psutil.Process]
) -> Iterator[None]:
    """Emulated devices in one process, all connected when this gives way."""
    admit(gateway.state_dir, setting.devices)
    gateway.start()
    # Who speaks before the coordinator listens is heard when its check-in is due again.
    gateway.wait_for("broker_up", 0.0, _PATIENCE_S)
    command = ["-m", "benchmarks.round_fleet", str(gateway.federation), str(gateway.state_dir)]
    with _started([[*command, gateway.broker.url, str(setting.devices)]], found) as (fleet,):
        line = fleet.stdout.readline() if fleet.stdout is not None else b""
        if line.strip() != UP.encode():
            raise RoundBenchError(gateway.complaint("the fleet did not come up"))
        yield


@contextlib.contextmanager
def _started(
    commands: Sequence[Sequence[str]], found: list[psutil.Process]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Python processes, which end with the block."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, *command],
                env=environment(),
                stdout=subprocess.PIPE if len(commands) == 1 else subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            started.append(process)
            found.append(psutil.Process(process.pid))
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
