"""What an enrolled device costs that has nothing to do: bytes on the wire, and CPU.

Its connection is TLS to a Mosquitto whose CA its token pins; its policy is the default one. A
coordinator runs and waits for more devices than there are. That is the dearest way to be idle: a
device that is told when to come back, or whose gate is closed, checks in less often or not at all.
"""

import functools
import time
from dataclasses import dataclass
from statistics import mean
from typing import Final

from benchmarks.counting_relay import HEADER_BYTES, Exchange
from benchmarks.footprint import MB, MIB, Figure, Tell
from benchmarks.footprint_day import DAY_S, Day, day_bytes, idle_day
from benchmarks.footprint_process import DeviceProcess, Federation, federation
from benchmarks.footprint_work import tree_bytes
from benchmarks.gateway_process import RoundBenchError
from edge_sdk.signals import LEASE_S

TRAFFIC_MB_A_DAY_MAX: Final = 0.5
CPU_SHARE_MAX: Final = 0.001
# A ping is 2 bytes of MQTT and 22 of TLS 1.3; a check-in carries a signature of 64.
_PING_BYTES_MAX: Final = 64
_SETTLE_S: Final = 5.0
_WHOLE_S: Final = 240.0
# Long enough for one ping; check-ins come sooner, since a check-in costs the same at any pace.
_QUICK_S: Final = 75.0
_QUICK_CHECK_IN_S: Final = 40.0
_TOML: Final = """
[federation]
name = "footprint"
task = "benchmarks.footprint_device:small"
"""


@dataclass(frozen=True)
class IdleRun:
    """What was seen while nothing happened.

    `connect` is a connection with its check-in, `pings` and `check_ins` each one of their kind;
    `cpu_s` and `naps` are those of `seconds`, `resident_bytes` what was held at the end.
    """

    seconds: float
    cpu_s: float
    naps: float
    resident_bytes: int
    connect: Exchange
    pings: tuple[Exchange, ...]
    check_ins: tuple[Exchange, ...]
    expected: Day


@functools.cache
def idle_run(tell: Tell, *, quick: bool) -> IdleRun:
    """Watch an idle device; once, for whoever asks.

    Raises:
        BrokerMissingError: there is no Mosquitto.
        RelayError: segments cannot be counted here.
        RoundBenchError: a process ended, or was not idle.
    """
    seconds = _QUICK_S if quick else _WHOLE_S
    tell(f"idle, cpu: an idle device over TLS, {seconds:.0f} s")
    options = ("--check-in-s", str(_QUICK_CHECK_IN_S)) if quick else ()
    with federation(_TOML, tls=True) as running:
        with running.device("small", *options) as device:  # enrols, over a connection of its own
            device.wait_for("started")
        with running.device("small", *options) as device:
            device.wait_for("started")
            time.sleep(_SETTLE_S)
            first = len(running.relay.exchanges)
            before, began_s = device.spent(), time.monotonic()
            time.sleep(max(seconds - _SETTLE_S, 0.0))
            after, ended_s = device.spent(), time.monotonic()
            seen = running.relay.exchanges[first:]
            _proportional, resident = tree_bytes(device.pid)
            connect = _reconnect(running, device)
    check_in_s = _QUICK_CHECK_IN_S if quick else LEASE_S
    return IdleRun(
        seconds=ended_s - began_s,
        cpu_s=after["cpu_s"] - before["cpu_s"],
        naps=after["naps"] - before["naps"],
        resident_bytes=resident,
        connect=connect,
        pings=tuple(one for one in seen if one.up_bytes <= _PING_BYTES_MAX),
        check_ins=tuple(one for one in seen if one.up_bytes > _PING_BYTES_MAX),
        expected=idle_day(seconds=ended_s - began_s, check_in_s=check_in_s),
    )


def _reconnect(running: Federation, device: DeviceProcess) -> Exchange:
    """Break the connection, and see what the next one costs."""
    before = len(running.relay.exchanges)
    running.relay.drop()
    until_s = time.monotonic() + 30.0
    while time.monotonic() < until_s:
        for one in running.relay.exchanges[before:]:
            if one.up_bytes > _PING_BYTES_MAX:
                return one
        time.sleep(0.1)
    raise RoundBenchError(f"the device did not come back: {device.said[-1:]}")


def traffic_figures(run: IdleRun) -> list[Figure]:
    """Bytes of a day, and what they are made of.

    Raises:
        RoundBenchError: there was no ping or no check-in to go by.
    """
    if not run.pings or not run.check_ins:
        raise RoundBenchError("idle: no ping or no check-in was seen; is the machine overloaded?")
    ping = mean(one.wire_bytes for one in run.pings)
    check_in = mean(one.wire_bytes for one in run.check_ins)
    connect = float(run.connect.wire_bytes)

    def of_a_day(day: Day) -> float:
        return day_bytes(day, connect=connect, check_in=check_in, ping=ping, reconnects=1) / MB

    waits, over = idle_day(), idle_day(answered_s=3_600.0)
    closed = Day((), waits.pings)
    seen = f"seen in {run.seconds:.0f} s: {len(run.pings)} pings, {len(run.check_ins)} check-ins"
    expected = f"expected {run.expected.pings} and {run.expected.check_ins - 1}"
    counted = f"bytes of the connection, TLS in them, and {HEADER_BYTES} a segment (IPv4, TCP)"
    return [
        Figure(
            "idle",
            "idle traffic a day, defaults, TLS, waiting for a round",
            of_a_day(waits),
            "MB",
            TRAFFIC_MB_A_DAY_MAX,
            f"{waits.pings} pings, {waits.check_ins} check-ins, a connection; {counted}",
        ),
        Figure("idle", "the same when the run is over", of_a_day(over), "MB"),
        Figure("idle", "the same with the gate closed", of_a_day(closed), "MB"),
        Figure("idle", "a ping and its answer", ping, "bytes", None, f"{seen}; {expected}"),
        Figure("idle", "a check-in and its acknowledgement", check_in, "bytes"),
        Figure(
            "idle",
            "a reconnection: TCP, TLS, CONNECT, SUBSCRIBE, check-in",
            connect,
            "bytes",
            None,
            f"{run.connect.segments} segments",
        ),
    ]


def cpu_figures(run: IdleRun) -> list[Figure]:
    """CPU of the whole process, all threads."""
    share = run.cpu_s / run.seconds
    return [
        Figure(
            "cpu",
            "idle CPU, of one core",
            100.0 * share,
            "%",
            100.0 * CPU_SHARE_MAX,
            f"{1e3 * run.cpu_s:.0f} ms in {run.seconds:.0f} s; {share * DAY_S:.0f} s a day",
        ),
        Figure("cpu", "times a second that a thread goes to sleep", run.naps / run.seconds, "/s"),
        Figure("cpu", "resident memory meanwhile, with TLS", run.resident_bytes / MIB, "MiB"),
    ]
