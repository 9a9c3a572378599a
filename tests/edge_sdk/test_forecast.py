import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.forecast import (
    DAY_S,
    DAYS_KEPT,
    HORIZON_S,
    SAVE_EVERY_S,
    SPELLS_MAX,
    UNKNOWN_S,
    Diary,
    Spell,
    Spells,
)
from edge_sdk.journal import MemoryJournal

MONDAY_S = 1_767_571_200.0
HOUR_S = 3_600.0


def lived(days: int, opens_h: float, closes_h: float, *, step_s: float = 300.0) -> Diary:
    """Days on each of which the gate was open between two hours."""
    diary = Diary()
    for look in range(int(days * DAY_S / step_s)):
        at_s = look * step_s
        hour = at_s % DAY_S / HOUR_S
        diary = diary.note(MONDAY_S + at_s, is_open=opens_h <= hour < closes_h)
    return diary


def at(days: int, hour: float) -> float:
    return MONDAY_S + days * DAY_S + hour * HOUR_S


@pytest.mark.parametrize(("hour", "left_h"), [(1.0, 5.0), (4.0, 2.0), (5.5, 0.5)])
def test_a_device_of_habit_knows_when_it_will_be_picked_up(hour: float, left_h: float) -> None:
    diary = lived(5, 0.0, 6.0)
    assert diary.forecast_s(at(5, hour)) == pytest.approx(left_h * HOUR_S, abs=301.0)


def test_of_days_that_ended_differently_a_low_one_counts() -> None:
    spells = [Spell(at(day, 0.0), at(day, 2.0 + day), ended=True) for day in range(6)]
    # At 1:00 they had 1, 2, 3, 4, 5 and 6 hours left.
    forecast_s = Diary(tuple(spells)).forecast_s(at(6, 1.0))
    assert HOUR_S <= forecast_s <= 3 * HOUR_S


def test_who_knows_nothing_or_was_never_there_at_this_hour_promises_the_usual() -> None:
    assert Diary().forecast_s(MONDAY_S) == UNKNOWN_S
    assert lived(5, 0.0, 6.0).forecast_s(at(5, 15.0)) == UNKNOWN_S
    assert lived(1, 0.0, 6.0).forecast_s(at(1, 3.0)) == UNKNOWN_S


def test_what_has_lasted_for_days_is_not_expected_to_end() -> None:
    diary = lived(4, 0.0, 25.0)
    assert len(diary.spells) == 1
    assert diary.forecast_s(at(4, 0.0)) == HORIZON_S


def test_a_reboot_is_not_an_end(journal: MemoryJournal) -> None:
    diary = Diary().note(MONDAY_S, is_open=True).note(MONDAY_S + 3 * HOUR_S, is_open=True)
    journal.note_spells(diary.kept)
    again = Diary.load(journal.spells()).note(MONDAY_S + 3 * HOUR_S + 60.0, is_open=True)
    assert [spell.opened_s for spell in again.spells] == [MONDAY_S]
    later = Diary.load(journal.spells()).note(MONDAY_S + 9 * HOUR_S, is_open=True)
    assert len(later.spells) == 2


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


def test_a_gate_that_flaps_writes_one_stretch() -> None:
    diary = Diary()
    for second in range(0, 3_600, 10):
        diary = diary.note(MONDAY_S + second, is_open=second % 20 == 0)
    assert len(diary.spells) == 1


def test_an_open_gate_writes_once_an_hour() -> None:
    diary, writes = Diary(), 0
    for second in range(0, 4 * 3_600, 5):
        after = diary.note(MONDAY_S + second, is_open=True)
        writes += after.spells != diary.spells
        diary = after
    assert writes == 4
    assert SAVE_EVERY_S == 3_600.0


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6) | st.just(3e7) | st.just(-3e7), st.booleans()), max_size=60
    ),
    st.floats(0.0, 4e9),
)
def test_whatever_the_clock_does_what_is_kept_is_bounded_and_a_forecast_is_some_seconds(
    looks: list[tuple[float, bool]], asked_s: float
) -> None:
    diary, now_s = Diary(), MONDAY_S
    for step_s, is_open in looks:
        now_s += step_s
        diary = diary.note(now_s, is_open=is_open)
        assert len(diary.spells) <= SPELLS_MAX
        assert all(spell.opened_s <= spell.until_s for spell in diary.spells)
        assert 0.0 <= diary.forecast_s(now_s) <= HORIZON_S
    assert 0.0 <= diary.forecast_s(asked_s) <= HORIZON_S


def test_what_is_kept_is_a_few_kilobytes_and_not_older_than_two_weeks() -> None:
    diary = Diary()
    for hour in range(24 * 60):
        diary = diary.note(MONDAY_S + hour * HOUR_S, is_open=hour % 2 == 0)
    assert len(msgspec.msgpack.encode(diary.kept)) < 2_500
    now_s = MONDAY_S + 60 * DAY_S
    assert all(now_s - spell.until_s <= (DAYS_KEPT + 1) * DAY_S for spell in diary.spells)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(diary.kept), type=Spells) == diary.kept
