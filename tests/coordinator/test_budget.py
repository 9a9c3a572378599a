"""A byte budget for the whole federation, deadlines that follow what was measured, and pacing."""

from pathlib import Path

import msgspec
import pytest

from coordinator.config import Rounds, Selection
from coordinator.course import BYTE_BUDGET_SPENT
from coordinator.pace import AWAY_S_MAX
from tests.support.loopback import Loopback
from wire import Message, frames, topics
from wire.messages import ComeBackAt

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

ROUNDS = Rounds(count=30, cohort=4, quorum=0.5, deadline_s=60.0)


def with_rounds(directory: Path, rounds: Rounds, count: int = 6) -> Loopback:
    loopback = Loopback(directory, count=count, rounds=rounds)
    loopback.start()
    loopback.play()
    return loopback


def test_a_federation_ends_before_the_round_that_its_bytes_may_not_cover(tmp_path: Path) -> None:
    budget = 60_000
    loopback = with_rounds(tmp_path, msgspec.structs.replace(ROUNDS, bytes_max=budget))
    coordinator = loopback.coordinator
    assert coordinator.finished
    assert coordinator.rounds.course.ended == BYTE_BUDGET_SPENT
    closed = coordinator.store.last_round()
    assert 1 <= closed < 30
    at_close = sum(coordinator.store.closed_bytes())
    assert at_close + max(coordinator.store.closed_bytes()[-5:]) > budget - 2_000
    assert at_close <= budget
    assert [r.what for r in loopback.reports].count(BYTE_BUDGET_SPENT) == 1
    # What came of it is released, and devices are told that nothing more comes.
    assert {device.released.version for device in loopback.devices} == {closed}


def test_what_was_spent_before_a_restart_is_spent(tmp_path: Path) -> None:
    loopback = with_rounds(tmp_path, msgspec.structs.replace(ROUNDS, count=3))
    spent = sum(loopback.coordinator.store.closed_bytes())
    assert spent > 0
    loopback.coordinator.store.close()
    tight = msgspec.structs.replace(ROUNDS, bytes_max=spent + 10)
    loopback.config = msgspec.structs.replace(loopback.config, rounds=tight)
    again = loopback.boot_coordinator()
    assert again.rounds.course.spent_bytes == spent
    again.start(loopback.now_s)
    again.on_link_up(131_072, loopback.now_s)
    loopback.play()
    assert again.rounds.course.ended == BYTE_BUDGET_SPENT
    assert again.store.last_round() == 3


def test_a_budget_that_is_raised_lets_the_federation_go_on(tmp_path: Path) -> None:
    loopback = with_rounds(tmp_path, msgspec.structs.replace(ROUNDS, count=6, bytes_max=20_000))
    stopped_at = loopback.coordinator.store.last_round()
    assert stopped_at < 6
    loopback.coordinator.store.close()
    more = msgspec.structs.replace(ROUNDS, count=6)
    loopback.config = msgspec.structs.replace(loopback.config, rounds=more)
    again = loopback.boot_coordinator()
    again.start(loopback.now_s)
    again.on_link_up(131_072, loopback.now_s)
    loopback.play(until_s=loopback.now_s + 20_000.0)
    assert again.store.last_round() == 6
    assert not again.rounds.course.ended


def test_an_open_round_remembers_its_bytes_over_a_crash(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=6, rounds=ROUNDS)
    loopback.start()
    loopback.now_s += 2.5
    loopback.coordinator.wake(loopback.now_s)
    while not loopback.coordinator.rounds.is_open:
        if not loopback.deliver():
            loopback.now_s += 1.0
            loopback.coordinator.wake(loopback.now_s)
    loopback.coordinator.stop()
    spent = loopback.coordinator.rounds.course.spent_bytes
    loopback.coordinator.store.close()
    again = loopback.boot_coordinator()
    again.start(loopback.now_s)
    assert again.rounds.course.spent_bytes == pytest.approx(spent, abs=2_000)
    assert again.rounds.course.spent_bytes > 0


# -- pacing in the service -----------------------------------------------------------------------


def test_a_fleet_that_is_too_large_for_the_rate_is_told_to_stay_away_and_is_still_invited(
    tmp_path: Path,
) -> None:
    said: list[tuple[str, Message]] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        address = topics.parse(topic)
        if address.direction == "down":
            said.append((address.device, frames.decode(frames.parse(data), address)))
        return [data]

    rounds = Rounds(count=4, cohort=10, quorum=0.5, deadline_s=60.0)
    loopback = Loopback(tmp_path, count=40, rounds=rounds, tamper=listen)
    slow = Selection(check_ins_per_s_max=0.1)
    loopback.config = msgspec.structs.replace(loopback.config, selection=slow)
    loopback.coordinator.store.close()
    loopback.boot_coordinator()
    loopback.start()
    loopback.play(until_s=5_000.0)
    silent = [m.after_s for _, m in said if isinstance(m, ComeBackAt) and m.reason == "not_needed"]
    assert silent
    assert 40 / 0.1 * 0.2 < max(silent) <= min(AWAY_S_MAX, 1.5 * 40 / 0.1)
    # Whoever is silent can be invited all the same: no round waits for a check-in.
    assert loopback.coordinator.finished
    assert loopback.coordinator.models.version == 4
    took = loopback.now_s - 1_000.0
    assert took < 60.0


def test_after_a_restart_as_many_are_recalled_at_once_as_a_round_needs(tmp_path: Path) -> None:
    said: list[float] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        address = topics.parse(topic)
        if address.direction == "down":
            message = frames.decode(frames.parse(data), address)
            if isinstance(message, ComeBackAt) and message.reason == "coordinator_is_back":
                said.append(message.after_s)
        return [data]

    rounds = Rounds(count=1, cohort=4, quorum=0.5, every_s=3_600.0)
    loopback = Loopback(tmp_path, count=30, rounds=rounds, tamper=listen)
    loopback.start()
    while loopback.deliver():
        pass
    loopback.coordinator.stop()
    loopback.coordinator.store.close()
    said.clear()
    again = loopback.boot_coordinator()
    again.start(loopback.now_s)
    again.on_link_up(131_072, loopback.now_s)
    assert len(said) == 30
    assert said.count(0.0) == 2 * rounds.to_invite + 1
    assert max(said) == pytest.approx((29 - 2 * rounds.to_invite) / 20.0)
