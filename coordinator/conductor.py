"""Rounds, one after the other: when to open the next, and what each asks for along the way.

The round itself is a sans-IO machine (`coordinator.round`); this is its driver. It executes effects
in order, a `Persist` being on disk before the next effect runs, and feeds back what validating and
committing found. It has no thread, no socket and no clock.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from coordinator import round as rounds
from coordinator import sizing
from coordinator.config import FederationConfig
from coordinator.evaluation import Evaluator, evaluate, pooled_metrics
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.participation import Classes, Participation, Past
from coordinator.planner import Planner
from coordinator.selection import FLOOR_ROUNDS, FloorWindow, Shares
from coordinator.signals import (
    Accepted,
    ClockSet,
    Commit,
    Committed,
    InviteeLost,
    Open,
    Rejected,
    Resume,
    RoundAbandoned,
    RoundOpened,
    UpdateArrived,
    UpdateSettled,
    UpdateStored,
    Validate,
)
from coordinator.store import Store
from quantization import Accumulator
from wire import (
    CancelWake,
    Effect,
    LocalProtocolError,
    Persist,
    Publish,
    RemoteProtocolError,
    Report,
    WakeAt,
    Woke,
    chunk_bytes_for,
)
from wire.messages import Message, Settled

PLAN_AGAIN: Final = "plan_again"
# Check-ins come in bursts; one look at the leases serves for all of a moment.
PLAN_AFTER_S: Final = 0.02
# What comes later than this after its round opened says nothing of how long training takes.
LATE_S_MAX: Final = 86_400.0
ABANDONED_PAUSE_S: Final = 2.0
_SEED_MASK: Final = 2**53 - 1
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
        run_over: called when every round is closed, also after a restart.
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
        run_over: Callable[[float], None],
        seed: int,
        first_gathering: int,
        gathering_until_s: float,
    ) -> None:
        self.round = rounds.RoundState()
        self.timers: dict[str, float] = {}
        self.link_is_up = False
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
        self._seed = seed
        self._last_round = store.last_round()
        self.planner = Planner(
            config=config,
            leases=leases,
            participation=Participation(classes, store.participation()),
            window=_window(store, classes),
            seed=seed,
            first_gathering=first_gathering,
            gathering_until_s=gathering_until_s,
        )
        self._rejected = 0
        self._payloads: dict[bytes, bytes] = {}
        self._sum: Accumulator | None = None
        self._events: deque[object] = deque()
        self.ended = ""
        # Sent and received: up to the last round's end, and in this one before a restart.
        self._traffic_before = (0, 0)
        self._traffic_carried = (0, 0)
        closed_bytes = store.closed_bytes()
        self._closed_bytes = sum(closed_bytes)
        self._last_bytes = deque(closed_bytes, maxlen=sizing.BUDGET_ROUNDS)
        self._declines: dict[str, str] = {}

    @property
    def is_open(self) -> bool:
        """Whether a round is under way."""
        return self.round.phase in _OPEN_PHASES

    def may_still_train(self, device: str, now_s: float) -> bool:
        """Whether the open round waits for a device, and has time left for it to begin."""
        opened = self.round.opened
        return (
            self.is_open
            and opened is not None
            and device in self.round.waiting_for
            and now_s < opened.deadline_at_s
        )

    @property
    def finished(self) -> bool:
        """Whether every round of the federation is closed, or no further one can be paid for."""
        if self.is_open:
            return False
        return bool(self.ended) or self._last_round >= self._config.rounds.count

    def start(self, now_s: float) -> None:
        """Resume the round that the last run left open, if it did, and begin to plan."""
        unfinished = self._store.unfinished_round()
        if unfinished is not None:
            opened, stored = unfinished
            self._begin(opened)
            self._traffic_carried = self._store.traffic(opened.round)
            self._declines = self._store.declines(opened.round)
            heard = {row.device for row in self._store.updates(opened.round)} | set(self._declines)
            self.step(Resume(opened, stored, frozenset(heard)), now_s)
        last = self._store.round(self._last_round)
        if last is not None:
            self.planner.round_opened(last["opened_at"])
        self.timers[PLAN_AGAIN] = now_s

    def wake(self, timer: str, now_s: float) -> None:
        """Run a timer that is due."""
        if timer == PLAN_AGAIN:
            self._plan(now_s)
        else:
            self.step(Woke(timer), now_s)

    def plan_soon(self, now_s: float) -> None:
        """Somebody is there who was not before: look whether a round can open."""
        if not self.is_open:
            at_s = max(now_s + PLAN_AFTER_S, self.planner.earliest_s(now_s))
            self.timers[PLAN_AGAIN] = min(self.timers.get(PLAN_AGAIN, at_s), at_s)

    def take(self, update: UpdateStored, payload: bytes, now_s: float) -> None:
        """Hand a whole update to the round."""
        self._payloads[update.update_id] = payload
        self.step(UpdateArrived(update), now_s)
        self._payloads.pop(update.update_id, None)

    def lose(self, device: str, reason: str, now_s: float) -> None:
        """An invited device says that nothing will come from it."""
        self._declines[device] = reason
        if self.round.opened is not None:
            self._store.note_declines(self.round.opened.round, self._declines)
        self.step(InviteeLost(device, reason), now_s)

    def on_clock_step(self, by_s: float, now_s: float) -> None:
        """Somebody has set the clock: what was to happen in a while still does."""
        self.timers = {timer: at_s + by_s for timer, at_s in self.timers.items()}
        self.planner.on_clock_step(by_s)
        if self.is_open:
            self.step(ClockSet(by_s), now_s)

    def step(self, event: object, now_s: float) -> None:
        """Give the round an event, execute its effects, and go on while they raise new events."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # a step is under way; it takes this one when its effects are done
        try:
            while self._events:
                try:
                    self.round, effects = rounds.advance(self.round, self._events[0], now_s)
                except LocalProtocolError as error:
                    self._observe(Report("unexpected", str(error)))
                    effects = ()
                for effect in effects:
                    self._execute(effect, now_s)
                self._events.popleft()
        finally:
            # Whatever ended a step in the middle, the next one starts from its own event.
            self._events.clear()

    # -- opening -----------------------------------------------------------------------------

    def _plan(self, now_s: float) -> None:
        """Open the next round as soon as enough eligible devices are there to be chosen from."""
        number = self._last_round + 1
        if self.is_open:
            return
        if number > self._config.rounds.count:
            self._run_over(now_s)
            return
        if not self._can_pay():
            self._run_over(now_s)
            return
        if not self.link_is_up and now_s >= self.planner.earliest_s(now_s):
            return  # whoever says that it is back asks again
        verdict = self.planner.look(now_s)
        if verdict.again_at_s is not None:
            self.timers[PLAN_AGAIN] = verdict.again_at_s
        if verdict.open_now:
            self._open(number, now_s)

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
        cohort = min(config.cohort, len(chosen))
        opened = RoundOpened(
            round=number,
            base_version=self._models.version,
            base_digest=self._models.digest,
            plan=self._config.plan((self._seed * 1_000_003 + number) & _SEED_MASK),
            codec=self._config.uplink.spec_for(cohort),
            cohort=cohort,
            needed=config.needed,
            invited={lease.device: lease.check_in for lease in chosen},
            opened_at_s=now_s,
            deadline_at_s=deadline_at_s,
            chunk_bytes_max=self.chunk_bytes_max,
            weight_cap=self._config.aggregation.weight_cap,
            there=self.planner.there(now_s),
        )
        for lease in chosen:
            self._leases.end(lease.device)
        self.planner.round_opened(now_s)
        self._begin(opened)
        self.step(Open(opened), now_s)

    def _begin(self, opened: RoundOpened) -> None:
        self.round = rounds.RoundState()
        self._declines = {}
        self._sum = self._models.sum(weight_cap=opened.weight_cap, updates_max=len(opened.invited))

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
                self._events.append(self._validate(effect))
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
            case UpdateStored():
                self._store.store_update(record, self._payloads[record.update_id])
            case UpdateSettled():
                self._store.settle(record)
            case RoundAbandoned():
                with self._store.transaction():
                    self._store.abandon_round(record)
                    changed = self._note_past(record.closed_at_s)
                self._adopt_past(changed, counted=[])
                self._note_course(record.round)
                self.timers[PLAN_AGAIN] = record.closed_at_s + ABANDONED_PAUSE_S
            case _:
                raise LocalProtocolError(f"no place for {type(record).__name__}")

    def _validate(self, effect: Validate) -> Accepted | Rejected:
        if self._sum is None:
            raise LocalProtocolError("no round is being summed")
        payload = self._payloads.get(effect.update_id)
        try:
            self._sum.add(payload or self._store.payload(effect.update_id), effect.weight)
        except RemoteProtocolError as error:
            self._count_incident(effect.device, error)
            return Rejected(effect.update_id, error.reason)
        return Accepted(effect.update_id)

    def _commit(self, effect: Commit, now_s: float) -> Committed:
        if self._sum is None:
            raise LocalProtocolError("no round is being summed")
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            commit, state = self._models.next_version(self._sum, effect.round, effect.accepted)
        released = self._store.released("stable")
        keep = frozenset({self._models.version} | ({released["version"]} if released else set()))
        with self._store.transaction():
            self._store.commit_round(commit, now_s, keep=keep)
            changed = self._note_past(now_s)
        self._models.adopt(commit, state)
        self._sum = None
        self._adopt_past(changed, [self.round.owners[key] for key in effect.accepted])
        self._after_commit(effect.round, now_s)
        return Committed(commit.version, commit.digest)

    # -- what a round leaves of its devices --------------------------------------------------

    def _opened(self) -> RoundOpened:
        if self.round.opened is None:
            raise LocalProtocolError("no round has been opened")
        return self.round.opened

    def _note_past(self, now_s: float) -> dict[str, Past]:
        """Write the histories that the round changes, in the transaction that ends it."""
        opened = self._opened()
        heard = self._store.heard_in(opened)
        changed = self.planner.participation.after_round(
            opened.round,
            opened.invited,
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
            self._store.note_round(round_number, metrics)
        elif round_number > 1:
            # Devices measured the base model on their hold-outs: that is the round before.
            self._store.note_round(
                round_number - 1, pooled_metrics(self._store.update_metrics(round_number))
            )
        self._note_course(round_number)
        self.timers[PLAN_AGAIN] = now_s

    def _note_course(self, round_number: int) -> None:
        """What a report wants to know of a round that is over."""
        self._store.note_declines(round_number, self._declines)
        sent, received = self._round_traffic()
        self._store.note_traffic(round_number, sent, received)
        self._closed_bytes += sent + received
        self._last_bytes.append(sent + received)
        self._traffic_before, self._traffic_carried = self._traffic(), (0, 0)


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
