"""Looks at the rules in time, and knows what the day has cost: no threads, and clocks come in.

`Running` asks it at `due_s`, which is soon while something is trained: whatever closes the gate has
to reach the trainer within a second.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from edge_sdk.budget import DayMeter
from edge_sdk.energy import Energy
from edge_sdk.forecast import Diary
from edge_sdk.journal import Journal
from edge_sdk.ladder import Means, Room
from edge_sdk.policy import (
    GATE_EVERY_S,
    GATE_WORKING_S,
    Conditions,
    Policy,
    judge,
    resident_bytes,
)
from edge_sdk.quiet import QuietHours
from edge_sdk.reasons import Reason
from edge_sdk.signals import NOTHING, GateClosed, GateOpened, Spent
from edge_sdk.user_code import blamed

# The first time that a packet finds less than this of the day's bytes beside itself, the rest is
# kept for answers to what was said before: an invitation, a bitmap, a receipt and a settlement.
ANSWER_BYTES: Final = 1_024
_LEFT_S_MIN: Final = 0.001
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
        memory: resident bytes of this process.

    Attributes:
        opted_out: whether the owner has closed the gate for good.
        allowed: what the last look found, an opt-out aside.
        trainer_hung: whether a trainer does not stop: nothing is begun beside it.
        gate: what the last look found.
        due_s: when to look again, by the monotonic clock.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        conditions: Callable[[], Conditions],
        journal: Journal,
        energy: Energy,
        traffic: Callable[[], tuple[int, int]],
        memory: Callable[[], int] = resident_bytes,
    ) -> None:
        self.opted_out = False
        self.allowed: GateOpened | GateClosed | None = None
        self.gate: GateOpened | GateClosed | None = None
        self.due_s = 0.0
        self.trainer_hung = False
        self._policy = policy
        self._conditions = conditions
        self._journal = journal
        self._energy = energy
        self._traffic = traffic
        self._memory = memory
        self._memory_before: int | None = None
        self._meter = DayMeter(journal, policy)
        self._quiet = QuietHours(policy.quiet_hours)
        self._diary = Diary.load(journal.spells())
        self._work = NOTHING
        self._watts: float | None = None
        self._working_since_s: float | None = None
        self._this_work = NOTHING
        self._spent = NOTHING
        self._passed_bytes = 0
        self._short_on: int | None = None
        self._last_training = NOTHING
        self._last_head_training = NOTHING
        self._last_evaluation = NOTHING

    # -- work --------------------------------------------------------------------------------

    def work_begins(self, now_s: float) -> None:
        """Something is trained or evaluated from now on; look soon."""
        self._working_since_s, self._this_work = now_s, NOTHING
        if self._policy.training_memory_bytes_max:
            self._memory_before = self._memory()
        self.due_s = min(self.due_s, now_s + self._look_again_s())

    def work_ends(
        self, now_s: float, *, trained: bool, finished: bool, head_alone: bool = False
    ) -> Spent:
        """It is over; what it took is what the next one is expected to take, if it was finished.

        Returns:
            What it took.
        """
        self._note_work(now_s)
        self._working_since_s = self._memory_before = None
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
        more = Spent(0, seconds * self._work_w, seconds)
        self._work, self._this_work = self._work + more, self._this_work + more
        self._working_since_s = now_s

    def means(self) -> Means:
        """What is left of the day, and what work takes; from any thread, as of the last look."""
        room = Room.left(self._policy.budgets, self._spent)
        return Means(room, self._last_training, self._last_head_training, self._last_evaluation)

    def _look_again_s(self) -> float:
        """How long a look may wait: while it works, no longer than a budget lasts."""
        if self._working_since_s is None:
            return GATE_EVERY_S
        left_s = self.means().room.seconds_of_work(self._work_w)
        return min(max(left_s, _LEFT_S_MIN), GATE_WORKING_S)

    @property
    def _work_w(self) -> float:
        return self._energy.training_w if self._watts is None else self._watts

    # -- bytes -------------------------------------------------------------------------------

    @property
    def hangs_up(self) -> bool:
        """Whether the day's bytes are spent, so that the link has to be down until it is over."""
        gate = self.gate
        return isinstance(gate, GateClosed) and gate.reason == Reason.BYTE_BUDGET_SPENT

    def may_send(self, packet_bytes: int, last_word: bool = False) -> bool:  # noqa: FBT001, FBT002 - a callback
        """Whether the day's bytes do for a packet and its answer; for the driver, on its thread.

        When they do not, the budget counts as spent for the rest of the day. `last_word`: nothing
        answers this one, and it may take what is kept for answers.
        """
        budget = self._policy.bytes_per_day_max
        if not budget:
            return True
        passed = self._spent.traffic_bytes + sum(self._traffic()) - self._passed_bytes
        if passed + packet_bytes + (0 if last_word else ANSWER_BYTES) <= budget:
            return True
        if self._short_on is None:
            self._short_on = self._meter.day
            self.due_s = 0.0
        return False

    # -- looks -------------------------------------------------------------------------------

    def look(self, at: Moment) -> GateOpened | GateClosed | None:
        """Judge; returns the gate if it is another than before, for the driver to be told."""
        gate: GateOpened | GateClosed
        try:
            now: Conditions | None = self._conditions()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the app's own code
            # The app's own source failed: nothing is known, so nothing is done.
            _log.warning("conditions: %s", blamed(error)[1])
            now = None
        spent = self.spend(at)
        self.due_s = at.now_s + self._look_again_s()
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
                forecast_s=0.0 if now.window_s is not None else self._diary.forecast_s(at.unix_s),
            )
        if isinstance(gate, GateOpened):
            gate = self._mind_the_trainer() or gate
        self.allowed = gate
        if self.opted_out:
            gate = GateClosed("opted_out")
        self._note_day(at.unix_s, is_open=isinstance(gate, GateOpened))
        if gate == self.gate:
            return None
        self.note_waits(gate)
        self.gate = gate
        return gate

    def _mind_the_trainer(self) -> GateClosed | None:
        """What a trainer does that no condition shows."""
        if self.trainer_hung:
            return GateClosed("trainer_hung")
        most = self._policy.training_memory_bytes_max
        if self._memory_before is not None and self._memory() - self._memory_before > most:
            return GateClosed("training_memory")
        return None

    def note_waits(self, gate: GateOpened | GateClosed) -> None:
        """Write down for people why nothing is begun."""
        self._journal.note_waits(gate.reason if isinstance(gate, GateClosed) else "")

    def spend(self, at: Moment, *, at_once: bool = False) -> Spent:
        """The day's sums so far."""
        self._note_work(at.now_s)
        sent, received = self._traffic()
        self._passed_bytes = sent + received
        radio = Spent(self._passed_bytes, self._energy.radio_j(sent, received))
        spent = self._meter.spent_today(
            self._work + radio, unix_s=at.unix_s, now_s=at.now_s, at_once=at_once
        )
        if self._short_on not in (None, self._meter.day):
            self._short_on = None
        if self._short_on is not None:
            spent = replace(
                spent, traffic_bytes=max(spent.traffic_bytes, self._policy.bytes_per_day_max)
            )
        self._spent = spent
        return spent

    def _note_day(self, unix_s: float, *, is_open: bool) -> None:
        """Remember since when the gate is open: a write when it changes, or once in an hour."""
        diary = self._diary.note(unix_s, is_open=is_open)
        if diary.spells != self._diary.spells:
            self._journal.note_spells(diary.kept)
        self._diary = diary
