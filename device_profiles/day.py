"""How a class of devices spends its days: when it is idle, charging and on unmetered network.

The pattern is a curve: for each local hour, the share of devices that are ready. A device draws a
level between 0 and 1 for its day and is ready while the curve stands above it. The share that is
ready at any moment is then exactly the curve, and yet each device is ready in one stretch around
the peak, as a phone on its bedside table is, and not in hours strewn over the day.
"""

from functools import cached_property
from typing import Annotated, Final, TypeAlias

import msgspec

Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]

HOURS: Final = 24
HOUR_S: Final = 3_600.0
DAY_S: Final = HOURS * HOUR_S


class DayPattern(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One class's days, in local time.

    Attributes:
        ready_by_hour: share of devices that are idle, charging and on an unmetered network at 0:00,
            1:00, ... 23:00; straight lines between them.
        habit_share: share of a device's days that follow its habit (its own level) rather than a
            fresh draw. 0: every day is new; 1: every day is the same.
        online_share: share of the hours outside ready spells in which a device can be reached.
        metered_share: share of those online hours that are on a metered network.
    """

    ready_by_hour: Annotated[tuple[Share, ...], msgspec.Meta(min_length=HOURS, max_length=HOURS)]
    habit_share: Share
    online_share: Share
    metered_share: Share

    @cached_property
    def low_hour(self) -> int:
        """The hour at which the fewest devices are ready; a pattern's day begins there."""
        return self.ready_by_hour.index(self.ready_low)

    @cached_property
    def ready_low(self) -> float:
        """The lowest share of the day."""
        return min(self.ready_by_hour)

    @cached_property
    def ready_peak(self) -> float:
        """The highest share of the day."""
        return max(self.ready_by_hour)

    @cached_property
    def _curve(self) -> tuple[float, ...]:
        """The 25 corners of one day, from low hour to low hour."""
        return tuple(self.ready_by_hour[(self.low_hour + i) % HOURS] for i in range(HOURS + 1))

    def locate(self, local_s: float) -> tuple[int, float]:
        """The pattern's day that a local time belongs to, and the seconds since that day began."""
        since_s = local_s - self.low_hour * HOUR_S
        day = int(since_s // DAY_S)
        return day, since_s - day * DAY_S

    def ready_share(self, day_s: float) -> float:
        """The share of devices that are ready `day_s` seconds (0 to 86,400) into the day."""
        hour = min(int(day_s / HOUR_S), HOURS - 1)
        fraction = day_s / HOUR_S - hour
        return self._curve[hour] * (1.0 - fraction) + self._curve[hour + 1] * fraction

    def spells(self, level: float) -> tuple[tuple[float, float], ...]:
        """The stretches of a day in which the curve stands above `level`.

        Returns:
            (start, end) in seconds since the day began, in order, not touching.
        """
        found: list[tuple[float, float]] = []
        for hour in range(HOURS):
            left, right = self._curve[hour], self._curve[hour + 1]
            if max(left, right) <= level:
                continue
            crossing = HOUR_S * (hour + (level - left) / (right - left)) if left != right else 0.0
            start = HOUR_S * hour if left > level else crossing
            end = HOUR_S * (hour + 1) if right > level else crossing
            if found and found[-1][1] == start:
                start, _ = found.pop()
            found.append((start, end))
        return tuple(found)
