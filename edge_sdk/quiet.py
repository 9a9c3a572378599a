"""Hours of the local day in which nothing is begun, for a clock that may be wrong.

Nothing waits for a time of the day: at each look the clock is asked what it says now, so a clock
that jumps matters only for as long as it is wrong. A clock that stands still, or is set back each
night, could hold a device for ever; so in a day of the monotonic clock a device is held for no
longer than its spans are long, and an hour for the end of summer time.
"""

import functools
import re
from typing import Final

_SPAN: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MINUTE_S: Final = 60
_DAY_S: Final = 86_400.0
_MINUTES: Final = 1_440
SLACK_S: Final = 3_600.0
QUIET_S_MAX: Final = _DAY_S - 2.0 * SLACK_S

Span = tuple[int, int]


def parse_span(text: str) -> Span:
    """`HH:MM-HH:MM` in minutes of the local day; the second may be the next morning's.

    Raises:
        ValueError: it is not that, or begins when it ends.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r}: write HH:MM-HH:MM, for instance 22:00-06:00")
    hour, minute, end_hour, end_minute = (int(part) for part in found.groups())
    begin, end = hour * 60 + minute, end_hour * 60 + end_minute
    if begin == end:
        raise ValueError(f"{text!r} begins when it ends")
    return begin, end


def covers(spans: tuple[Span, ...], minute: int) -> bool:
    """Whether a minute of the day lies in one of the spans."""
    return any(
        begin <= minute < end if begin < end else minute >= begin or minute < end
        for begin, end in spans
    )


@functools.cache
def seconds_in(spans: tuple[Span, ...]) -> float:
    """How long the spans are together, in seconds of a day."""
    return float(_MINUTE_S * sum(covers(spans, minute) for minute in range(_MINUTES)))


class QuietHours:
    """Says at each look whether it is quiet.

    Args:
        spans: `HH:MM-HH:MM` each, in local time.

    Raises:
        ValueError: see `parse_span`.
    """

    def __init__(self, spans: tuple[str, ...]) -> None:
        self._spans = tuple(parse_span(text) for text in spans)
        self._held_s_max = seconds_in(self._spans) + SLACK_S
        self._held_s = 0.0
        self._day_ends_s = 0.0
        self._looked_at_s = 0.0
        self._quiet = False

    def look(self, local_s: float, now_s: float) -> bool:
        """Whether it is quiet now.

        Args:
            local_s: seconds since midnight by the wall clock, local time.
            now_s: the monotonic clock.
        """
        if not self._spans:
            return False
        if now_s >= self._day_ends_s:
            self._day_ends_s, self._held_s = now_s + _DAY_S, 0.0
        elif self._quiet:
            self._held_s += now_s - self._looked_at_s
        self._looked_at_s = now_s
        inside = covers(self._spans, int(local_s // _MINUTE_S) % _MINUTES)
        self._quiet = inside and self._held_s < self._held_s_max
        return self._quiet
