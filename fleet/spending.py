"""What devices with a budget have spent of it, in books that the SDK does not keep.

The SDK counts, writes down and forgets a little in a crash (`edge_sdk.budget`). Here every byte of
the link is counted as it passes, and what a crash may forget is taken off again: what is left the
device has to know of.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from edge_sdk.budget import FORGOTTEN_PART
from edge_sdk.policy import GATE_EVERY_S, GATE_WORKING_S, SECONDS_PER_DAY
from fleet.device_host import DeviceHost
from wire.messages import Available, FetchRequest

# What a device says that begins something.
BEGINNINGS: Final = frozenset({Available.KIND, FetchRequest.KIND})
_GRACE_S: Final = GATE_EVERY_S + 0.001


@dataclass(slots=True)
class Book:
    """One device's bytes.

    Attributes:
        host: the device.
        days: bytes by day that a crash cannot make it forget.
        recent: (time, bytes) of today that one may.
        spent_at_s: by day, when the budget was reached.
        entered_s: when its clock came to this day.
    """

    host: DeviceHost
    days: dict[int, float] = field(default_factory=dict)
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    spent_at_s: dict[int, float] = field(default_factory=dict)
    entered_s: float = 0.0
    _day: int | None = None
    _total: int = 0
    _crashes: int = 0

    def note(self) -> None:
        """Count what has passed since the last time."""
        host, now_s = self.host, self.host.world.now_s
        budget = host.policy.bytes_per_day_max
        day = int(host.wall.now_s() // SECONDS_PER_DAY)
        if day != self._day:
            # The last bytes before a change of the day may have been counted as either day's.
            self.recent.clear()
            if self._day is not None and self.days.get(self._day, 0.0) < budget:
                self.spent_at_s.pop(self._day, None)
            self._day, self.entered_s = day, now_s
        traffic = host.device.link.traffic
        total = traffic.sent_bytes + traffic.received_bytes
        if total != self._total:
            self.recent.append((now_s, total - self._total))
            self._total = total
        if host.crashes != self._crashes:
            self._crashes = host.crashes
            self.recent.clear()
            known = max(self.days.get(day, 0.0) - budget / FORGOTTEN_PART, 0.0)
            self.days[day] = known
            if known < budget:
                self.spent_at_s.pop(day, None)
        while self.recent and self.recent[0][0] < now_s - _GRACE_S:
            self.days[day] = self.days.get(day, 0.0) + self.recent.popleft()[1]
        if self.days.get(day, 0.0) + sum(size for _, size in self.recent) >= budget:
            self.spent_at_s.setdefault(day, now_s)

    def may_begin(self) -> bool:
        """Whether the device may know nothing yet of a budget that is spent."""
        spent_at_s = None if self._day is None else self.spent_at_s.get(self._day)
        now_s = self.host.world.now_s
        return spent_at_s is None or now_s <= max(spent_at_s, self.entered_s) + _GRACE_S


@dataclass(slots=True)
class WorkBook:
    """One device's seconds of training, by the day of its clock.

    Work stops at the look after the budget is spent. A crash may make the device forget what came
    since its last look and a 64th of the budget; a clock that is set, to which day that belonged.
    """

    host: DeviceHost
    days: dict[int, float] = field(default_factory=dict)
    _total_s: float = 0.0

    def kept(self) -> bool:
        """Count what has passed since the last time; whether the day is within its budget."""
        host = self.host
        budget_s = host.policy.training_s_per_day_max
        day = int(host.wall.now_s() // SECONDS_PER_DAY)
        total_s = host.spent.training_s
        self.days[day] = self.days.get(day, 0.0) + total_s - self._total_s
        self._total_s = total_s
        look_s = GATE_WORKING_S + 0.01
        forgiven_s = host.crashes * (budget_s / FORGOTTEN_PART + look_s)
        return self.days[day] <= budget_s + look_s * (1 + host.wall.steps) + forgiven_s
