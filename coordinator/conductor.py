"""Rounds, one after the other: when to open the next, and what each asks for along the way.

The round itself is a sans-IO machine (`coordinator.round`); this is its driver. It executes effects
in order, a `Persist` being on disk before the next effect runs, and feeds back what validating and
committing found. It has no thread, no socket and no clock.
"""

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from coordinator import buffer, sizing
from coordinator import round as rounds
from coordinator.aggregation import RoundAggregation
from coordinator.config import FederationConfig
from coordinator.epochs import Numbering
from coordinator.evaluating import EVALUATION_OVER, Evaluations
from coordinator.evaluation import Evaluator, evaluate, pooled_metrics
from coordinator.headroom import Headroom
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.participation import Classes, Participation, Past
from coordinator.planner import Planner
from coordinator.quarantine import QUARANTINED, Quarantine
from coordinator.retention import Keeper
from coordinator.selection import FLOOR_ROUNDS, FloorWindow, Shares
from coordinator.signals import (
    Accepted,
    Chosen,
    ClockSet,
    Commit,
    Committed,
    DeviceAsks,
    FlightEnded,
    InviteeLost,
    Open,
    Rejected,
    Resume,
    RoundAbandoned,
    RoundInvited,
    RoundOpened,
    UpdateArrived,
    UpdateSettled,
    UpdateStored,
    Validate,
)
from coordinator.store import DiskFullError, Store
from wire import (
    CancelWake,
    Effect,
    LocalProtocolError,
    Persist,
    PotluckError,
    Publish,
    RemoteProtocolError,
    Report,
    WakeAt,
    Woke,
    chunk_bytes_for,
)
from wire.messages import EvaluationReport, Message, Settled

PLAN_AGAIN: Final = "plan_again"
# Check-ins come in bursts; one look at the leases serves for all of a moment.
PLAN_AFTER_S: Final = 0.02
# What comes later than this after its round opened says nothing of how long training takes.
LATE_S_MAX: Final = 86_400.0
ABANDONED_PAUSE_S: Final = 2.0
# What could not be written for lack of space is tried again this often, in seconds.
DISK_AGAIN: Final = "disk_again"
DISK_AGAIN_S: Final = 5.0
LET_GO: Final = "let_go"
LET_GO_AGAIN_S: Final = 1.0
# What an update is settled with that came when its round had all it needed, or too late for any.
ROUND_CLOSED: Final = "round_closed"
TOO_STALE: Final = "too_stale"
_SEED_MASK: Final = 2**53 - 1
_PAUSED: Final = "paused"
_ALL: Final = 1 << 30
_FLOAT_BYTES: Final = 4
BYTE_BUDGET_SPENT: Final = "byte_budget_spent"

_OPEN_PHASES: Final = (rounds.Phase.INVITING, rounds.Phase.COLLECTING, rounds.Phase.CLOSING)


