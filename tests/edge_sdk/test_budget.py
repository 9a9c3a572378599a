from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.budget import FORGOTTEN_PART, SPEND_EVERY_S, DayMeter
from edge_sdk.journal import MemoryJournal
from edge_sdk.policy import Policy
from edge_sdk.signals import Spent

DAY_S = 86_400.0


def test_bytes_of_a_day_add_up_over_reboots() -> None:
    journal = MemoryJournal()
    first = DayMeter(journal, Policy(bytes_per_day_max=1_000))
    assert first.spent_today(Spent(0), unix_s=0.0, now_s=0.0) == Spent(0)
    assert first.spent_today(Spent(400), unix_s=5.0, now_s=5.0) == Spent(400)
    assert first.spent_today(Spent(900), unix_s=10.0, now_s=10.0) == Spent(900)
    assert DayMeter(journal, Policy(bytes_per_day_max=1_000)).spent_today(
        Spent(50), unix_s=15.0, now_s=1.0
    ) == Spent(950)


def test_a_crash_forgets_less_than_a_64th_of_the_budget() -> None:
    journal, budget = MemoryJournal(), 6_400
    meter = DayMeter(journal, Policy(bytes_per_day_max=budget))
    meter.spent_today(Spent(10), unix_s=0.0, now_s=0.0)
    for step in range(1, 100):
        spent = meter.spent_today(Spent(10 + 7 * step), unix_s=0.0, now_s=0.1 * step)
        assert spent == Spent(10 + 7 * step)
        assert spent.traffic_bytes - journal.spent(0).traffic_bytes < budget / FORGOTTEN_PART


def test_without_a_budget_the_journal_is_written_once_a_minute() -> None:
    journal = MemoryJournal()
    meter = DayMeter(journal, Policy(bytes_per_day_max=0))
    for second in range(int(SPEND_EVERY_S)):
        assert meter.spent_today(Spent(1_000 + second), unix_s=0.0, now_s=float(second)) == Spent(
            1_000 + second
        )
        assert journal.spent(0) == Spent(1_000)
    meter.spent_today(Spent(9_999), unix_s=0.0, now_s=SPEND_EVERY_S)
    assert journal.spent(0) == Spent(9_999)


def test_what_is_not_yet_written_when_a_day_ends_was_that_days() -> None:
    journal = MemoryJournal()
    meter = DayMeter(journal, Policy(bytes_per_day_max=0))
    meter.spent_today(Spent(100), unix_s=0.0, now_s=0.0)
    meter.spent_today(Spent(150), unix_s=1.0, now_s=1.0)
    assert meter.spent_today(Spent(170), unix_s=DAY_S, now_s=2.0) == Spent(20)
    assert meter.spent_today(Spent(170), unix_s=1.0, now_s=3.0) == Spent(150)


def test_the_end_writes_what_is_new() -> None:
    journal = MemoryJournal()
    meter = DayMeter(journal, Policy(bytes_per_day_max=0))
    meter.spent_today(Spent(100), unix_s=0.0, now_s=0.0)
    meter.spent_today(Spent(101), unix_s=0.0, now_s=1.0, at_once=True)
    assert journal.spent(0) == Spent(101)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0.0, 9.0), st.integers(-3, 3))))
def test_every_byte_is_counted_on_one_day(moves: list[tuple[int, float, int]]) -> None:
    journal = MemoryJournal()
    meter = DayMeter(journal, Policy(bytes_per_day_max=1_000))
    total, now_s = 0, 0.0
    for more, later_s, day in moves:
        total, now_s = total + more, now_s + later_s
        meter.spent_today(Spent(total), unix_s=day * DAY_S, now_s=now_s)
    meter.spent_today(Spent(total), unix_s=0.0, now_s=now_s, at_once=True)
    assert sum(journal.spent(day).traffic_bytes for day in range(-3, 4)) == total


def test_a_crash_forgets_less_than_a_64th_of_joules_and_of_seconds() -> None:
    journal = MemoryJournal()
    meter = DayMeter(journal, Policy(joules_per_day_max=640.0, training_s_per_day_max=64.0))
    meter.spent_today(Spent(1), unix_s=0.0, now_s=0.0)
    for step in range(1, 200):
        total = Spent(1, 3.0 * step, 0.25 * step)
        spent = meter.spent_today(total, unix_s=0.0, now_s=0.25 * step)
        assert spent == total
        forgotten = spent.since(journal.spent(0))
        assert forgotten.joules < 10.0
        assert forgotten.training_s < 1.0
