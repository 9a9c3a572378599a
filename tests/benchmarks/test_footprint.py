"""What the footprint's arithmetic says, and that its parts measure what they say."""

import contextlib
import os
import socket
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.counting_relay import HEADER_BYTES, HOST, Exchange, Relay, RelayError
from benchmarks.footprint import PARTS, Figure, lines
from benchmarks.footprint_day import DAY_S, Day, day_bytes, idle_day
from benchmarks.footprint_idle import IdleRun, cpu_figures, traffic_figures
from benchmarks.footprint_install import disk_bytes, first_error
from benchmarks.footprint_loop import figures_of
from benchmarks.footprint_work import beyond_training_s, tree_bytes
from benchmarks.gateway_process import RoundBenchError
from benchmarks.sensor_loop import Row
from potluck.bench_footprint import PARTS as NAMED
from quantization import CODEC_NAMES
from wire import Address, Ed25519, frames
from wire.link import publish_packet_bytes
from wire.messages import Available

TRAFFIC_BYTES_A_DAY_MAX = 500_000
# TLS 1.3 adds a header, a tag and the kind of its content to a record: 5 + 16 + 1.
TLS_RECORD_BYTES = 22
# An exchange is a segment there, one back, and the acknowledgement of that one.
SEGMENTS = 3


def test_the_command_names_the_parts_that_there_are() -> None:
    assert list(NAMED) == list(PARTS)


# -- a day ---------------------------------------------------------------------------------------


def check_in_wire_bytes() -> int:
    """The largest check-in that a device of today sends, and its PUBACK, with all their headers."""
    device = Address("a-federation-of-some-name", "d" * 16, "up")
    signer = Ed25519().signer(bytes(range(32)))
    message = Available(
        2**40,
        480.0,
        10**6,
        10**6,
        bytes(32),
        "a-device-class",
        0.5,
        codecs=CODEC_NAMES,
        stays_s=1e5,
    )
    packet = publish_packet_bytes(
        device.topic, len(frames.seal(message, device, signer)), mqtt5=True
    )
    return packet + 4 + 2 * TLS_RECORD_BYTES + SEGMENTS * HEADER_BYTES


def test_an_idle_day_stays_within_half_a_megabyte() -> None:
    ping = 2 * (2 + TLS_RECORD_BYTES) + SEGMENTS * HEADER_BYTES
    for answered_s in (None, 3_600.0):
        day = idle_day(answered_s=answered_s)
        total = day_bytes(
            day, connect=10_000, check_in=check_in_wire_bytes(), ping=ping, reconnects=1
        )
        assert total <= TRAFFIC_BYTES_A_DAY_MAX


def test_check_ins_in_vain_come_further_apart_up_to_a_bound() -> None:
    at_s = idle_day().check_ins_at_s
    apart_s = [after - before for before, after in pairwise(at_s)]
    assert apart_s[:3] == [96.0, 192.0, 384.0]
    assert set(apart_s[3:]) == {384.0}


@settings(max_examples=50)
@given(
    seconds=st.floats(1.0, 10_000.0),
    check_in_s=st.floats(20.0, 7_200.0),
    forecast_s=st.floats(0.0, DAY_S),
)
def test_a_day_begins_with_a_check_in_and_longer_days_have_more(
    seconds: float, check_in_s: float, forecast_s: float
) -> None:
    whole = idle_day(seconds=seconds, check_in_s=check_in_s, forecast_s=forecast_s)
    half = idle_day(seconds=seconds / 2, check_in_s=check_in_s, forecast_s=forecast_s)
    assert whole.check_ins_at_s[0] == 0.0
    assert whole.check_ins_at_s[: half.check_ins] == half.check_ins_at_s
    assert half.check_ins <= whole.check_ins <= seconds / 10.0 + 1.0


def test_a_day_costs_its_events_and_the_first_check_in_comes_with_the_connection() -> None:
    day = Day((0.0, 96.0, 288.0), 10)
    assert day_bytes(day, connect=1_000, check_in=100, ping=1, reconnects=1) == 1_210
    assert day_bytes(day, connect=1_000, check_in=100, ping=1, reconnects=3) == 3_210
    assert day_bytes(Day((), 10), connect=0, check_in=100, ping=1, reconnects=0) == 10


def idle_seen(*, pings: int = 2, check_ins: int = 2) -> IdleRun:
    return IdleRun(
        seconds=100.0,
        cpu_s=0.05,
        naps=50.0,
        resident_bytes=50 * 2**20,
        connect=Exchange(0.0, 2_000, 3_000, 20),
        pings=tuple(Exchange(60.0 * n, 24, 24, 3) for n in range(pings)),
        check_ins=tuple(Exchange(90.0 * n, 278, 26, 3) for n in range(check_ins)),
        expected=idle_day(seconds=100.0),
    )


