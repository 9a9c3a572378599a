"""Tokens that are no use, and clocks that jump a year: one line, or nothing at all."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import EmbeddedBroker
from edge_sdk import Conditions, EnrolmentError, Policy
from edge_sdk._gatekeeper import Gatekeeper, Moment
from edge_sdk.energy import Energy
from edge_sdk.journal import MemoryJournal, SqliteJournal
from edge_sdk.signals import GateClosed, GateOpened
from tests.support.federated import Federated
from tests.support.processes import until
from wire import Report
from wire.token import TokenFileError

YEAR_S = 365.25 * 86_400.0
MONDAY_S = 1_767_571_200.0


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and 20 < len(str(error)) < 400


@pytest.mark.live
@pytest.mark.timeout(60)
def test_of_two_devices_with_one_token_one_joins_and_the_other_is_told(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    federated = Federated(tmp_path, broker.url)
    one = tmp_path / "one-token"
    one.write_bytes(federated.tokens.read_bytes().splitlines()[0])
    devices = [federated.device(number) for number in (1, 2)]
    errors: list[EnrolmentError] = []

    def enrol(number: int) -> None:
        try:
            devices[number].enroll(one, timeout_s=10.0)
        except EnrolmentError as error:
            errors.append(error)

    threads = [threading.Thread(target=enrol, args=(number,)) for number in (0, 1)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (error,) = errors
        assert one_line(error)
        assert "used by another device" in str(error)
        assert sum(SqliteJournal(d.state_dir).enrolment is not None for d in devices) == 1
    finally:
        federated.close()


@pytest.mark.live
@pytest.mark.timeout(60)
def test_a_token_that_is_old_or_cut_short_or_anothers_is_one_line(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    old, other = tmp_path / "old", tmp_path / "other"
    old.mkdir()
    federated = Federated(old, broker.url, made_before_s=YEAR_S)
    try:
        with pytest.raises(EnrolmentError, match="expired") as caught:
            federated.device(1).enroll(federated.tokens)
        assert one_line(caught.value)
        whole = federated.tokens.read_bytes().splitlines()[0]
        cut = tmp_path / "cut"
        for length in (1, len(whole) // 2, len(whole) - 1):
            cut.write_bytes(whole[:length])
            with pytest.raises(TokenFileError) as short:
                federated.device(1).enroll(cut)
            assert one_line(short.value)
        tokens = federated.tokens.read_bytes()
    finally:
        federated.close()
    other.mkdir()
    federated = Federated(other, broker.url)
    try:
        # Of another coordinator, whose keys nobody here has.
        strange = tmp_path / "strange"
        strange.write_bytes(tokens)
        with pytest.raises(EnrolmentError, match="did not answer") as unheard:
            federated.device(1).enroll(strange, timeout_s=1.5)
        assert one_line(unheard.value)
        device = federated.device(2)
        device.enroll(federated.tokens)
        with pytest.raises(EnrolmentError, match="another coordinator"):
            device.enroll(strange)
    finally:
        federated.close()


@pytest.mark.live
@pytest.mark.timeout(60)
def test_a_clock_that_jumps_a_year_while_a_device_runs_stalls_nothing(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk._gatekeeper.GATE_EVERY_S", 0.05)
    jumps, jumped, right = [0.0], [0], time.time

    class Clock:
        def __getattr__(self, name: str) -> object:
            return getattr(time, name)

        def time(self) -> float:
            return right() + jumps[0]

    monkeypatch.setattr("edge_sdk._running.time", Clock())
    federated = Federated(tmp_path, broker.url)
    try:
        device = federated.device(1, policy=Policy(bytes_per_day_max=10_000_000))
        device.enroll(federated.tokens)
        device.start()
        over = threading.Event()

        def jump() -> None:
            while not over.wait(0.05):
                jumps[0] = {0.0: YEAR_S, YEAR_S: -YEAR_S}.get(jumps[0], 0.0)
                jumped[0] += 1

        jumper = threading.Thread(target=jump)
        jumper.start()
        # What each day has cost is for the next tests: how much falls into one jump is chance here.
        until(lambda: device.model.version == 2 and jumped[0] >= 6, "the release")
        over.set()
        jumper.join()
        assert device.error is None
        assert device.running
        device.stop()
    finally:
        federated.close()


@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
def test_a_jump_opens_no_budget_twice_and_a_jump_back_finds_it_spent(jump_s: float) -> None:
    passed, journal = [0], MemoryJournal()
    keeper = Gatekeeper(
        policy=Policy(bytes_per_day_max=10_000),
        conditions=Conditions,
        journal=journal,
        energy=Energy(),
        traffic=lambda: (passed[0], 0),
    )

    def look(second: float, jumped_s: float = 0.0) -> str:
        keeper.look(Moment(second, MONDAY_S + second + jumped_s, second))
        gate = keeper.gate
        return gate.reason if isinstance(gate, GateClosed) else "open"

    assert look(0.0) == "open"
    passed[0] = 10_000
    assert look(5.0) == "byte_budget_spent"
    assert look(10.0, jump_s) == "open"
    assert not keeper.hangs_up
    passed[0] += 10_000
    assert look(15.0, jump_s) == "byte_budget_spent"
    assert look(20.0, jump_s) == "byte_budget_spent"
    assert look(25.0) == "byte_budget_spent"
    assert keeper.hangs_up


def test_no_packet_passes_the_days_bytes_and_the_rest_of_the_day_is_for_answers() -> None:
    passed = [0]
    keeper = Gatekeeper(
        policy=Policy(bytes_per_day_max=10_000),
        conditions=Conditions,
        journal=MemoryJournal(),
        energy=Energy(),
        traffic=lambda: (passed[0], 0),
    )
    keeper.look(Moment(0.0, MONDAY_S, 0.0))
    assert keeper.may_send(8_976)
    passed[0] = 9_000
    assert not keeper.may_send(500)
    assert keeper.due_s == 0.0
    assert keeper.may_send(500, last_word=True)
    assert not keeper.may_send(1_001, last_word=True)
    gate = keeper.look(Moment(1.0, MONDAY_S + 1.0, 1.0))
    assert gate == GateClosed("byte_budget_spent")
    assert keeper.means().room.traffic_bytes == 0.0
    # Until midnight, whatever fits.
    assert keeper.look(Moment(2.0, MONDAY_S + 2.0, 2.0)) is None
    assert isinstance(keeper.look(Moment(3.0, MONDAY_S + 86_400.0, 3.0)), GateOpened)


def test_work_is_looked_at_when_its_seconds_are_used_up_and_not_later() -> None:
    keeper = Gatekeeper(
        policy=Policy(training_s_per_day_max=0.7),
        conditions=Conditions,
        journal=MemoryJournal(),
        energy=Energy(),
        traffic=lambda: (0, 0),
    )
    keeper.look(Moment(0.0, MONDAY_S, 0.0))
    keeper.work_begins(1.0)
    assert keeper.due_s == pytest.approx(1.5)
    keeper.look(Moment(1.5, MONDAY_S, 0.0))
    assert keeper.due_s == pytest.approx(1.7)
    assert keeper.look(Moment(1.7, MONDAY_S, 0.0)) == GateClosed("training_budget_spent")


@pytest.mark.live
@pytest.mark.timeout(90)
def test_a_device_whose_bytes_are_spent_hangs_up_until_the_next_day_and_can_leave(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk._gatekeeper.GATE_EVERY_S", 0.05)
    # Invitations that the bytes do not do for are turned down again and again, and cost some.
    monkeypatch.setattr("edge_sdk.session.TURN_DOWN_PAUSE_S", 0.05)
    days = [0]

    class Clock:
        def __getattr__(self, name: str) -> object:
            return getattr(time, name)

        def time(self) -> float:
            return time.time() + 86_400.0 * days[0]

    monkeypatch.setattr("edge_sdk._running.time", Clock())
    federated = Federated(tmp_path, broker.url, rounds=30, deadline_s=4.0)
    reports: list[Report] = []
    try:
        budget = 8_000
        device = federated.device(
            1, policy=Policy(bytes_per_day_max=budget), on_report=reports.append
        )
        device.enroll(federated.tokens)
        device.start()
        for day in range(2):
            days[0] = day
            before = device.status.counted
            until(lambda b=before: device.status.counted > b, "an update")  # type: ignore[misc] # bound at once
            until(lambda: device.status.waits == "byte_budget_spent", "the bytes to be spent")
            running = device._current
            assert running is not None
            until(lambda r=running: not r.link.up, "the link to be down")  # type: ignore[misc] # as above
        assert not any(report.what == "broker_down" for report in reports)
        journal = SqliteJournal(device.state_dir, read_only=True)
        spent = journal.spent_by_day()
        journal.close()
        assert len(spent) == 2
        assert all(each.traffic_bytes <= budget + 256 for each in spent.values())
        assert device.leave()
    finally:
        federated.close()
