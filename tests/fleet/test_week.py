"""Seven days of a flapping gate, and the mistakes in budgets and gates that they have to find."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from edge_sdk import Conditions, Policy, _gatekeeper, journal
from edge_sdk._gatekeeper import Gatekeeper
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import GATE_EVERY_S
from edge_sdk.quiet import QuietHours
from edge_sdk.signals import Spent
from fleet import week
from fleet.device_host import DeviceHost
from fleet.flapping import Flapping
from fleet.nemesis import try_seed
from fleet.week import week_schedule

SEEDS_MAX = 30
Patch = pytest.MonkeyPatch


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


def test_a_week_follows_from_its_seed() -> None:
    assert week_schedule(3, 4) == week_schedule(3, 4)
    assert week_schedule(3, 4) != week_schedule(4, 4)


def test_what_flaps_is_looked_up_and_ends_well() -> None:
    policy = Policy(cpu_load_max=0.5)
    line = Flapping(7, policy, week.WEEK_S)
    changes, now_s = 0, 0.0
    while (at_s := line.next_change_s(now_s)) is not None:
        before, after = line.at(at_s - 1e-6), line.at(at_s)
        changes, now_s = changes + (before != after), at_s
    assert changes > 100
    good = line.at(2 * week.WEEK_S)
    assert good["temperature_c"] < policy.max_temperature_c - 5.0
    assert good["free_disk_bytes"] > 1.25 * policy.min_free_disk_bytes
    assert not good["metered"]
    assert line.forbidden_s(0.0, week.WEEK_S)[0] > 1.0


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(4))
def test_no_budget_is_exceeded_and_nothing_is_lost_in_a_week(seed: int) -> None:
    trial = try_seed(seed, "week")
    assert trial.violation is None


def budget_forgotten_on_reboot(patch: Patch) -> None:
    right = SqliteJournal.begin_boot

    def wrong(self: Any) -> Any:
        self._db.execute("DELETE FROM spent")
        return right(self)

    patch.setattr(SqliteJournal, "begin_boot", wrong)


def budget_that_a_clock_step_fills_again(patch: Patch) -> None:
    right = SqliteJournal.spend

    def wrong(self: Any, day: int, more: Spent) -> Spent:
        self._db.execute("DELETE FROM spent WHERE day != ?", (day,))
        return right(self, day, more)

    patch.setattr(SqliteJournal, "spend", wrong)


def day_that_begins_by_the_monotonic_clock(patch: Patch) -> None:
    right = Gatekeeper.look

    def wrong(self: Any, at: Any) -> Any:
        return right(self, _gatekeeper.Moment(at.now_s, at.now_s, at.local_s))

    patch.setattr(Gatekeeper, "look", wrong)


def bytes_counted_after_they_are_sent(patch: Patch) -> None:
    right = Gatekeeper.may_send
    patch.setattr(Gatekeeper, "may_send", lambda self, *_: right(self, 0, last_word=True))


def gate_not_looked_at_during_training(patch: Patch) -> None:
    patch.setattr(Gatekeeper, "_look_again_s", lambda _self: 12 * GATE_EVERY_S)


def link_kept_up_when_the_bytes_are_spent(patch: Patch) -> None:
    patch.setattr(Gatekeeper, "hangs_up", property(lambda _self: False))


def log_that_is_never_folded_in(patch: Patch) -> None:
    patch.setattr(journal, "WAL_PAGES_MAX", 10**6)


def quiet_hours_of_another_place(patch: Patch) -> None:
    right = QuietHours.look
    patch.setattr(
        QuietHours,
        "look",
        lambda self, local_s, now_s: right(self, (local_s + 7_200.0) % 86_400.0, now_s),
    )


def heat_that_is_asked_for_once(patch: Patch) -> None:
    right = DeviceHost._conditions

    def wrong(self: Any) -> Conditions:
        now: Conditions = right(self)
        return now if self._work is None else replace(now, temperature_c=None)

    patch.setattr(DeviceHost, "_conditions", wrong)


MISTAKES: tuple[Callable[[Patch], None], ...] = (
    budget_forgotten_on_reboot,
    budget_that_a_clock_step_fills_again,
    day_that_begins_by_the_monotonic_clock,
    bytes_counted_after_they_are_sent,
    gate_not_looked_at_during_training,
    link_kept_up_when_the_bytes_are_spent,
    log_that_is_never_folded_in,
    quiet_hours_of_another_place,
    heat_that_is_asked_for_once,
)


FIRST_SEEDS: dict[Callable[[Patch], None], int] = {
    heat_that_is_asked_for_once: 12,
    link_kept_up_when_the_bytes_are_spent: 5,
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_week_finds_every_classic_mistake(mistake: Callable[[Patch], None], patch: Patch) -> None:
    mistake(patch)
    # Weeks take long; the mistakes that seldom show begin where they do.
    first = FIRST_SEEDS.get(mistake, 0)
    trials = (try_seed(seed, "week") for seed in range(first, first + SEEDS_MAX))
    assert any(trial.violation is not None for trial in trials)
