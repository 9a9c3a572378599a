"""Rounds, one after the other: the driver of their machine.

The round itself is a sans-IO machine (`coordinator.round`, or `coordinator.buffer`). This executes
its effects in order, a `Persist` being on disk before the next effect runs, and feeds back what
validating and committing found. When a round opens is `coordinator.opening`'s to say, what becomes
of its updates `coordinator.closing`'s. There is no thread, no socket and no clock.
"""

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec

from coordinator import buffer, evaluating, timers
from coordinator import round as rounds
from coordinator.closing import Closing
from coordinator.config import FederationConfig
from coordinator.course import Course
from coordinator.current import CurrentRound
from coordinator.evaluating import Evaluations
from coordinator.evaluation import Evaluator
from coordinator.headroom import Headroom
from coordinator.history import History
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.opening import Opening
from coordinator.participation import Classes, Participation
from coordinator.planner import Planner
from coordinator.quarantine import Quarantine
from coordinator.selection import FLOOR_ROUNDS, FloorWindow, Shares
from coordinator.signals import (
    Chosen,
    ClockSet,
    Commit,
    DeviceAsks,
    FlightEnded,
    InviteeLost,
    Open,
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
        timers: when what is to be done next, unix seconds.
        current: the round that is open, or was last.
        course: how far the federation has come.
        planner: how many devices are invited, which, and for how long.
        evaluations: measures versions with devices.
        quarantine: which devices are kept out.
        history: what rounds leave of their devices.
        opening: opens rounds.
        closing: closes them.
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
        self.timers: timers.Timers = {}
        self._store = store
        self._leases = leases
        self._publish = publish
        self._observe = observe
        self._headroom = headroom
        self._models = models
        self._reconfigured = reconfigured
        self.current = CurrentRound(store, models)
        self.course = Course(
            config=config, store=store, headroom=headroom, traffic=traffic, observe=observe
        )
        self.planner = Planner(
            config=config,
            leases=leases,
            participation=Participation(classes, store.participation()),
            window=_window(store, classes),
            seed=seed,
            first_gathering=first_gathering,
            gathering_until_s=gathering_until_s,
        )
        self.history = History(store, self.planner, self.current)
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
        self.opening = Opening(
            course=self.course,
            current=self.current,
            store=store,
            models=models,
            leases=leases,
            planner=self.planner,
            evaluations=self.evaluations,
            headroom=headroom,
            timers=self.timers,
            step=self.step,
            observe=observe,
            run_over=run_over,
            put_in_force=self._put_in_force,
            seed=seed,
            chunk_bytes_max=chunk_bytes_for(config.broker.packet_bytes_max),
        )
        self.closing = Closing(
            course=self.course,
            current=self.current,
            history=self.history,
            store=store,
            models=models,
            leases=leases,
            quarantine=self.quarantine,
            evaluations=self.evaluations,
            evaluator=evaluator,
            headroom=headroom,
            timers=self.timers,
            observe=observe,
            count_incident=count_incident,
            needed_versions=needed_versions,
        )
        self._events: deque[object] = deque()
        self._postponed: deque[object] = deque()

    # -- how things stand --------------------------------------------------------------------

    @property
    def round(self) -> rounds.RoundState:
        """The machine's state."""
        return self.current.state

    @property
    def is_open(self) -> bool:
        """Whether a round is under way."""
        return self.current.is_open

    @property
    def waits_for_room(self) -> bool:
        """Whether the open round cannot go on before there is room on the disk."""
        return bool(self._postponed)

    @property
    def finished(self) -> bool:
        """Whether every round of the federation is closed, and its last model measured.

        Or no further round can be paid for.
        """
        over = not self.is_open and (self.course.all_done or bool(self.course.ended))
        return over and not self.opening.release_waits and not self.evaluations.is_open

    # -- what it is told ---------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """Resume the round that the last run left open, if it did, and begin to plan."""
        if self.opening.paused:
            self._observe(Report("paused", "since an earlier run; POST /v1/resume lets it go on"))
        unfinished = self._store.unfinished_round()
        if unfinished is not None:
            opened, stored = unfinished
            self.current.recall(opened)
            self.course.recall(opened.round)
            heard = {row.device for row in self._store.updates(opened.round)}
            heard |= set(self.current.declines)
            flights = self._store.flights(now_s)
            self.step(Resume(opened, stored, frozenset(heard), flights), now_s)
        self.opening.start(now_s)

    def wake(self, timer: str, now_s: float) -> None:
        """Run a timer that is due; what is nobody's here is the round's."""
        match timer:
            case timers.PLAN_AGAIN:
                self.opening.plan(now_s)
            case timers.DISK_AGAIN:
                self._go_on(now_s)
            case timers.LET_GO:
                self.closing.let_go(now_s)
            case evaluating.EVALUATION_OVER:
                self.evaluations.close()
                self.opening.plan_soon(now_s)
            case _:
                self.step(Woke(timer), now_s)

    def on_link_up(self, chunk_bytes_max: int, now_s: float) -> None:
        """Devices can be reached, with chunks of this size."""
        self.opening.chunk_bytes_max = chunk_bytes_max
        self.opening.link_is_up = True
        self.opening.plan_soon(now_s)

    def on_link_down(self) -> None:
        """Nobody can be reached."""
        self.opening.link_is_up = False

    def keep(self, arrived: Sequence[tuple[UpdateStored, bytes]]) -> None:
        """Write updates that came together in one transaction, ahead of `take`.

        A restart between the two finds them on disk, as after the `Persist` of each, and resumes
        the round with them. When the transaction fails, `take` writes each for itself, and what
        fails then says why. In a buffer each is written for itself: one of them may fill it, and
        the next belongs to another.
        """
        if self.current.fills_buffer or self._postponed:
            return
        fresh = [(update, payload) for update, payload in arrived if self.current.expects(update)]
        try:
            with self._store.transaction():
                for update, payload in fresh:
                    self._store.store_update(update, payload)
        except (sqlite3.Error, PotluckError):
            return
        self.current.kept = {update.update_id for update, _payload in fresh}

    def take(self, update: UpdateStored, payload: bytes, now_s: float) -> None:
        """Hand a whole update to the round.

        Raises:
            DiskFullError: there is no room for it; nothing of it is kept.
        """
        self.current.payloads[update.update_id] = payload
        collected_in = self.current.opened.round
        update = msgspec.structs.replace(update, collected_in=collected_in)
        try:
            self.step(UpdateArrived(update), now_s)
        finally:
            self.current.payloads.pop(update.update_id, None)

    def lose(self, device: str, reason: str, now_s: float) -> None:
        """An invited device says that nothing will come from it."""
        self.current.declines[device] = reason
        if self.round.opened is not None:
            with self._headroom.or_not():
                self._store.note_declines(self.round.opened.round, self.current.declines)
        self.step(InviteeLost(device, reason), now_s)

    def take_report(self, device: str, report: EvaluationReport, now_s: float) -> None:
        """Enter what a device measured; see `Evaluations.take` for what is raised."""
        self.evaluations.take(device, report, now_s)
        if not self.evaluations.is_open:
            self.timers.pop(evaluating.EVALUATION_OVER, None)
            self.opening.plan_soon(now_s)

    def note_traffic(self) -> None:
        """Write down what the open round has cost so far, for whoever starts after a crash."""
        if self.is_open:
            self.course.note_traffic(self.current.opened.round)

    def on_clock_step(self, by_s: float, now_s: float) -> None:
        """Somebody has set the clock: what was to happen in a while still does."""
        for timer in self.timers:
            self.timers[timer] += by_s
        self.current.on_clock_step(by_s)
        self.planner.on_clock_step(by_s)
        with self._headroom.or_not():
            self.quarantine.on_clock_step(by_s)
        self.evaluations.on_clock_step(by_s)
        if self.is_open:
            self.step(ClockSet(by_s), now_s)

    def _put_in_force(self, config: FederationConfig) -> None:
        """A round's edge is here: whoever reads the file reads this one from now on."""
        self._reconfigured(config)
        self.course.config = config
        self.planner.reconfigure(config)
        self.evaluations.reconfigure(config)
        self.quarantine.reconfigure(
            strikes_max=config.aggregation.strikes_max,
            quarantine_s=config.aggregation.quarantine_s,
            share_max=config.aggregation.attackers_max,
        )
        self._headroom.reserve_for(config.rounds.to_invite)
        self._models.reconfigure(config.downlink.codec)

    # -- events ------------------------------------------------------------------------------

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
            self.timers[timers.DISK_AGAIN] = now_s + timers.DISK_AGAIN_S
        finally:
            # Whatever ended a step in the middle, the next one starts from its own event.
            self._events.clear()
        if self.current.fills_buffer:
            self.opening.keep_collecting(now_s)

    @staticmethod
    def _is_async(event: object) -> bool:
        return isinstance(event, Open | Resume) and event.opened.mode == "async"

    def _advance(self, event: object, now_s: float) -> None:
        before = self.current.state
        try:
            machine = buffer if self.current.fills_buffer or self._is_async(event) else rounds
            self.current.state, effects = machine.advance(self.current.state, event, now_s)
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
                    self.current.state = before
                    if not isinstance(event, UpdateArrived | Open | Chosen):
                        self._postponed = deque(self._events)
                raise

    def _postpone(self, event: object) -> None:
        """Put an event behind those that wait for room; no flood of them makes a long queue."""
        match event:
            case UpdateArrived(update) if update.update_id in self.current.kept:
                pass  # on disk with those that came with it: it cannot be refused any more
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
                done = self.closing.commit(event, now_s) if isinstance(event, Commit) else event
            except DiskFullError:
                self._postponed = deque((event, *waiting))
                self.timers[timers.DISK_AGAIN] = now_s + timers.DISK_AGAIN_S
                return
            self.step(done, now_s)
            if self._postponed:
                self._postponed.extend(waiting)
                return
        self._headroom.found()

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
                self._events.append(self.closing.validate(effect, now_s))
            case Commit():
                self._events.append(self.closing.commit(effect, now_s))
            case Report():
                self._observe(effect)
            case _:
                raise LocalProtocolError(f"no driver for {type(effect).__name__}")

    def _persist(self, record: msgspec.Struct) -> None:
        match record:
            case RoundOpened():
                self._store.open_round(record)
                self.course.last_round = record.round
            case RoundInvited():
                self._store.note_invited(record)
                self.current.invited_at |= dict.fromkeys(record.invited, record.invited_at_s)
            case FlightEnded():
                self._store.end_flight(record)
            case UpdateStored():
                if record.update_id in self.current.kept:
                    self.current.kept.discard(record.update_id)
                else:
                    self._store.store_update(record, self.current.payloads[record.update_id])
                self.current.note_heard(record.device, record.round)
            case UpdateSettled():
                self.closing.settle(record)
            case RoundAbandoned():
                self.closing.abandon(record)
            case _:
                raise LocalProtocolError(f"no place for {type(record).__name__}")


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
