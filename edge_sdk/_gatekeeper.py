"""Looks at the rules in time, and knows what the day has cost: no threads, and clocks come in.

`Running` asks it at `due_s`, which is soon while something is trained: whatever closes the gate has
to reach the trainer within a second.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_sdk.budget import DayMeter
from edge_sdk.energy import Energy
from edge_sdk.forecast import Diary
from edge_sdk.journal import SqliteJournal
from edge_sdk.ladder import Means, Room
from edge_sdk.policy import GATE_EVERY_S, GATE_WORKING_S, Conditions, Policy, judge
from edge_sdk.quiet import QuietHours
from edge_sdk.signals import NOTHING, GateClosed, GateOpened, Spent

_log: Final = logging.getLogger("potluck.device")


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at the clocks: monotonic, unix, and seconds since local midnight."""

    now_s: float
    unix_s: float
    local_s: float


class Gatekeeper:
    """The rules of one device, while it runs.

    Args:
        policy: the owner's.
        conditions: what the device is like; whatever it raises closes the gate.
        journal: where the day's sums, the diary and the reason to wait are kept.
        energy: what work and bytes cost, where the conditions do not say.
        traffic: (sent, received) MQTT bytes since the link was made.

    Attributes:
        opted_out: whether the owner has closed the gate for good.
        allowed: what the last look found, an opt-out aside.
        gate: what the last look found.
        due_s: when to look again, by the monotonic clock.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        conditions: Callable[[], Conditions],
        journal: SqliteJournal,
        energy: Energy,
        traffic: Callable[[], tuple[int, int]],
    ) -> None:
        self.opted_out = False
        self.allowed: GateOpened | GateClosed | None = None
        self.gate: GateOpened | GateClosed | None = None
        self.due_s = 0.0
        self._policy = policy
        self._conditions = conditions
        self._journal = journal
        self._energy = energy
        self._traffic = traffic
        self._meter = DayMeter(journal, policy)
        self._quiet = QuietHours(policy.quiet_hours)
        self._diary = Diary.load(journal.spells())
        self._work = NOTHING
        self._watts: float | None = None
        self._working_since_s: float | None = None
        self._this_work = NOTHING
        self._spent = NOTHING
        self._last_training = NOTHING
        self._last_head_training = NOTHING
        self._last_evaluation = NOTHING

    # -- work --------------------------------------------------------------------------------

    def work_begins(self, now_s: float) -> None:
        """Something is trained or evaluated from now on; look soon."""
        self._working_since_s, self._this_work = now_s, NOTHING
        self.due_s = min(self.due_s, now_s + GATE_WORKING_S)

    def work_ends(
        self, now_s: float, *, trained: bool, finished: bool, head_alone: bool = False
    ) -> Spent:
        """It is over; what it took is what the next one is expected to take, if it was finished.

        Returns:
            What it took.
        """
        self._note_work(now_s)
        self._working_since_s = None
        if finished and trained and head_alone:
            self._last_head_training = self._this_work
        elif finished and trained:
            self._last_training = self._this_work
        elif finished:
            self._last_evaluation = self._this_work
        return self._this_work

    def _note_work(self, now_s: float) -> None:
        """Add up the seconds and joules of work since the last time."""
        if self._working_since_s is None:
            return
        seconds = max(now_s - self._working_since_s, 0.0)
        watts = self._energy.training_w if self._watts is None else self._watts
        more = Spent(0, seconds * watts, seconds)
        self._work, self._this_work = self._work + more, self._this_work + more
        self._working_since_s = now_s

    def means(self) -> Means:
        """What is left of the day, and what work takes; from any thread, as of the last look."""
        room = Room.left(self._policy.budgets, self._spent)
        return Means(room, self._last_training, self._last_head_training, self._last_evaluation)

    # -- looks -------------------------------------------------------------------------------

    def look(self, at: Moment) -> GateOpened | GateClosed | None:
        """Judge; returns the gate if it is another than before, for the driver to be told."""
        every_s = GATE_EVERY_S if self._working_since_s is None else GATE_WORKING_S
        self.due_s = at.now_s + every_s
        gate: GateOpened | GateClosed
        try:
            now: Conditions | None = self._conditions()
        except Exception as error:  # noqa: BLE001 - the app's own code
            # The app's own source failed: nothing is known, so nothing is done.
            _log.warning("conditions: %s", error)
            now = None
        spent = self.spend(at)
        if now is None:
            gate = GateClosed("conditions_unknown")
        else:
            self._watts = now.power_w
            gate = judge(
                self._policy,
                now,
                was_open=isinstance(self.allowed, GateOpened),
                spent=spent,
                quiet=self._quiet.look(at.local_s, at.now_s),
                forecast_s=self._diary.forecast_s(at.unix_s),
            )
        self.allowed = gate
        if self.opted_out:
            gate = GateClosed("opted_out")
        self._note_day(at.unix_s, is_open=isinstance(gate, GateOpened))
        if gate == self.gate:
            return None
        self.note_waits(gate)
        self.gate = gate
        return gate

    def note_waits(self, gate: GateOpened | GateClosed) -> None:
        """Write down for people why nothing is begun."""
        self._journal.note_waits(gate.reason if isinstance(gate, GateClosed) else "")

    def spend(self, at: Moment, *, at_once: bool = False) -> Spent:
        """The day's sums so far."""
        self._note_work(at.now_s)
        sent, received = self._traffic()
        radio = Spent(sent + received, self._energy.radio_j(sent, received))
        self._spent = self._meter.spent_today(
            self._work + radio, unix_s=at.unix_s, now_s=at.now_s, at_once=at_once
        )
        return self._spent

    def _note_day(self, unix_s: float, *, is_open: bool) -> None:
        """Remember since when the gate is open: a write when it changes, or once in an hour."""
        diary = self._diary.note(unix_s, is_open=is_open)
        if diary.spells != self._diary.spells:
            self._journal.note_spells(diary.kept)
        self._diary = diary
