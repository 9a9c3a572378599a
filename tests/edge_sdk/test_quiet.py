import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.quiet import SLACK_S, QuietHours, covers, parse_span, seconds_in

HOUR_S = 3_600.0
DAY_S = 86_400.0
NIGHT = ("22:00-06:00",)


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("22:00-06:00", ("22:00", "23:59", "00:00", "05:59"), ("06:00", "12:00", "21:59")),
        ("08:30-17:00", ("08:30", "16:59"), ("17:00", "08:29", "00:00")),
    ],
)
def test_a_span_holds_its_beginning_and_not_its_end(
    span: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    spans = (parse_span(span),)
    for text in inside + outside:
        hour, minute = text.split(":")
        assert covers(spans, int(hour) * 60 + int(minute)) == (text in inside)


@pytest.mark.parametrize("text", ["", "22-06", "22:00 - 06:00", "24:00-06:00", "06:00-06:00"])
def test_what_is_no_span_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"HH:MM|begins when"):
        parse_span(text)


def test_spans_that_overlap_are_counted_once() -> None:
    assert seconds_in((parse_span("22:00-06:00"), parse_span("05:00-07:00"))) == 9 * HOUR_S


def test_days_with_a_good_clock_are_quiet_at_night_and_at_no_other_time() -> None:
    hours = QuietHours(NIGHT)
    for minute in range(4 * 1_440):
        now_s = 60.0 * minute
        local_s = (now_s + 17 * HOUR_S) % DAY_S
        assert hours.look(local_s, now_s) == (local_s >= 22 * HOUR_S or local_s < 6 * HOUR_S)


def test_a_clock_that_jumps_matters_only_while_it_is_wrong() -> None:
    hours = QuietHours(NIGHT)
    assert not hours.look(12 * HOUR_S, 0.0)
    assert hours.look(23 * HOUR_S, 5.0)
    assert not hours.look(12 * HOUR_S, 10.0)


def test_a_clock_that_stands_still_at_night_holds_a_device_no_longer_than_a_night() -> None:
    hours = QuietHours(NIGHT)
    held = [hours.look(1 * HOUR_S, 60.0 * minute) for minute in range(1_440)]
    assert held[0]
    assert 60.0 * sum(held) <= 8 * HOUR_S + SLACK_S + 60.0


@pytest.mark.slow
@given(st.lists(st.integers(0, 86_399), min_size=288, max_size=288))
def test_no_clock_can_hold_a_device_for_a_day(says: list[int]) -> None:
    hours = QuietHours(NIGHT)
    held = [hours.look(float(local_s), 300.0 * look) for look, local_s in enumerate(says)]
    assert not all(held)


def test_without_spans_it_is_never_quiet() -> None:
    assert not QuietHours(()).look(0.0, 0.0)
