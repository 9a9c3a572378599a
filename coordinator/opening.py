"""When a round or a buffer opens, whom it invites, and what holds it up.

How many, whom and for how long is the planner's to say. This asks it at the right moment: not while
a round is open, the link is down, an operator has paused, the disk is full or the byte budget is
spent; and puts a new federation file in force at the edge between two rounds.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from coordinator import buffer
from coordinator import round as rounds
from coordinator.config import FederationConfig
from coordinator.course import Course
from coordinator.current import CurrentRound
from coordinator.evaluating import Evaluations
from coordinator.headroom import Headroom
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.planner import Planner
from coordinator.signals import Chosen, Open, RoundOpened
from coordinator.store import DiskFullError, Store
from coordinator.timers import DISK_AGAIN_S, PLAN_AGAIN, Timers
from wire import Report

# Check-ins come in bursts; one look at the leases serves for all of a moment.
PLAN_AFTER_S: Final = 0.02
_SEED_MASK: Final = 2**53 - 1
_PAUSED: Final = "paused"
_ALL: Final = 1 << 30
_FLOAT_BYTES: Final = 4


class Opening:
    """Opens the rounds of one federation.

    Args:
        course: how far the federation has come.
        current: the round that is open, or was last.
        store: where everything durable is.
        models: the model through its versions.
        leases: which devices are there; inviting one uses its lease up.
        planner: how many, whom and for how long.
        evaluations: asks whom training has no use for.
        headroom: whether there is room on the disk.
        timers: set for when to look again.
        step: gives the round an event.
        observe: told every `Report`.
        run_over: called when every round is closed, also after a restart.
        put_in_force: makes everybody read another federation file.
        seed: the federation's public seed.
        chunk_bytes_max: of updates on their way up.

    Attributes:
        link_is_up: whether invitations would reach anybody.
        chunk_bytes_max: of updates on their way up, from the next round on.
        paused: whether an operator has said that no round opens.
        release_waits: whether the run is over and its last model is still to be released.
    """

    def __init__(
        self,
        *,
        course: Course,
        current: CurrentRound,
        store: Store,
        models: Models,
        leases: Leases,
        planner: Planner,
        evaluations: Evaluations,
        headroom: Headroom,
        timers: Timers,
        step: Callable[[object, float], None],
        observe: Callable[[Report], None],
        run_over: Callable[[float], None],
        put_in_force: Callable[[FederationConfig], None],
        seed: int,
        chunk_bytes_max: int,
    ) -> None:
        self.link_is_up = False
        self.chunk_bytes_max = chunk_bytes_max
        self.paused = store.get(_PAUSED) is not None
        self.release_waits = False
        self._course = course
        self._current = current
        self._store = store
        self._models = models
        self._leases = leases
        self._planner = planner
        self._evaluations = evaluations
        self._headroom = headroom
        self._timers = timers
        self._step = step
        self._observe = observe
        self._run_over = run_over
        self._put_in_force = put_in_force
        self._seed = seed
        self._next_config: FederationConfig | None = None

    # -- what it is told ---------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """Begin to plan, with the last round in mind."""
        last = self._store.round(self._course.last_round)
        if last is not None:
            self._planner.round_opened(last["opened_at"])
        self._timers[PLAN_AGAIN] = now_s

    def pause(self) -> None:
        """Open no new round, over restarts too, until `resume`; one that is open goes on."""
        if not self.paused:
            self._store.put(_PAUSED, b"1")
            self.paused = True
            self._observe(Report("paused", "no new round opens"))

    def resume(self, now_s: float) -> None:
        """Open rounds again."""
        if self.paused:
            self._store.drop(_PAUSED)
            self.paused = False
            self._observe(Report("resumed", "rounds open again"))
            self.plan_soon(now_s)

    def reconfigure(self, config: FederationConfig, now_s: float) -> None:
        """From the next round on another file is in force; an open round keeps the one it has."""
        self._next_config = config
        if not self._current.is_open:
            self._timers[PLAN_AGAIN] = now_s

    def _apply(self) -> None:
        if self._next_config is not None:
            self._put_in_force(self._next_config)
            self._next_config = None

    # -- when --------------------------------------------------------------------------------

    def plan_soon(self, now_s: float) -> None:
        """Somebody is there who was not before: look whether somebody can be invited."""
        current = self._current
        has_room = current.is_open and current.fills_buffer and buffer.room(current.state)
        if not current.is_open or has_room or self._evaluations.wants:
            at_s = max(now_s + PLAN_AFTER_S, self._planner.earliest_s(now_s))
            self._timers[PLAN_AGAIN] = min(self._timers.get(PLAN_AGAIN, at_s), at_s)

    def plan(self, now_s: float) -> None:
        """Open the next round as soon as enough eligible devices are there to be chosen from."""
        if self._current.is_open:
            self._invite_more(now_s)
            self._ask_evaluators(now_s)
            return
        if self._is_over(now_s) or self.paused:
            return  # whoever lets it go on asks again
        if not self.link_is_up and now_s >= self._planner.earliest_s(now_s):
            return  # whoever says that it is back asks again
        if not self._headroom.has_room(0):
            self._timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        if self._course.config.rounds.mode == "async":
            self._open_buffer(now_s)
            return
        verdict = self._planner.look(now_s)
        if verdict.again_at_s is not None:
            self._timers[PLAN_AGAIN] = verdict.again_at_s
        if verdict.open_now:
            self._open(now_s)
            self._ask_evaluators(now_s)

    def _is_over(self, now_s: float) -> bool:
        """Put a new file in force; then whether there is nothing left to open, or no room to."""
        try:
            self._apply()
            over = self._course.all_done or not self._course.can_pay()
            self.release_waits = over
            if over:
                self._ask_evaluators(now_s)
                if not self._evaluations.is_open:
                    self._run_over(now_s)
                    self.release_waits = False
        except DiskFullError:
            self._headroom.ran_out()
            self._timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return True
        return over

    def keep_collecting(self, now_s: float) -> None:
        """There is always an open buffer, so that no update comes in vain; its room is used.

        Where something has to be seen to before, the next plan does that and opens it.
        """
        if self._current.is_open:
            self.plan_soon(now_s)
            return
        held_up = self._course.all_done or self.paused or self._next_config is not None
        held_up = held_up or not self._course.can_pay()
        is_async = self._course.config.rounds.mode == "async"
        if is_async and not held_up and self._headroom.has_room(0):
            self._open_buffer(now_s)

    # -- a round, a buffer -------------------------------------------------------------------

    def _open(self, now_s: float) -> None:
        number = self._course.next_round
        deadline_at_s = now_s + self._planner.deadline_s(self._bytes_both_ways())
        chosen = self._planner.choose(
            number, self._planner.to_invite(), now_s=now_s, deadline_at_s=deadline_at_s
        )
        cohort = min(self._course.config.rounds.cohort, len(chosen))
        opened = msgspec.structs.replace(
            self._round_from(number, now_s, deadline_at_s, cohort),
            invited={lease.device: lease.check_in for lease in chosen},
        )
        self._current.begin(opened)
        try:
            self._step(Open(opened), now_s)
        except DiskFullError:
            self._timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        for lease in chosen:
            self._leases.end(lease.device)
        self._planner.round_opened(now_s)

    def _open_buffer(self, now_s: float) -> None:
        """Open an asynchronous round: whoever is at work for an earlier one may fill it, too."""
        config, current = self._course.config.rounds, self._current
        deadline_at_s = now_s + self._planner.deadline_s(self._bytes_both_ways())
        flights = current.state.flights if current.fills_buffer else self._store.flights(now_s)
        opened = msgspec.structs.replace(
            self._round_from(self._course.next_round, now_s, deadline_at_s, config.cohort),
            mode="async",
            concurrency=self._planner.to_invite(),
            staleness_max=config.staleness_max,
        )
        current.begin(opened)
        try:
            self._step(Open(opened, flights), now_s)
        except DiskFullError:
            self._timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        self._planner.round_opened(now_s)

    def _round_from(
        self, number: int, now_s: float, deadline_at_s: float, cohort: int
    ) -> RoundOpened:
        """What rounds of both modes begin with: the newest version, and the file as it is now."""
        config = self._course.config
        return RoundOpened(
            round=number,
            base_version=self._models.version,
            base_digest=self._models.digest,
            plan=config.plan((self._seed * 1_000_003 + number) & _SEED_MASK),
            codec=config.uplink_spec(cohort),
            cohort=cohort,
            needed=config.rounds.needed,
            invited={},
            opened_at_s=now_s,
            deadline_at_s=deadline_at_s,
            chunk_bytes_max=self.chunk_bytes_max,
            weight_cap=config.aggregation.weight_cap,
            aggregation=config.aggregation.plan(),
            there=self._planner.there(now_s),
        )

    def _bytes_both_ways(self) -> int:
        """What a round costs a device at most: a whole model down, an update up."""
        return 2 * _FLOAT_BYTES * self._models.schema.parameters

    # -- who else is asked -------------------------------------------------------------------

    def _invite_more(self, now_s: float) -> None:
        """Fill the room of an open buffer with devices that are there and can still join it.

        A device joins a buffer once. Whom nothing came of gets another try when the time of the
        first is over; those who had none go first.
        """
        current = self._current
        if not current.fills_buffer or not self.link_is_up:
            return
        room, opened = buffer.room(current.state), current.opened
        earliest_s = self._planner.earliest_s(now_s)
        if not room or now_s < earliest_s:
            if room:
                self._timers[PLAN_AGAIN] = earliest_s
            return
        whole_s = rounds.whole_s(opened)
        ranked = [
            lease
            for lease in self._planner.choose(
                opened.round, _ALL, now_s=now_s, deadline_at_s=now_s + whole_s
            )
            if lease.device not in current.heard and not current.waits_for(lease.device)
        ]
        new = [lease for lease in ranked if lease.device not in current.invited_at]
        again = [
            lease
            for lease in ranked
            if lease.device in current.invited_at
            and now_s >= current.invited_at[lease.device] + whole_s
        ]
        chosen = {lease.device: lease.check_in for lease in (new + again)[:room]}
        if not chosen:
            return
        try:
            self._step(Chosen(chosen), now_s)
        except DiskFullError:
            self._timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        for device in chosen:
            self._leases.end(device)
            current.declines.pop(device, None)

    def _ask_evaluators(self, now_s: float) -> None:
        """Whoever is left over when training has had its choice may be asked to evaluate."""
        if self._evaluations.wants and self.link_is_up:
            self._evaluations.ask(self._planner.eligible(now_s), now_s)
