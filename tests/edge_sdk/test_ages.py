import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk._ages import DOUBT_S, SETTLE_S, TOLERANCE_S, Correction, look

NOW_S = 1_780_000_000.0
DAY_S = 86_400.0
YEAR_S = 365 * DAY_S


def at(
    ahead_s: float, *, running_s: float = 0.0, ran_s: float = 0.0, doubted_s: float = 0.0
) -> Correction:
    return look(NOW_S, NOW_S + ahead_s, running_s=running_s, ran_s=ran_s, doubted_s=doubted_s)


def test_clocks_that_agree_change_nothing() -> None:
    assert at(TOLERANCE_S) == at(-TOLERANCE_S) == at(0.0) == Correction()


def test_a_night_off_is_believed_at_once() -> None:
    assert at(8 * 3_600.0) == Correction(off_s=8 * 3_600.0)


def test_a_year_off_is_believed_when_the_clock_has_insisted_for_a_day() -> None:
    doubted_s, running_s, looks = 0.0, 0.0, 0
    while not (found := at(YEAR_S, running_s=running_s, ran_s=600.0, doubted_s=doubted_s)).off_s:
        assert found.renamed_s == 0.0
        doubted_s, running_s, looks = found.doubted_s, running_s + 600.0, looks + 1
    assert looks == pytest.approx(DOUBT_S / 600.0, abs=1)
    assert found == Correction(off_s=YEAR_S)


def test_doubt_ends_when_the_clock_is_set_right() -> None:
    doubted = at(YEAR_S, running_s=60.0, ran_s=60.0)
    assert doubted.doubted_s > 0.0
    assert at(10.0, running_s=120.0, ran_s=60.0, doubted_s=doubted.doubted_s) == Correction()


@given(jump_s=st.floats(-2 * YEAR_S, 2 * YEAR_S), running_s=st.floats(SETTLE_S + 1.0, 9 * YEAR_S))
def test_a_jump_while_a_process_runs_makes_nothing_older(jump_s: float, running_s: float) -> None:
    found = at(jump_s, running_s=running_s, ran_s=1.0)
    assert found.off_s == 0.0
    assert found.renamed_s == (pytest.approx(jump_s, abs=1e-3) if abs(jump_s) > TOLERANCE_S else 0)


@given(
    believed_s=st.floats(0.0, 4e9),
    wall_s=st.floats(-1e9, 4e9),
    running_s=st.floats(0.0, 1e8),
    ran_s=st.floats(0.0, 1e6),
    doubted_s=st.floats(0.0, 1e6),
)
def test_nothing_becomes_younger_and_no_more_than_the_wall_clock_says_has_passed(
    believed_s: float, wall_s: float, running_s: float, ran_s: float, doubted_s: float
) -> None:
    found = look(believed_s, wall_s, running_s=running_s, ran_s=ran_s, doubted_s=doubted_s)
    assert 0.0 <= found.off_s <= max(wall_s - believed_s, 0.0)
    assert not (found.off_s and found.renamed_s)


def test_a_clock_that_nobody_has_set_says_nothing_and_the_first_that_is_set_renames_all() -> None:
    unset = look(1_000.0, 2_000.0, running_s=0.0, ran_s=0.0, doubted_s=0.0)
    assert unset == Correction()
    found = look(1_000.0, NOW_S, running_s=60.0, ran_s=60.0, doubted_s=0.0)
    assert found == Correction(renamed_s=NOW_S - 1_000.0)


def test_a_board_that_wakes_in_the_past_and_learns_the_date_has_been_off_for_a_moment() -> None:
    assert at(-2 * YEAR_S) == Correction()
    assert at(90.0, running_s=40.0, ran_s=40.0) == Correction()
