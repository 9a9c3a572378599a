"""The day's bytes, joules and seconds, written down so often that a crash forgets little.

What an owner is promised of `bytes_per_day_max`, `joules_per_day_max` and `training_s_per_day_max`:

1. A day is a UTC day by the device's own clock. Each has its own sums, and keeps them: a clock that
   is set to another day starts that day's sums, and set back it finds the first ones again. What
   has passed within `GATE_EVERY_S` before the day changes may count as either's.
2. No packet is sent that would pass the day's bytes (`Gatekeeper.may_send`); the first that finds
   no room ends the day for the link, and what is sealed waits for the next. What was on its way to
   the device by then may still come.
3. Every `GATE_EVERY_S`, every `GATE_WORKING_S` while it works, and when its seconds or joules will
   be used up, the sums are compared with the budgets. From the first time that one is reached, the
   device begins nothing until the day is over, and work under way stops at its next batch boundary.
   With seconds or joules spent, what is sealed is delivered all the same.
4. A reboot forgets nothing of that but what passed in the last `GATE_EVERY_S`, and what had not
   been worth a write: less than a `FORGOTTEN_PART`th of each budget.
"""

from typing import Final

from edge_sdk.journal import Journal
from edge_sdk.policy import SECONDS_PER_DAY, Policy
from edge_sdk.signals import NOTHING, Spent

# Flash wears out by writing: once in a while, or when a crash would forget too much of a budget.
SPEND_EVERY_S: Final = 60.0
FORGOTTEN_PART: Final = 64


class DayMeter:
    """Adds up by day what the device spends.

    Args:
        journal: where the sums are kept.
        policy: whose budgets say what is worth a write.

    Attributes:
        day: whose sums were asked for last, in days since 1970.
    """

    def __init__(self, journal: Journal, policy: Policy) -> None:
        self._journal = journal
        self._budgets = policy.budgets
        self.day: int | None = None
        self._seen = NOTHING
        self._written = NOTHING
        self._write_at_s = 0.0

    def spent_today(
        self, total: Spent, *, unix_s: float, now_s: float, at_once: bool = False
    ) -> Spent:
        """The day's sums so far.

        Args:
            total: what has been spent since the meter was made.
            unix_s: the wall clock, which says what day it is.
            now_s: the monotonic clock.
            at_once: write down whatever is new.
        """
        day = int(unix_s // SECONDS_PER_DAY)
        if self.day not in (None, day) and self._seen != self._written:
            # Another day begins: what is not yet written was the last one's.
            self._journal.spend(self.day or 0, self._seen.since(self._written))
            self._written = self._seen
        self.day, self._seen = day, total
        new = total.since(self._written)
        if new == NOTHING:
            return self._journal.spent(day)
        if at_once or self._worth_a_write(new) or now_s >= self._write_at_s:
            self._write_at_s = now_s + SPEND_EVERY_S
            self._written = total
            return self._journal.spend(day, new)
        return self._journal.spent(day) + new

    def _worth_a_write(self, new: Spent) -> bool:
        budgets = self._budgets
        return any(
            budget and more >= budget / FORGOTTEN_PART
            for budget, more in (
                (budgets.traffic_bytes, new.traffic_bytes),
                (budgets.joules, new.joules),
                (budgets.training_s, new.training_s),
            )
        )
