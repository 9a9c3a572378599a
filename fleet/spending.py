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
from edge_sdk.signals import NOTHING, Spent
from fleet.device_host import DeviceHost
from wire.messages import Available, FetchRequest

# What a device says that begins something.
BEGINNINGS: Final = frozenset({Available.KIND, FetchRequest.KIND})
_GRACE_S: Final = GATE_EVERY_S + 0.001
_LOOK_S: Final = GATE_WORKING_S + 0.01
# Work stops when its seconds are used up, not at the next look.
_EXACT_S: Final = 0.02


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


@dataclass(slots=True)
class Known:
    """What a device has spent of one thing on each day of its clock, and has to know of.

    Attributes:
        budget: of a day, 0 for no bound.
        look_s: what passed so shortly before a crash it may forget, and before its clock came to
            another day it may count as either's.
    """

    budget: float
    look_s: float
    days: dict[int, float] = field(default_factory=dict)
    recent: deque[tuple[float, float]] = field(default_factory=deque)

    def passed(self, day: int, now_s: float, amount: float) -> None:
        """So much has passed."""
        while self.recent and self.recent[0][0] < now_s - self.look_s:
            self.days[day] = self.days.get(day, 0.0) + self.recent.popleft()[1]
        if amount:
            self.recent.append((now_s, amount))

    def changed_day(self) -> None:
        """The clock is in another day."""
        self.recent.clear()

    def crashed(self, day: int) -> None:
        """What was not worth a write is forgotten too."""
        self.recent.clear()
        self.days[day] = max(self.days.get(day, 0.0) - self.budget / FORGOTTEN_PART, 0.0)

    def on(self, day: int) -> float:
        """A day's sum."""
        return self.days.get(day, 0.0) + sum(amount for _, amount in self.recent)


@dataclass(slots=True)
class DayBook:
    """One device's bytes, joules and seconds of work, none of which may pass its budget.

    `sent_over` says by how many bytes a packet that it sent passed the day's, and `over` by how
    much work did. What others send is not in its hand: `received_over` is the most of that.
    """

    host: DeviceHost
    sent_over: float = 0.0
    received_over: float = 0.0
    over: str = ""
    _bytes: Known = field(init=False)
    _joules: Known = field(init=False)
    _work: Known = field(init=False)
    _day: int | None = None
    _before: Spent = NOTHING
    _crashes: int = 0
    _spent_j_on: int | None = None
    _work_allowed_s: float = 0.0

    def __post_init__(self) -> None:
        budgets = self.host.policy.budgets
        self._bytes = Known(budgets.traffic_bytes, _GRACE_S)
        self._joules = Known(budgets.joules, _GRACE_S)
        self._work = Known(budgets.training_s, _LOOK_S)

    def note(self) -> None:
        """Count what has passed since the last time."""
        host, now_s = self.host, self.host.world.now_s
        day = int(host.wall.now_s() // SECONDS_PER_DAY)
        spent = host.spent
        since, self._before = spent.since(self._before), spent
        books = (
            (self._bytes, since.traffic_bytes),
            (self._joules, since.joules),
            (self._work, since.training_s),
        )
        old_day, self._day = self._day, day
        for known, amount in books:
            if old_day is not None and day != old_day:
                # The look before belongs to the old day, for most of it.
                known.passed(old_day, now_s, amount)
                known.changed_day()
            else:
                known.passed(day, now_s, amount)
            if host.crashes != self._crashes:
                known.crashed(day)
        if host.crashes != self._crashes or day != old_day:
            self._spent_j_on = None
        self._crashes = host.crashes
        self._judge(day)

    def sent(self) -> None:
        """It has sent a packet: the bytes that had passed by then, this packet's too."""
        self.note()
        if self._bytes.budget and self._day is not None:
            self.sent_over = max(self.sent_over, self._bytes.on(self._day) - self._bytes.budget)

    def _judge(self, day: int) -> None:
        work_s = self._work.on(day)
        if self._work.budget and work_s > self._work.budget + _EXACT_S:
            self.over = f"worked for {work_s:.3f} s of {self._work.budget} on day {day}"
        if self._bytes.budget:
            over = self._bytes.on(day) - self._bytes.budget
            self.received_over = max(self.received_over, over)
        if not self._joules.budget:
            return
        # Bytes that have to pass cost some more; work does not have to go on.
        if self._spent_j_on is None and self._joules.on(day) >= self._joules.budget:
            self._spent_j_on = day
            # Radio and work are told apart by the look alone.
            self._work_allowed_s = self._before.training_s + _LOOK_S
        if self._spent_j_on == day and self._before.training_s > self._work_allowed_s:
            self.over = f"worked on with its joules spent on day {day}"
