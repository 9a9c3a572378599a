"""The gateway's clock, and when somebody sets it.

Dates are for people, tokens and certificates, and come from the wall clock. What is to happen in a
while (deadlines, leases, retries) must not happen a year late or at once because a clock was set.
So whoever reads the clock here hears of it, and moves what it has planned by as much.
"""

import time
from collections.abc import Callable
from typing import Final

# NTP slews a clock by half a millisecond a second; what moves more between two looks was set.
STEP_S: Final = 1.0


class Clock:
    """The wall clock, held against the monotonic one at every look.

    Args:
        on_step: told by how many seconds the wall clock was set, before the look returns.
        wall: unix seconds.
        steady: seconds that nobody can set.
    """

    def __init__(
        self,
        on_step: Callable[[float], None],
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_step = on_step
        self._wall = wall
        self._steady = steady
        self._ahead_s = wall() - steady()

    def now_s(self) -> float:
        """Unix seconds."""
        now_s = self._wall()
        ahead_s = now_s - self._steady()
        by_s, self._ahead_s = ahead_s - self._ahead_s, ahead_s
        if abs(by_s) > STEP_S:
            self._on_step(by_s)
        return now_s
