from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles import DayPattern
from device_profiles.day import DAY_S, HOUR_S

SHARE = st.floats(0.0, 1.0)
CURVES = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=24, max_size=24)


def pattern(curve: list[float]) -> DayPattern:
    """A pattern of which only the curve matters."""
    return DayPattern(
        ready_by_hour=tuple(curve), habit_share=0.0, online_share=0.0, metered_share=0.0
    )


@settings(max_examples=30, deadline=None)
@given(CURVES, st.integers(-(10**6), 10**6))
def test_the_curve_passes_through_its_hours(curve: list[float], hours: int) -> None:
    """At a full local hour the share is the one that the file gives for it."""
    made = pattern(curve)
    _, day_s = made.locate(hours * HOUR_S)
    assert curve[hours % 24] == made.ready_share(day_s)


@settings(max_examples=30, deadline=None)
@given(CURVES, st.floats(-1e9, 1e10))
def test_a_day_begins_at_the_low_hour(curve: list[float], local_s: float) -> None:
    """Every time falls into a day of 24 hours that begins where the curve is lowest."""
    made = pattern(curve)
    _, day_s = made.locate(local_s)
    assert 0.0 <= day_s <= DAY_S
    assert made.ready_low == made.ready_share(0.0) == made.ready_share(DAY_S)


@settings(max_examples=30, deadline=None)
@given(CURVES, SHARE, st.floats(0.0, DAY_S))
def test_spells_are_where_the_curve_is_above_the_level(
    curve: list[float], level: float, day_s: float
) -> None:
    """Inside a spell the curve is above the level, outside it is not (up to float tolerance)."""
    made = pattern(curve)
    share = made.ready_share(day_s)
    if abs(share - level) > 1e-9:
        inside = any(start <= day_s <= end for start, end in made.spells(level))
        assert (share > level) == inside


@settings(max_examples=30, deadline=None)
@given(CURVES, SHARE)
def test_spells_are_in_order_and_do_not_touch(curve: list[float], level: float) -> None:
    """One spell ends before the next begins."""
    spells = pattern(curve).spells(level)
    assert all(0.0 <= start <= end <= DAY_S for start, end in spells)
    assert all(left[1] <= right[0] for left, right in pairwise(spells))


@settings(max_examples=30, deadline=None)
@given(CURVES)
def test_the_ready_share_of_uniform_levels_is_the_curve(curve: list[float]) -> None:
    """Over levels 0..1 the hours in spells sum to the area under the curve."""
    made = pattern(curve)
    levels = [(i + 0.5) / 40 for i in range(40)]
    hours = sum(end - start for level in levels for start, end in made.spells(level)) / HOUR_S / 40
    area = sum((curve[i] + curve[(i + 1) % 24]) / 2 for i in range(24))
    assert abs(hours - area) < 24 / 40
