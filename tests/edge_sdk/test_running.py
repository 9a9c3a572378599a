"""How often a device's loop wakes: a fake clock, and counts instead of times."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client

from edge_sdk import Conditions, Policy
from edge_sdk._running import _ITEMS_A_TURN, Running, _Inbox
from edge_sdk.energy import Energy
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import GATE_EVERY_S
from wire import BrokerAddress, MqttLink, Report, Traffic
from wire.guarded_client import PING_LOOK_S
from wire.link import KEEPALIVE_S
from wire.lock import InstanceLock

HOUR_S = 3_600.0


class Clock:
    """Moves when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.waits = 0

    def wait(self, timeout_s: float) -> None:
        self.waits += 1
        self.now_s += max(timeout_s, 0.001)


class StillDriver:
    """A driver that is given nothing, and checks in when it said it would."""

    def __init__(self, clock: Clock, every_s: float) -> None:
        self.next_wake_s = clock.now_s
        self.check_ins = 0
        self._every_s = every_s

    def wake(self, now_s: float) -> None:
        if now_s >= self.next_wake_s:
            self.check_ins += 1
            self.next_wake_s = now_s + self._every_s

    def on_gate(self, gate: object, now_s: float) -> None:
        """Nobody is told."""

    def send_more(self, now_s: float) -> None:
        """There is nothing to send."""


class StillLink:
    """A link over which nothing goes."""

    traffic = Traffic()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("edge_sdk._running.time.monotonic", lambda: clock.now_s)
    return clock


def made(directory: Path, clock: Clock, observe: Any = lambda _report: None) -> Any:
    running: Any = Running(
        lock=InstanceLock(directory),
        journal=SqliteJournal(directory),
        conditions=Conditions,
        policy=Policy(),
        energy=Energy(training_w=1.0, up_j_per_mb=1.0, down_j_per_mb=1.0),
        observe=observe,
    )
    running.driver, running.link = StillDriver(clock, 384.0), StillLink()
    return running


def test_an_idle_hour_wakes_the_loop_for_its_looks_and_its_check_ins_alone(
    tmp_path: Path, clock: Clock
) -> None:
    running = made(tmp_path, clock)
    running._inbox.wait = clock.wait
    until_s = clock.now_s + HOUR_S
    while clock.now_s < until_s:
        running.turn()
    assert clock.waits <= HOUR_S / GATE_EVERY_S + running.driver.check_ins + 1
    assert running.driver.check_ins == 10


def test_a_link_looks_for_a_ping_seldom_and_never_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """MQTT 5.0, section 3.1.2.10: a broker waits one and a half times the keepalive."""
    asked = []
    monkeypatch.setattr(
        Client, "loop_forever", lambda _self, timeout, _retry: asked.append(timeout)
    )
    link = MqttLink(
        BrokerAddress("gateway", 1883, tls=False),
        "d1",
        subscriptions=(),
        on_message=lambda _topic, _payload: None,
        on_up=lambda _bytes: None,
        on_down=lambda _why: None,
    )
    link._client.loop_forever(retry_first_connection=True)
    assert asked == [PING_LOOK_S]
    assert KEEPALIVE_S + 2 * PING_LOOK_S < 1.5 * KEEPALIVE_S


def test_whatever_is_put_or_rung_before_or_during_a_wait_ends_it() -> None:
    inbox = _Inbox(8)

    def put() -> None:
        inbox.put_nowait(lambda _r: None)

    for arrive in (put, inbox.ring):
        arrive()
        inbox.wait(60.0)
        thread = threading.Timer(0.01, arrive)
        while not inbox.empty():
            inbox.get_nowait()
        thread.start()
        inbox.wait(60.0)
        thread.join()
        while not inbox.empty():
            inbox.get_nowait()


def test_a_wait_swallows_what_rang_before_and_no_item() -> None:
    inbox = _Inbox(8)
    for _ in range(5):
        inbox.ring()
    inbox.put_nowait(lambda _r: None)
    inbox.wait(60.0)
    assert inbox._bell.empty()
    assert inbox.qsize() == 1
    inbox.get_nowait()
    inbox.wait(0.001)  # nothing rings any more: time is up


def test_more_than_a_turn_takes_is_taken_by_the_next_without_a_wait(
    tmp_path: Path, clock: Clock
) -> None:
    said: list[Report] = []
    running = made(tmp_path, clock, said.append)
    for number in range(_ITEMS_A_TURN + 1):
        running._inbox.put_nowait(lambda r, n=number: r.observe(Report("item", str(n))))
    running.turn()
    running.turn()
    taken = [report.detail for report in said if report.what == "item"]
    assert taken == [str(n) for n in range(_ITEMS_A_TURN + 1)]
    with pytest.raises(queue.Empty):
        running._inbox.get_nowait()
