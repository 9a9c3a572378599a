"""How often a device's loop wakes: a fake clock, and counts instead of times."""

import queue
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from paho.mqtt.client import Client

from edge_sdk import Conditions, Policy
from edge_sdk._running import _ITEMS_A_TURN, Running, _Inbox
from edge_sdk.energy import Energy
from edge_sdk.fine_tuning import FineTuneWork, FineTuningError
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import GATE_EVERY_S
from edge_sdk.signals import GateClosed
from fleet.toy import ToyTask
from wire import BrokerAddress, MqttLink, Plan, Report, Traffic
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


class ToldDriver(StillDriver):
    """One that writes down what it is told."""

    is_uploading = False

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, 384.0)
        self.told: list[Any] = []

    def on_gate(self, gate: object, _now_s: float) -> None:
        self.told.append(gate)

    def on_link_up(self, _packet_bytes_max: int, _now_s: float) -> None:
        self.told.append("up")

    def on_link_down(self, _now_s: float) -> None:
        self.told.append("down")

    def leave(self) -> None:
        self.told.append("leave")

    def work_done(self, _work: object, event: object, _now_s: float) -> None:
        self.told.append(event)


class StillLink:
    """A link over which nothing goes."""

    up, in_flight = False, 0

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> None:
        """Nothing was begun."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("edge_sdk._running.time.monotonic", lambda: clock.now_s)
    return clock


def made(
    directory: Path, clock: Clock, observe: Any = lambda _report: None, policy: Any = None
) -> Any:
    running: Any = Running(
        lock=InstanceLock(directory),
        journal=SqliteJournal(directory),
        conditions=Conditions,
        policy=policy or Policy(),
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


# -- what the owner has said ---------------------------------------------------------------------


def told(directory: Path, clock: Clock, **options: Any) -> tuple[Any, ToldDriver]:
    running = made(directory, clock, **options)
    running.driver = driver = ToldDriver(clock)
    return running, driver


def test_a_device_that_starts_opted_out_never_thinks_that_it_may(
    tmp_path: Path, clock: Clock
) -> None:
    said: list[Report] = []
    SqliteJournal(tmp_path).set_opted_out(opted_out=True)
    running, driver = told(tmp_path, clock, observe=said.append)
    running.begin()
    assert driver.told == [GateClosed("opted_out")]
    assert (running.link.starts, [r.what for r in said]) == (0, ["waits", "opted_out"])


def test_a_device_that_leaves_opted_out_says_that_and_nothing_else(
    tmp_path: Path, clock: Clock
) -> None:
    """A sealed update would be offered by a driver that hears of a link."""
    SqliteJournal(tmp_path).set_opted_out(opted_out=True)
    running, driver = told(tmp_path, clock)
    running.begin()
    running.leave()
    assert running.link.starts == 1
    driver.told.clear()
    running.is_up(100_000)
    assert driver.told == ["leave"]


def test_a_link_that_came_up_before_it_was_hung_up_is_not_up(tmp_path: Path, clock: Clock) -> None:
    running, driver = told(tmp_path, clock)
    running.begin()
    running.link_up(100_000)
    running._journal.set_opted_out(opted_out=True)
    running.look_for_owner(at_once=True)
    running._inbox.get_nowait()(running)
    assert "up" not in driver.told


def test_who_opts_in_with_no_bytes_left_stays_hung_up(tmp_path: Path, clock: Clock) -> None:
    SqliteJournal(tmp_path).set_opted_out(opted_out=True)
    running, driver = told(tmp_path, clock, policy=Policy(bytes_per_day_max=1_000))
    running.link.traffic.sent_bytes = 1_000
    running.begin()
    running._journal.set_opted_out(opted_out=False)
    running.look_for_owner(at_once=True)
    assert driver.told[-1] == GateClosed("byte_budget_spent")
    assert running.link.starts == 0


# -- one piece of work after the other -----------------------------------------------------------


class SomeWork:
    """Work of the session's."""

    stopped = False

    def stop(self) -> None:
        self.stopped = True

    def run(self) -> str:
        return "done"


def fine_tuning(*, anyway: bool = True) -> Any:
    return FineTuneWork(Plan(), ToyTask().model(), cast("Any", None), cast("Any", None), anyway)


def test_nothing_begins_until_the_end_of_what_was_before_is_heard(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the budgets would take one's time for the other's."""
    running, driver = told(tmp_path, clock)
    running.begin()
    work = SomeWork()
    monkeypatch.setattr("edge_sdk._running.round_of", lambda _work: 1)
    running.start_work(work)
    running.training._thread.join()
    running.tunings.append(tuning := fine_tuning())
    running._tune()
    assert running._tuning is None  # its end waits in the queue
    clock.now_s += 7.0
    running._inbox.get_nowait()(running)
    assert driver.told[-1] == "done"
    running._tune()
    assert running._tuning is tuning
    running.close()


def test_fine_tuning_behind_a_trainer_that_hangs_is_refused(tmp_path: Path, clock: Clock) -> None:
    running, _driver = told(tmp_path, clock)
    running.training.hung = True
    running.tunings.extend([one := fine_tuning(), other := fine_tuning()])
    running._tune()
    for work in (one, other):
        assert isinstance(work.result, FineTuningError)
        assert work.result.reason == "trainer_hung"


def test_fine_tuning_that_hangs_lets_its_app_go_on_and_changes_nothing_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _driver = told(tmp_path, clock)
    running.begin()
    running._tuning = running.training.work = work = fine_tuning()
    running.training.hung = True
    monkeypatch.setattr(running.training, "look", lambda _now_s: True)
    running._mind_trainer(clock.now_s)
    assert isinstance(work.result, FineTuningError)
    assert work.result.reason == "trainer_hung"
    work.new_personal = ToyTask().model().tensors
    running._tuned(work, cast("Any", None))  # the driver here has no `personalise`
    assert isinstance(work.result, FineTuningError)


def test_a_device_that_is_over_says_so_to_whoever_waits(tmp_path: Path, clock: Clock) -> None:
    running, _driver = told(tmp_path, clock)
    assert not running.closed
    running.close()
    assert running.closed
    running.fine_tune(fine_tuning())  # taken by nobody, and returns