class Conductor:
    """Opens, drives and closes the rounds of one federation.

    Args:
        config: the federation's file.
        store: where everything durable is.
        models: the model through its versions.
        leases: which devices are there.
        classes: which class each device was enrolled as.
        evaluator: what `task.test()` returned, or None.
        publish: sends a message to a device.
        observe: told every `Report`.
        count_incident: told of every update that was rejected.
        traffic: (sent, received) bytes so far.
        understands: whether a device speaks a version of the protocol that has evaluations.
        run_over: called when every round is closed, also after a restart.
        needed_versions: whose whole tensors stay when there is a new one.
        headroom: whether there is room on the disk.
        reconfigured: told when another federation file comes into force, before it does.
        seed: the federation's public seed.
        first_gathering: how many devices to hear before the first round, if they come in time.
        gathering_until_s: when that patience ends, unix seconds.

    Attributes:
        ended: why the federation is over before its last round; empty while it is not.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        store: Store,
        models: Models,
        leases: Leases,
        classes: Classes,
        evaluator: Evaluator | None,
        publish: Callable[[Message, str], None],
        observe: Callable[[Report], None],
        count_incident: Callable[[str, RemoteProtocolError], None],
        traffic: Callable[[], tuple[int, int]],
        understands: Callable[[str], bool],
        run_over: Callable[[float], None],
        needed_versions: Callable[[], frozenset[int]],
        headroom: Headroom,
        reconfigured: Callable[[FederationConfig], None],
        seed: int,
        first_gathering: int,
        gathering_until_s: float,
    ) -> None:
        self.round = rounds.RoundState()
        self.timers: dict[str, float] = {}
        self.link_is_up = False
        self.paused = store.get(_PAUSED) is not None
        self.chunk_bytes_max = chunk_bytes_for(config.broker.packet_bytes_max)
        self._config = config
        self._store = store
        self._models = models
        self._leases = leases
        self._evaluator = evaluator
        self._publish = publish
        self._observe = observe
        self._count_incident = count_incident
        self._traffic = traffic
        self._run_over = run_over
        self._needed_versions = needed_versions
        self._headroom = headroom
        self._reconfigured = reconfigured
        self._next_config: FederationConfig | None = None
        self._keeper = Keeper(store)
        self._seed = seed
        self._last_round = store.last_round()
        self._numbering = Numbering.read(store)
        self.planner = Planner(
            config=config,
            leases=leases,
            participation=Participation(classes, store.participation()),
            window=_window(store, classes),
            seed=seed,
            first_gathering=first_gathering,
            gathering_until_s=gathering_until_s,
        )
        self.evaluations = Evaluations(
            config=config,
            store=store,
            leases=leases,
            understands=understands,
            publish=publish,
            observe=observe,
        )
        self.quarantine = Quarantine(
            store,
            strikes_max=config.aggregation.strikes_max,
            quarantine_s=config.aggregation.quarantine_s,
            share_max=config.aggregation.attackers_max,
        )
        self._rejected = 0
        self._payloads: dict[bytes, bytes] = {}
        self._aggregation: RoundAggregation | None = None
        # Why an update that is about to be settled was refused: its device's fault.
        self._offences: dict[bytes, str] = {}
        self._kept: set[bytes] = set()
        self._events: deque[object] = deque()
        self._postponed: deque[object] = deque()
        self._release_waits = False
        self.ended = ""
        # Sent and received: up to the last round's end, and in this one before a restart.
        self._traffic_before = (0, 0)
        self._traffic_carried = (0, 0)
        closed_bytes = store.closed_bytes()
        self._closed_bytes = sum(closed_bytes)
        self._last_bytes = deque(closed_bytes, maxlen=sizing.BUDGET_ROUNDS)
        self._declines: dict[str, str] = {}
        # Of an open buffer: when each device was invited to it, and whose update for it is decided.
        self._invited_at: dict[str, float] = {}
        self._heard: set[str] = set()

    @property
    def is_open(self) -> bool:
        """Whether a round is under way."""
        return self.round.phase in _OPEN_PHASES

    @property
    def _fills_buffer(self) -> bool:
        """Whether the round that is open, or was last, is asynchronous."""
        return self.round.opened is not None and self.round.opened.mode == "async"

    def waits_for(self, device: str, round_number: int = 0) -> bool:
        """Whether a device is invited and has not delivered; to a certain round, if not 0."""
        opened = self.round.opened
        if opened is None or not self.is_open:
            return False
        if self._fills_buffer:
            flight = self.round.flights.get(device)
            return flight is not None and round_number in (0, flight.round)
        return device in self.round.waiting_for and round_number in (0, opened.round)

    def may_still_train(self, device: str, now_s: float) -> bool:
        """Whether the open round waits for a device, and has time left for it to begin."""
        opened = self.round.opened
        if opened is None or not self.waits_for(device, opened.round):
            return False
        if self._fills_buffer:
            return now_s < self.round.flights[device].until_s
        return now_s < opened.deadline_at_s

    @property
    def waits_for_somebody_new(self) -> bool:
        """Whether nothing goes on before a device comes that can be invited."""
        return not self.is_open or (self._fills_buffer and not self.round.flights)

    @property
    def late_word(self) -> str:
        """What an update is settled with that cannot be taken any more."""
        return TOO_STALE if self.is_open and self._fills_buffer else ROUND_CLOSED

    def why_late(self, opened: RoundOpened) -> str | None:
        """Why an update for this round is not taken any more; None if it is."""
        current = self.round.opened
        if current is None or not self.is_open:
            return ROUND_CLOSED
        staleness = current.base_version - opened.base_version
        in_time = opened.round == current.round or (
            self._fills_buffer and 0 <= staleness <= current.staleness_max
        )
        return None if in_time else self.late_word

    def taken(self, round_number: int) -> RoundOpened | None:
        """The round of this number, if its updates are taken now."""
        current = self.round.opened
        if current is None or round_number == current.round:
            return current if self.is_open else None
        earlier = self._store.round_opened(round_number) if self._fills_buffer else None
        return None if earlier is None or self.why_late(earlier) else earlier

    def note_refused(self, device: str, round_number: int) -> None:
        """A device's update for a round is settled without being taken."""
        if self.round.opened is not None and round_number == self.round.opened.round:
            self._heard.add(device)

    @property
    def finished(self) -> bool:
        """Whether every round of the federation is closed, and its last model measured.

        Or no further round can be paid for.
        """
        over = not self.is_open and (self._all_done or bool(self.ended))
        return over and not self._release_waits and not self.evaluations.is_open

    @property
    def _all_done(self) -> bool:
        return self._numbering.rounds_done(self._last_round) >= self._config.rounds.count

    @property
    def waits_for_room(self) -> bool:
        """Whether the open round cannot go on before there is room on the disk."""
        return bool(self._postponed)

    def start(self, now_s: float) -> None:
        """Resume the round that the last run left open, if it did, and begin to plan."""
        if self.paused:
            self._observe(Report("paused", "since an earlier run; POST /v1/resume lets it go on"))
        unfinished = self._store.unfinished_round()
        if unfinished is not None:
            opened, stored = unfinished
            self._begin(opened)
            self._traffic_carried = self._store.traffic(opened.round)
            self._declines = self._store.declines(opened.round)
            heard = {row.device for row in self._store.updates(opened.round)} | set(self._declines)
            flights = self._store.flights(now_s)
            self._invited_at = self._store.invited_at(opened.round)
            self._heard = self._store.devices_heard(opened.round)
            self.step(Resume(opened, stored, frozenset(heard), flights), now_s)
        last = self._store.round(self._last_round)
        if last is not None:
            self.planner.round_opened(last["opened_at"])
        self.timers[PLAN_AGAIN] = now_s

    def wake(self, timer: str, now_s: float) -> None:
        """Run a timer that is due."""
        match timer:
            case "plan_again":
                self._plan(now_s)
            case "disk_again":
                self._go_on(now_s)
            case "let_go":
                self._let_go(now_s)
            case "evaluation_over":
                self.evaluations.close()
                self.plan_soon(now_s)
            case _:
                self.step(Woke(timer), now_s)

    def plan_soon(self, now_s: float) -> None:
        """Somebody is there who was not before: look whether somebody can be invited."""
        has_room = self.is_open and self._fills_buffer and buffer.room(self.round)
        if not self.is_open or has_room or self.evaluations.wants:
            at_s = max(now_s + PLAN_AFTER_S, self.planner.earliest_s(now_s))
            self.timers[PLAN_AGAIN] = min(self.timers.get(PLAN_AGAIN, at_s), at_s)

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

    def expects(self, update: UpdateStored) -> bool:
        """Whether the open round has a use for a whole update; else it is late, or here already."""
        return (
            self.is_open
            and self.taken(update.round) is not None
            and update.update_id not in self.round.updates
        )

    def keep(self, arrived: Sequence[tuple[UpdateStored, bytes]]) -> None:
        """Write updates that came together in one transaction, ahead of `take`.

        A restart between the two finds them on disk, as after the `Persist` of each, and resumes
        the round with them. When the transaction fails, `take` writes each for itself, and what
        fails then says why. In a buffer each is written for itself: one of them may fill it, and
        the next belongs to another.
        """
        if self._fills_buffer:
            return
        fresh = [(update, payload) for update, payload in arrived if self.expects(update)]
        try:
            with self._store.transaction():
                for update, payload in fresh:
                    self._store.store_update(update, payload)
        except (sqlite3.Error, PotluckError):
            return
        self._kept = {update.update_id for update, _payload in fresh}

    def take(self, update: UpdateStored, payload: bytes, now_s: float) -> None:
        """Hand a whole update to the round.

        Raises:
            DiskFullError: there is no room for it; nothing of it is kept.
        """
        self._payloads[update.update_id] = payload
        collected_in = rounds.opened_of(self.round).round
        update = msgspec.structs.replace(update, collected_in=collected_in)
        try:
            self.step(UpdateArrived(update), now_s)
        finally:
            self._payloads.pop(update.update_id, None)
            self._kept.discard(update.update_id)

    def lose(self, device: str, reason: str, now_s: float) -> None:
        """An invited device says that nothing will come from it."""
        self._declines[device] = reason
        if self.round.opened is not None:
            with self._headroom.or_not():
                self._store.note_declines(self.round.opened.round, self._declines)
        self.step(InviteeLost(device, reason), now_s)

    def take_report(self, device: str, report: EvaluationReport, now_s: float) -> None:
        """Enter what a device measured; see `Evaluations.take` for what is raised."""
        self.evaluations.take(device, report, now_s)
        if not self.evaluations.is_open:
            self.timers.pop(EVALUATION_OVER, None)
            self.plan_soon(now_s)

    def on_clock_step(self, by_s: float, now_s: float) -> None:
        """Somebody has set the clock: what was to happen in a while still does."""
        self.timers = {timer: at_s + by_s for timer, at_s in self.timers.items()}
        self._invited_at = {device: at_s + by_s for device, at_s in self._invited_at.items()}
        self.planner.on_clock_step(by_s)
        with self._headroom.or_not():
            self.quarantine.on_clock_step(by_s)
        self.evaluations.on_clock_step(by_s)
        if self.is_open:
            self.step(ClockSet(by_s), now_s)

    def step(self, event: object, now_s: float) -> None:
        """Give the round an event, execute its effects, and go on while they raise new events.

        An event whose record finds no room on the disk has not happened: the round is as it was,
        and the event waits, with all that come after it. A commit that finds none leaves the round
        closing, and waits likewise.

        Raises:
            DiskFullError: there is no room for an update, or for a round to open; neither waits.
        """
        if self._postponed:
            self._postpone(event)
            return
        self._events.append(event)
        if len(self._events) > 1:
            return  # a step is under way; it takes this one when its effects are done
        try:
            while self._events:
                self._advance(self._events[0], now_s)
                self._events.popleft()
        except DiskFullError:
            self._headroom.ran_out()
            if not self._postponed:
                raise
            self.timers[DISK_AGAIN] = now_s + DISK_AGAIN_S
        finally:
            # Whatever ended a step in the middle, the next one starts from its own event.
            self._events.clear()
        if self._fills_buffer:
            self._keep_collecting(now_s)

    @staticmethod
    def _is_async(event: object) -> bool:
        return isinstance(event, Open | Resume) and event.opened.mode == "async"

    def _keep_collecting(self, now_s: float) -> None:
        """There is always an open buffer, so that no update comes in vain; its room is used.

        Where something has to be seen to before, the next plan does that and opens it.
        """
        if self.is_open:
            self.plan_soon(now_s)
            return
        held_up = self._all_done or self.paused or self._next_config is not None
        held_up = held_up or not self._can_pay()
        if self._config.rounds.mode == "async" and not held_up and self._headroom.has_room(0):
            self._open_buffer(self._numbering.next_round(self._last_round), now_s)

    def _advance(self, event: object, now_s: float) -> None:
        before = self.round
        try:
            machine = buffer if self._fills_buffer or self._is_async(event) else rounds
            self.round, effects = machine.advance(self.round, event, now_s)
        except LocalProtocolError as error:
            self._observe(Report("unexpected", str(error)))
            return
        for effect in effects:
            try:
                self._execute(effect, now_s)
            except DiskFullError:
                if isinstance(effect, Commit):
                    self._postponed = deque((effect, *list(self._events)[1:]))
                else:
                    self.round = before
                    if not isinstance(event, UpdateArrived | Open | Chosen):
                        self._postponed = deque(self._events)
                raise

    def _postpone(self, event: object) -> None:
        """Put an event behind those that wait for room; no flood of them makes a long queue."""
        match event:
            case UpdateArrived() | Chosen():
                raise DiskFullError("the round waits for room on the disk")
            case DeviceAsks():
                return  # it asks again
            case InviteeLost(device, _):
                waits = {e.device for e in self._postponed if isinstance(e, InviteeLost)}
                if device in waits:
                    return
            case Woke() if event in self._postponed:
                return
        self._postponed.append(event)

    def _go_on(self, now_s: float) -> None:
        """Try again what found no room on the disk, in its order."""
        waiting, self._postponed = self._postponed, deque()
        while waiting:
            event = waiting.popleft()
            try:
                done = self._commit(event, now_s) if isinstance(event, Commit) else event
            except DiskFullError:
                self._postponed = deque((event, *waiting))
                self.timers[DISK_AGAIN] = now_s + DISK_AGAIN_S
                return
            self.step(done, now_s)
            if self._postponed:
                self._postponed.extend(waiting)
                return
        self._headroom.found()

    # -- another file ------------------------------------------------------------------------

    def reconfigure(self, config: FederationConfig, now_s: float) -> None:
        """From the next round on another file is in force; an open round keeps the one it has."""
        self._next_config = config
        if not self.is_open:
            self.timers[PLAN_AGAIN] = now_s

    def _apply(self) -> None:
        if self._next_config is not None:
            self._reconfigured(self._next_config)
            self._config, self._next_config = self._next_config, None
            self.planner.reconfigure(self._config)
            self._models.reconfigure(self._config.downlink.codec)

    # -- opening -----------------------------------------------------------------------------

    def _plan(self, now_s: float) -> None:
        """Open the next round as soon as enough eligible devices are there to be chosen from."""
        if self.is_open:
            self._invite_more(now_s)
            self._ask_evaluators(now_s)
            return
        if self._is_over(now_s) or self.paused:
            return  # whoever lets it go on asks again
        if not self.link_is_up and now_s >= self.planner.earliest_s(now_s):
            return  # whoever says that it is back asks again
        if not self._headroom.has_room(0):
            self.timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        number = self._numbering.next_round(self._last_round)
        if self._config.rounds.mode == "async":
            self._open_buffer(number, now_s)
            return
        verdict = self.planner.look(now_s)
        if verdict.again_at_s is not None:
            self.timers[PLAN_AGAIN] = verdict.again_at_s
        if verdict.open_now:
            self._open(number, now_s)
            self._ask_evaluators(now_s)

    def _is_over(self, now_s: float) -> bool:
        """Put a new file in force; then whether there is nothing left to open, or no room to."""
        try:
            self._apply()
            over = self._all_done or not self._can_pay()
            self._release_waits = over
            if over:
                self._ask_evaluators(now_s)
                if not self.evaluations.is_open:
                    self._run_over(now_s)
                    self._release_waits = False
        except DiskFullError:
            self._headroom.ran_out()
            self.timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return True
        return over

    def _can_pay(self) -> bool:
        """Whether the federation's byte budget has room for another round; said when it has not."""
        bytes_max, spent = self._config.rounds.bytes_max, self.spent_bytes
        if sizing.budget_allows(bytes_max, spent, self._last_bytes):
            self.ended = ""
        elif not self.ended:
            self.ended = BYTE_BUDGET_SPENT
            self._observe(
                Report(
                    BYTE_BUDGET_SPENT,
                    f"{spent} bytes of {bytes_max} are spent and another round may not fit; raise"
                    " [rounds] bytes_max to go on",
                )
            )
        return not self.ended

    @property
    def spent_bytes(self) -> int:
        """What the coordinator has sent and received, over restarts too."""
        return self._closed_bytes + sum(self._round_traffic())

    def _round_traffic(self) -> tuple[int, int]:
        """Sent and received since the last round ended."""
        (sent, received), (sent_0, received_0) = self._traffic(), self._traffic_before
        carried = self._traffic_carried
        return carried[0] + sent - sent_0, carried[1] + received - received_0

    def note_traffic(self) -> None:
        """Write down what the open round has cost so far, for whoever starts after a crash."""
        if self.is_open and self.round.opened is not None:
            self._store.note_traffic(self.round.opened.round, *self._round_traffic())

    def _bytes_both_ways(self) -> int:
        """What a round costs a device at most: a whole model down, an update up."""
        return 2 * _FLOAT_BYTES * self._models.schema.parameters

    def _open(self, number: int, now_s: float) -> None:
        config = self._config.rounds
        deadline_at_s = now_s + self.planner.deadline_s(self._bytes_both_ways())
        chosen = self.planner.choose(
            number, self.planner.to_invite(), now_s=now_s, deadline_at_s=deadline_at_s
        )
        opened = msgspec.structs.replace(
            self._round_from(number, now_s, deadline_at_s, min(config.cohort, len(chosen))),
            invited={lease.device: lease.check_in for lease in chosen},
        )
        self._begin(opened)
        try:
            self.step(Open(opened), now_s)
        except DiskFullError:
            self.timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        for lease in chosen:
            self._leases.end(lease.device)
        self.planner.round_opened(now_s)

    def _open_buffer(self, number: int, now_s: float) -> None:
        """Open an asynchronous round: whoever is at work for an earlier one may fill it, too."""
        config = self._config.rounds
        deadline_at_s = now_s + self.planner.deadline_s(self._bytes_both_ways())
        flights = self.round.flights if self._fills_buffer else self._store.flights(now_s)
        opened = msgspec.structs.replace(
            self._round_from(number, now_s, deadline_at_s, config.cohort),
            mode="async",
            concurrency=self.planner.to_invite(),
            staleness_max=config.staleness_max,
        )
        self._begin(opened)
        try:
            self.step(Open(opened, flights), now_s)
        except DiskFullError:
            self.timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        self.planner.round_opened(now_s)

    def _invite_more(self, now_s: float) -> None:
        """Fill the room of an open buffer with devices that are there and can still join it.

        A device joins a buffer once. Whom nothing came of gets another try when the time of the
        first is over; those who had none go first.
        """
        if not self._fills_buffer or not self.link_is_up:
            return
        room, opened = buffer.room(self.round), rounds.opened_of(self.round)
        earliest_s = self.planner.earliest_s(now_s)
        if not room or now_s < earliest_s:
            if room:
                self.timers[PLAN_AGAIN] = earliest_s
            return
        whole_s = rounds.whole_s(opened)
        ranked = [
            lease
            for lease in self.planner.choose(
                opened.round, _ALL, now_s=now_s, deadline_at_s=now_s + whole_s
            )
            if lease.device not in self._heard and not self.waits_for(lease.device)
        ]
        new = [lease for lease in ranked if lease.device not in self._invited_at]
        again = [
            lease
            for lease in ranked
            if lease.device in self._invited_at
            and now_s >= self._invited_at[lease.device] + whole_s
        ]
        chosen = {lease.device: lease.check_in for lease in (new + again)[:room]}
        if not chosen:
            return
        try:
            self.step(Chosen(chosen), now_s)
        except DiskFullError:
            self.timers[PLAN_AGAIN] = now_s + DISK_AGAIN_S
            return
        for device in chosen:
            self._leases.end(device)
            self._declines.pop(device, None)

    def _ask_evaluators(self, now_s: float) -> None:
        """Whoever is left over when training has had its choice may be asked to evaluate."""
        if self.evaluations.wants and self.link_is_up:
            self.evaluations.ask(self.planner.eligible(now_s), now_s)

    def _round_from(
        self, number: int, now_s: float, deadline_at_s: float, cohort: int
    ) -> RoundOpened:
        """What rounds of both modes begin with: the newest version, and the file as it is now."""
        config = self._config.rounds
        return RoundOpened(
            round=number,
            base_version=self._models.version,
            base_digest=self._models.digest,
            plan=self._config.plan((self._seed * 1_000_003 + number) & _SEED_MASK),
            codec=self._config.uplink_spec(cohort),
            cohort=cohort,
            needed=config.needed,
            invited={},
            opened_at_s=now_s,
            deadline_at_s=deadline_at_s,
            chunk_bytes_max=self.chunk_bytes_max,
            weight_cap=self._config.aggregation.weight_cap,
            aggregation=self._config.aggregation.plan(),
            there=self.planner.there(now_s),
        )

    def _begin(self, opened: RoundOpened) -> None:
        self.round = rounds.RoundState()
        self._declines = {}
        self._offences = {}
        self._invited_at = {}
        self._heard = set()
        self._aggregation = RoundAggregation(self._models.schema, opened, self._models.memory)

    # -- effects -----------------------------------------------------------------------------

    def _execute(self, effect: Effect, now_s: float) -> None:
        match effect:
            case Publish(message, device):
                self._publish(message, device)
                if isinstance(message, Settled):
                    self._leases.expect(device)
            case Persist(record):
                self._persist(record)
            case WakeAt(timer, at_s):
                self.timers[timer] = at_s
            case CancelWake(timer):
                self.timers.pop(timer, None)
            case Validate():
                self._events.append(self._validate(effect, now_s))
            case Commit():
                self._events.append(self._commit(effect, now_s))
            case Report():
                self._observe(effect)
            case _:
                raise LocalProtocolError(f"no driver for {type(effect).__name__}")

    def _persist(self, record: msgspec.Struct) -> None:
        match record:
            case RoundOpened():
                self._store.open_round(record)
                self._last_round = record.round
            case RoundInvited():
                self._store.note_invited(record)
                self._invited_at |= dict.fromkeys(record.invited, record.invited_at_s)
            case FlightEnded():
                self._store.end_flight(record)
            case UpdateStored():
                if record.update_id not in self._kept:
                    self._store.store_update(record, self._payloads[record.update_id])
                if self.round.opened is not None and record.round == self.round.opened.round:
                    self._heard.add(record.device)
            case UpdateSettled():
                self._settle(record)
            case RoundAbandoned():
                with self._store.transaction():
                    self._store.abandon_round(record)
                    changed = self._note_past(record.closed_at_s)
                self._adopt_past(changed, counted=[])
                self._note_course(record.round)
                self.timers[PLAN_AGAIN] = record.closed_at_s + ABANDONED_PAUSE_S
            case _:
                raise LocalProtocolError(f"no place for {type(record).__name__}")

    def _validate(self, effect: Validate, now_s: float) -> Accepted | Rejected:
        if self._aggregation is None:
            raise LocalProtocolError("no round is being summed")
        if self.quarantine.is_out(effect.device, now_s):
            return Rejected(effect.update_id, QUARANTINED)
        payload = self._payload(effect.update_id)
        try:
            self._aggregation.accept(
                effect.update_id,
                effect.device,
                effect.weight,
                payload,
                factor=buffer.staleness_factor(effect.staleness),
            )
        except RemoteProtocolError as error:
            self._count_incident(effect.device, error)
            self._offences[effect.update_id] = error.reason
            return Rejected(effect.update_id, error.reason)
        return Accepted(effect.update_id)

    def _settle(self, settled: UpdateSettled) -> None:
        """Decide an update that does not count; if it was no update, its device is struck."""
        offence = self._offences.pop(settled.update_id, None)
        device = self.round.owners[settled.update_id]
        out = False
        with self._store.transaction():
            self._store.settle(settled)
            if offence is not None:
                out = self.quarantine.strike(
                    device, settled.round, settled.settled_at_s, reason=offence
                )
        if out:
            self._keep_out(device, offence or "")

    def _keep_out(self, device: str, why: str) -> None:
        self._leases.end(device)
        self._observe(Report("quarantined", why, device))

    def _commit(self, effect: Commit, now_s: float) -> Committed:
        if self._aggregation is None:
            raise LocalProtocolError("no round is being summed")
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            outcome = self._aggregation.finish(effect.accepted, read=self._payload)
            commit, state = self._models.next_version(
                outcome.change, effect.round, effect.accepted, outcome.memory
            )
        with self._store.transaction():  # an operator may release a version at this very moment
            self._store.commit_round(commit, now_s, keep=self._needed_versions())
            kept_out = self.quarantine.score(outcome.scores, effect.round, now_s)
            changed = self._note_past(now_s)
        self._models.adopt(commit, state)
        self._aggregation = None
        trained = [self.round.owners[key] for key in effect.accepted]
        self._adopt_past(changed, trained)
        for device, why in kept_out:
            self._keep_out(device, why)
        self._after_commit(effect.round, now_s)
        last = self._numbering.rounds_done(effect.round) >= self._config.rounds.count
        # One that is under way goes on; only the last model is worth ending it early.
        if self.evaluations.due(commit.version) and (last or not self.evaluations.is_open):
            self.evaluations.begin(effect.round, commit.version, commit.digest, trained, now_s)
            self.timers[EVALUATION_OVER] = self.evaluations.over_at_s
        return Committed(commit.version, commit.digest)

    def _payload(self, update_id: bytes) -> bytes:
        return self._payloads.get(update_id) or self._store.payload(update_id)

    # -- what a round leaves of its devices --------------------------------------------------

    def _opened(self) -> RoundOpened:
        if self.round.opened is None:
            raise LocalProtocolError("no round has been opened")
        return self.round.opened

    def _note_past(self, now_s: float) -> dict[str, Past]:
        """Write the histories that the round changes, in the transaction that ends it."""
        opened = self._opened()
        heard = self._store.heard_in(opened)
        # Of a buffer's devices those count that are back: the others are still at work.
        invited = (
            {each.device for each in heard} | set(self._declines)
            if self._fills_buffer
            else opened.invited
        )
        changed = self.planner.participation.after_round(
            opened.round,
            invited,
            heard,
            self._declines,
            passed_s=max(now_s - opened.opened_at_s, 0.0),
            deadline_passed=now_s >= opened.deadline_at_s,
        )
        self._rejected = sum(not each.honest for each in heard)
        self._store.note_participation(changed)
        return changed

    def _adopt_past(self, changed: dict[str, Past], counted: list[str]) -> None:
        """Remember what is on disk."""
        self.planner.round_closed(changed, self._opened().there, counted, self._rejected)

    def note_too_slow(self, device: str, round_number: int) -> None:
        """A device has had the whole of a round that is over, and was not done."""
        opened = self._store.round_opened(round_number)
        if opened is None or device not in opened.invited:
            return
        whole_s = opened.deadline_at_s - opened.opened_at_s
        changed = self.planner.participation.after_too_slow(device, whole_s)
        self._store.note_participation(changed)
        self.planner.participation.adopt(changed)

    def note_late(self, device: str, round_number: int, now_s: float) -> None:
        """An update came when its round was over: at least it is known how long it took."""
        opened = self._store.round_opened(round_number)
        after_s = 0.0 if opened is None else now_s - opened.opened_at_s
        if not 0.0 < after_s <= LATE_S_MAX:
            return  # of another clock, or of another day
        changed = self.planner.participation.after_late(device, after_s)
        self._store.note_participation(changed)
        self.planner.participation.adopt(changed)

    def _after_commit(self, round_number: int, now_s: float) -> None:
        """What is told of a version, none of which it depends on."""
        if self._evaluator is not None:
            try:
                metrics = evaluate(self._evaluator, self._models, self._config.plan(0))
            except Exception as error:  # noqa: BLE001 - user code; the version is committed already
                self._observe(Report("evaluation_failed", f"{type(error).__name__}: {error}"))
                metrics = {}
            with self._headroom.or_not():
                self._store.note_round(round_number, metrics, "test")
        else:
            with self._headroom.or_not():
                self._note_holdouts(round_number)
        self._note_course(round_number)
        self.timers[PLAN_AGAIN] = now_s

    def _note_holdouts(self, round_number: int) -> None:
        """Devices measured their base on their hold-outs: that is the round before theirs.

        If that one was abandoned the base is an older version, whose figures these are.
        """
        invited_to = {row.round for row in self._store.updates(round_number) if row.counted}
        for number in sorted(invited_to):
            pooled = pooled_metrics(self._store.update_metrics(number))
            opened = self._store.round_opened(number)
            base = None if opened is None else opened.base_version
            if number > 1:
                self._store.note_round(number - 1, pooled, version=base)
            elif base is not None:
                self._store.note_version(base, pooled)

    def _note_course(self, round_number: int) -> None:
        """What a report wants to know of a round that is over."""
        sent, received = self._round_traffic()
        with self._headroom.or_not(), self._store.transaction():
            self._store.note_declines(round_number, self._declines)
            self._store.note_traffic(round_number, sent, received)
        self._closed_bytes += sent + received
        self._last_bytes.append(sent + received)
        self._traffic_before, self._traffic_carried = self._traffic(), (0, 0)
        self.timers[LET_GO] = 0.0

    def _let_go(self, now_s: float) -> None:
        """Let go of a little that is old, and of more in a while if there is more."""
        with self._headroom.or_not():
            if self._keeper.step(self._config.retention, self._models.version, now_s):
                self.timers[LET_GO] = now_s + LET_GO_AGAIN_S


def _window(store: Store, classes: Classes) -> FloorWindow:
    """The latest rounds by class, as the store has them."""
    window = FloorWindow()
    since = max(store.last_round() - FLOOR_ROUNDS + 1, 1)
    counted = store.counted_by_round(since)
    for row in store.rounds(since):
        if row["status"] != "open":
            there = msgspec.msgpack.decode(row["record"], type=RoundOpened).there
            of_round = counted.get(row["round"], [])
            window.rounds.append(Shares(there, Counter(classes(device) for device in of_round)))
    return window