def test_what_was_seen_becomes_figures_of_a_day() -> None:
    first, *_others = traffic_figures(idle_seen())
    day = idle_day()
    assert first.measured == pytest.approx(
        (6_040 + (day.check_ins - 1) * 460 + day.pings * 204) / 1e6
    )
    share, naps, resident = cpu_figures(idle_seen())
    assert share.measured == pytest.approx(0.05)
    assert (share.limit, naps.measured, resident.measured) == (0.1, 0.5, 50.0)


@pytest.mark.parametrize(("pings", "check_ins"), [(0, 1), (1, 0)])
def test_a_day_is_not_made_of_events_that_nobody_saw(pings: int, check_ins: int) -> None:
    with pytest.raises(RoundBenchError, match="no ping or no check-in"):
        traffic_figures(idle_seen(pings=pings, check_ins=check_ins))


# -- rounds, disks, tables -----------------------------------------------------------------------


def test_training_is_not_of_the_cost_beyond_training() -> None:
    settled = [
        {"cpu_s": 1.0, "trainer_s": 0.5},
        {"cpu_s": 2.0, "trainer_s": 1.25},
        {"cpu_s": 4.0, "trainer_s": 2.0},
    ]
    assert beyond_training_s(settled) == [0.25, 1.25]


def test_a_file_with_two_names_takes_its_room_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(100_000))
    alone = disk_bytes([tmp_path])
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert disk_bytes([tmp_path]) == alone >= 100_000
    assert disk_bytes([]) == 0


def test_of_all_that_pip_says_the_first_error_is_told() -> None:
    said = "Looking\n  ERROR: no such version\nerror: subprocess\nERROR: Failed to build\n"
    assert first_error(said) == "no such version"
    assert first_error("one\ntwo\n") == "two"
    assert first_error("") == "nothing"


def test_a_limit_is_kept_or_missed_in_words() -> None:
    kept = Figure("cpu", "idle CPU", 0.1, "%", 0.1)
    missed = Figure("memory", "PSS at work", 91.0, "MiB", 90.0)
    nan = Figure("memory", "nothing", float("nan"), "MiB", 90.0)
    told = Figure("install", "NumPy", 75.8, "MB")
    assert [one.missed for one in (kept, missed, nan, told)] == [False, True, True, False]
    assert lines([kept, told])[-1] == "all 1 limits kept"
    text = lines([kept, missed, told])
    assert text[-1] == "1 of 2 limits missed: PSS at work"
    assert "MISSED" in text[2]


def test_the_loop_is_held_to_what_it_misses_alone_and_only_in_real_time() -> None:
    def row(case: str, missed: int, *, real_time: bool) -> Row:
        return Row(case, real_time, 500, missed, 3, 11.0, 12.0, 10.5, 0.1, 0.2, 20.0)

    rows = [
        row("the loop alone", 4, real_time=False),
        row("17k parameters", 9, real_time=False),
        row("the loop alone", 0, real_time=True),
        row("17k parameters", 1, real_time=True),
    ]
    found = figures_of(rows)
    assert [one.what for one in found if one.missed] == [
        "missed deadlines, 17k parameters, in real time"
    ]
    assert [one.limit for one in figures_of(rows[:2])] == [None] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="proportional memory is Linux's")
def test_a_process_has_no_more_in_proportion_than_is_resident() -> None:
    proportional, resident = tree_bytes(os.getpid())
    assert 0 < proportional <= resident


# -- the relay -----------------------------------------------------------------------------------


class Echo:
    """A broker of a kind: it answers whatever comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(65_536):
                peer.sendall(data)

    def close(self) -> None:
        self._listener.close()


def connect(relay: Relay) -> socket.socket:
    peer = socket.create_connection((HOST, relay.port), timeout=5.0)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def is_closed(peer: socket.socket) -> bool:
    """Whether the other side has hung up, with a word or without."""
    try:
        return peer.recv(1) == b""
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="segments are counted by Linux")
def test_an_exchange_is_counted_with_its_segments() -> None:
    echo = Echo()
    relay = Relay(echo.port)
    try:
        with connect(relay) as peer:
            for count in (1, 2, 3):  # the first acknowledgements of a connection are not delayed
                peer.sendall(b"x" * 24)
                assert len(peer.recv(100)) == 24
                threading.Event().wait(1.0)
                assert len(relay.exchanges) == count
        last = relay.exchanges[-1]
        assert (last.up_bytes, last.down_bytes, last.segments) == (24, 24, 3)
        assert last.wire_bytes == 48 + 3 * HEADER_BYTES
    finally:
        relay.close()
        echo.close()


def test_a_relay_that_is_cut_takes_nobody_until_it_is_mended() -> None:
    echo = Echo()
    relay = Relay(echo.port)
    try:
        relay.cut_after(1_000)
        with connect(relay) as peer:
            peer.sendall(bytes(2_000))
            relay.wait_for_cut(5.0)
            assert relay.up_bytes == 2_000
        with connect(relay) as peer:
            assert is_closed(peer)
        relay.mend()
        with connect(relay) as peer:
            peer.sendall(b"again")
            assert peer.recv(100) == b"again"
        with pytest.raises(RelayError, match="have gone up"):
            relay.wait_for_cut(0.0)
    finally:
        relay.close()
        echo.close()
