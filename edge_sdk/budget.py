"""The day's bytes: what the link has carried, written down so often that a crash forgets little.

What an owner is promised of `Policy.bytes_per_day_max`:

1. A day is a UTC day by the device's own clock. Each has its own count, and keeps it: a clock that
   is set to another day starts that day's count, and set back it finds the first one again. What
   has passed within `GATE_EVERY_S` before the day changes may count as either's.
2. Every `GATE_EVERY_S` the count is compared with the budget. From the first time that it is
   reached, the device begins nothing that costs bytes until the day is over: it does not check in
   and fetches no model. What is sealed is delivered all the same, and what is under way may end.
3. A reboot forgets nothing of that but the bytes of the last `GATE_EVERY_S`, and what had not
   been worth a write: less than a `FORGOTTEN_PART`th of the budget.
"""

from typing import Final

from edge_sdk.journal import Journal
from edge_sdk.policy import SECONDS_PER_DAY

# Flash wears out by writing: once in a while, or when a crash would forget too much of a budget.
SPEND_EVERY_S: Final = 60.0
FORGOTTEN_PART: Final = 64


class DayMeter:
    """Adds a link's bytes up by day.

    Args:
        journal: where the sums are kept.
        bytes_per_day_max: the budget, 0 for none.
    """

    def __init__(self, journal: Journal, bytes_per_day_max: int) -> None:
        self._journal = journal
        self._worth_a_write = bytes_per_day_max / FORGOTTEN_PART
        self._day: int | None = None
        self._seen = 0
        self._written = 0
        self._write_at_s = 0.0

    def spent_today(
        self, total_bytes: int, *, unix_s: float, now_s: float, at_once: bool = False
    ) -> int:
        """The day's bytes so far.

        Args:
            total_bytes: what the link has carried since the meter was made.
            unix_s: the wall clock, which says what day it is.
            now_s: the monotonic clock.
            at_once: write down whatever is new.
        """
        day = int(unix_s // SECONDS_PER_DAY)
        if self._day not in (None, day) and self._seen > self._written:
            # Another day begins: what is not yet written was the last one's.
            self._journal.spend(self._day or 0, self._seen - self._written)
            self._written = self._seen
        self._day, self._seen = day, total_bytes
        new = total_bytes - self._written
        if not new:
            return self._journal.spent(day)
        worth_it = 0.0 < self._worth_a_write <= new
        if at_once or worth_it or now_s >= self._write_at_s:
            self._write_at_s = now_s + SPEND_EVERY_S
            self._written = total_bytes
            return self._journal.spend(day, new)
        return self._journal.spent(day) + new
