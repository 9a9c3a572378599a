"""One round: whom it invited, what came back, and how it ends.

The problem. Some of the invited never answer, some answer twice, some send rubbish, and the
gateway may lose power between any two instructions. The round must end by its deadline with a
better model or with the old one, and every update that was receipted must be decided exactly once.

The rules:

1. `PLANNED -> INVITING -> COLLECTING -> CLOSING -> COMMITTED`, or `ABANDONED`. `KEYING` and
   `UNMASKING` have their places for secure aggregation.
2. The round is on disk before the first invitation leaves. An update is on disk before its receipt
   leaves. The model, its version and all settlements are on disk, in one transaction, before the
   first settlement leaves.
3. It closes as soon as `cohort` updates are accepted. At the deadline, or when nobody is left to
   wait for, it commits if `needed` (the quorum's share of the cohort) are accepted, and is
   abandoned otherwise.
4. A receipt is owed to every update that is stored, a settlement to every receipt. Both may be
   sent twice; neither may be sent before it is true.
5. What is accepted is decided in order of arrival, but the model is not: it is the sum over a set.

What not to do: no decoding here, no clock, no choice. The driver validates and says what it found.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

import msgspec

from coordinator.signals import (
    Accepted,
    ClockSet,
    Commit,
    Committed,
    DeviceAsks,
    Flight,
    InviteeLost,
    Open,
    Rejected,
    Resume,
    RoundAbandoned,
    RoundOpened,
    UpdateArrived,
    UpdateSettled,
    Validate,
)
from wire import CancelWake, Effect, Persist, Publish, Report, Rule, Table, WakeAt, Woke
from wire import advance as advance_table
from wire.errors import LocalProtocolError
from wire.messages import Invite, Receipt, Settled

DEADLINE: Final = "round_deadline"
COUNTED: Final = "counted"
# Devices that sealed while the gateway was down come back within their reconnect delay.
RESUME_GRACE_S: Final = 20.0


class Phase(Enum):
    """Where the round stands."""

    PLANNED = "planned"
    INVITING = "inviting"
    KEYING = "keying"  # reserved with its message ids; no row leads here in protocol 1.0
    COLLECTING = "collecting"
    UNMASKING = "unmasking"  # as KEYING
    CLOSING = "closing"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class UpdateState(Enum):
    """What has become of an update; the settlement of `ACCEPTED` waits for the round's end."""

    STORED = "stored"
    ACCEPTED = "accepted"
    NOT_COUNTED = "not_counted"
    COUNTED = "counted"


@dataclass(frozen=True, slots=True)
class RoundState:
    """All that a round remembers; frozen, a step returns the next one.

    `owners` maps update id to device. Maps are never changed in place. The last two fields are a
    buffer's (`coordinator.buffer`): who is at work, by device, and whether its deadline has passed.
    """

    phase: Phase = Phase.PLANNED
    opened: RoundOpened | None = None
    waiting_for: frozenset[str] = frozenset()
    updates: MappingProxyType[bytes, UpdateState] = field(
        default_factory=lambda: MappingProxyType({})
    )
    owners: MappingProxyType[bytes, str] = field(default_factory=lambda: MappingProxyType({}))
    reasons: MappingProxyType[bytes, str] = field(default_factory=lambda: MappingProxyType({}))
    flights: MappingProxyType[str, Flight] = field(default_factory=lambda: MappingProxyType({}))
    overdue: bool = False

    @property
    def accepted(self) -> tuple[bytes, ...]:
        """Accepted update ids in canonical order: by id, not by arrival."""
        return tuple(
            sorted(key for key, state in self.updates.items() if state is UpdateState.ACCEPTED)
        )

    @property
    def undecided(self) -> bool:
        """Whether an update is stored and not yet validated."""
        return UpdateState.STORED in self.updates.values()


Step = tuple[RoundState, tuple[Effect, ...]]


def advance(state: RoundState, event: object, now_s: float) -> Step:
    """Take one step; see `wire.machine.advance` for what is raised."""
    return advance_table(TABLE, state, event, now_s)


# -- pieces that actions share -------------------------------------------------------------------


def opened_of(state: RoundState) -> RoundOpened:
    """The round's record; an error in a driver that has not opened it."""
    if state.opened is None:
        raise LocalProtocolError("the round has not been opened")
    return state.opened


def with_update(
    state: RoundState, update_id: bytes, became: UpdateState, reason: str = ""
) -> RoundState:
    """The state with one update's decision changed."""
    updates = MappingProxyType({**state.updates, update_id: became})
    if not reason:
        return replace(state, updates=updates)
    return replace(
        state, updates=updates, reasons=MappingProxyType({**state.reasons, update_id: reason})
    )


def whole_s(opened: RoundOpened) -> float:
    """How long the round was to be, in seconds."""
    return opened.deadline_at_s - opened.opened_at_s


def invite(opened: RoundOpened, device: str, check_in: int, left_s: float) -> Publish:
    """Ask a device that has `left_s` seconds."""
    message = Invite(
        check_in=check_in,
        round=opened.round,
        base_version=opened.base_version,
        base_digest=opened.base_digest,
        plan=opened.plan,
        codec=opened.codec,
        # A clock that was set back must not promise a device more time than a round has.
        deadline_s=min(max(left_s, 0.001), whole_s(opened)),
        chunk_bytes_max=opened.chunk_bytes_max,
    )
    return Publish(message, device)


def _close_if_over(state: RoundState, now_s: float, *, deadline: bool = False) -> Step:
    """Rule 3, asked after every event that could end the round."""
    opened = opened_of(state)
    accepted = len(state.accepted)
    full = accepted >= opened.cohort
    nobody_left = not state.waiting_for and not state.undecided
    if not (full or nobody_left or deadline):
        return state, ()
    if accepted >= opened.needed:
        return replace(state, phase=Phase.CLOSING), (
            CancelWake(DEADLINE),
            Commit(opened.round, opened.base_version, state.accepted),
        )
    # A full cohort always has its quorum, so it is the deadline or the last invitee that ends this.
    return _abandon(state, now_s, "deadline_passed" if deadline else "nobody_left")


def _abandon(state: RoundState, now_s: float, reason: str) -> Step:
    opened = opened_of(state)
    open_ids = tuple(
        sorted(
            key
            for key, became in state.updates.items()
            if became in (UpdateState.ACCEPTED, UpdateState.STORED)
        )
    )
    after = replace(state, phase=Phase.ABANDONED)
    for update_id in open_ids:
        after = with_update(after, update_id, UpdateState.NOT_COUNTED, "round_abandoned")
    return after, (
        CancelWake(DEADLINE),
        Persist(RoundAbandoned(opened.round, open_ids, reason, now_s)),
        Report("round_abandoned", f"round {opened.round}: {reason}"),
        *(settlement_of(after, update_id) for update_id in open_ids),
    )


def settlement_of(state: RoundState, update_id: bytes) -> Publish:
    """What a device is told of its update's decision."""
    counted = state.updates[update_id] is UpdateState.COUNTED
    reason = COUNTED if counted else state.reasons.get(update_id, "round_closed")
    return Publish(Settled(update_id, counted, reason), state.owners[update_id])


# -- actions -------------------------------------------------------------------------------------


def _open(state: RoundState, event: Open, now_s: float) -> Step:
    opened = event.opened
    after = replace(
        state, phase=Phase.INVITING, opened=opened, waiting_for=frozenset(opened.invited)
    )
    return after, (
        Persist(opened),
        WakeAt(DEADLINE, opened.deadline_at_s),
        Report("round_opened", f"round {opened.round}: {len(opened.invited)} invited"),
        *(
            invite(opened, device, check_in, opened.deadline_at_s - now_s)
            for device, check_in in opened.invited.items()
        ),
    )


def deadline_after_restart_s(opened: RoundOpened, now_s: float) -> float:
    """Late enough to hear who is waiting, and never later than a whole round from now.

    A gateway without a battery behind its clock may come back years before it went.
    """
    latest_s = now_s + whole_s(opened) + RESUME_GRACE_S
    return min(max(opened.deadline_at_s, now_s + RESUME_GRACE_S), latest_s)


def _resume(state: RoundState, event: Resume, now_s: float) -> Step:
    opened = event.opened
    after = replace(
        state,
        phase=Phase.COLLECTING,
        opened=opened,
        waiting_for=frozenset(opened.invited)
        - {update.device for update in event.stored}
        - event.heard,
        updates=MappingProxyType({update.update_id: UpdateState.STORED for update in event.stored}),
        owners=MappingProxyType({update.update_id: update.device for update in event.stored}),
    )
    # A deadline that passed while the gateway was down still leaves time to hear who is waiting.
    return after, (
        WakeAt(DEADLINE, deadline_after_restart_s(opened, now_s)),
        Report("round_resumed", f"round {opened.round}: {len(event.stored)} updates on disk"),
        *(Validate(update.update_id, update.device, update.weight) for update in event.stored),
    )


def _arrived(state: RoundState, event: UpdateArrived, _now_s: float) -> Step:
    update = event.update
    if update.update_id in state.updates:
        return state, said_again(state, update.update_id)
    after = replace(
        with_update(state, update.update_id, UpdateState.STORED),
        phase=Phase.COLLECTING,
        waiting_for=state.waiting_for - {update.device},
        owners=MappingProxyType({**state.owners, update.update_id: update.device}),
    )
    return after, (
        Persist(update),
        Publish(Receipt(update.update_id), update.device),
        Validate(update.update_id, update.device, update.weight),
    )


def said_again(state: RoundState, update_id: bytes) -> tuple[Effect, ...]:
    """What a device is told that sends what is stored already: what is true of it now."""
    receipt = Publish(Receipt(update_id), state.owners[update_id])
    if state.updates[update_id] in (UpdateState.STORED, UpdateState.ACCEPTED):
        return (receipt,)
    return (receipt, settlement_of(state, update_id))


def _accepted(state: RoundState, event: Accepted, now_s: float) -> Step:
    if state.updates.get(event.update_id) is not UpdateState.STORED:
        return state, ()
    return _close_if_over(with_update(state, event.update_id, UpdateState.ACCEPTED), now_s)


def _rejected(state: RoundState, event: Rejected, now_s: float) -> Step:
    if state.updates.get(event.update_id) is not UpdateState.STORED:
        return state, ()
    after = with_update(state, event.update_id, UpdateState.NOT_COUNTED, event.reason)
    settled = UpdateSettled(event.update_id, opened_of(state).round, event.reason, now_s)
    effects: tuple[Effect, ...] = (
        Persist(settled),
        Report("update_rejected", event.reason, state.owners[event.update_id]),
        settlement_of(after, event.update_id),
    )
    after, more = _close_if_over(after, now_s)
    return after, effects + more


def _invitee_lost(state: RoundState, event: InviteeLost, now_s: float) -> Step:
    after = replace(state, waiting_for=state.waiting_for - {event.device})
    effects: tuple[Effect, ...] = (Report("invitee_lost", event.reason, event.device),)
    after, more = _close_if_over(after, now_s)
    return after, effects + more


def _asks(state: RoundState, event: DeviceAsks, now_s: float) -> Step:
    opened = opened_of(state)
    if event.device not in state.waiting_for:
        return state, ()
    left_s = opened.deadline_at_s - now_s
    return state, (invite(opened, event.device, event.check_in, left_s),)


def set_clock(state: RoundState, event: ClockSet, _now_s: float) -> Step:
    """The deadline is as far away as it was."""
    opened = opened_of(state)
    moved = msgspec.structs.replace(
        opened,
        opened_at_s=opened.opened_at_s + event.by_s,
        deadline_at_s=opened.deadline_at_s + event.by_s,
    )
    return replace(state, opened=moved), ()


def _woke(state: RoundState, event: Woke, now_s: float) -> Step:
    if event.timer != DEADLINE:
        return state, ()
    return _close_if_over(state, now_s, deadline=True)


def _late(state: RoundState, event: UpdateArrived, _now_s: float) -> Step:
    """A double of something decided is answered; a newcomer to a closing round is its driver's."""
    if event.update.update_id not in state.updates:
        raise LocalProtocolError("an update for a round that is closing is not its business")
    return state, said_again(state, event.update.update_id)


def _ignore(state: RoundState, _event: object, _now_s: float) -> Step:
    return state, ()


def committed(state: RoundState, event: Committed, _now_s: float) -> Step:
    """The transaction is on disk: everybody is told."""
    opened = opened_of(state)
    counted = state.accepted
    updates = {
        key: UpdateState.COUNTED if became is UpdateState.ACCEPTED else UpdateState.NOT_COUNTED
        for key, became in state.updates.items()
    }
    after = replace(state, phase=Phase.COMMITTED, updates=MappingProxyType(updates))
    left = tuple(sorted(k for k, became in state.updates.items() if became is UpdateState.STORED))
    return after, (
        Report(
            "round_committed",
            f"round {opened.round}: version {event.version} from {len(counted)} updates",
        ),
        *(settlement_of(after, update_id) for update_id in (*counted, *left)),
    )


# -- the table -----------------------------------------------------------------------------------

_P = Phase
_OVER = (_P.CLOSING, _P.ABANDONED)


def _open_rows(here: Phase, over: tuple[Phase, ...]) -> dict[type, Rule[RoundState]]:
    """What `INVITING` and `COLLECTING` both do: they differ in whether an update has come."""
    return {
        UpdateArrived: Rule(_arrived, (_P.COLLECTING,)),
        InviteeLost: Rule(_invitee_lost, (here, *over)),
        DeviceAsks: Rule(_asks, (here,)),
        ClockSet: Rule(set_clock, (here,)),
        Woke: Rule(_woke, (here, *over)),
    }


def closed_rows(phase: Phase) -> dict[type, Rule[RoundState]]:
    """What phases do in which nothing is decided any more."""
    return {
        UpdateArrived: Rule(_late, (phase,)),
        Accepted: Rule(_ignore, (phase,)),
        Rejected: Rule(_ignore, (phase,)),
        InviteeLost: Rule(_ignore, (phase,)),
        ClockSet: Rule(_ignore, (phase,)),
        Woke: Rule(_ignore, (phase,)),
    }


TABLE: Final[Table[RoundState]] = MappingProxyType(
    {
        _P.PLANNED: {
            Open: Rule(_open, (_P.INVITING,)),
            Resume: Rule(_resume, (_P.COLLECTING,)),
        },
        _P.INVITING: _open_rows(_P.INVITING, (_P.ABANDONED,)),
        _P.COLLECTING: _open_rows(_P.COLLECTING, _OVER)
        | {
            Accepted: Rule(_accepted, (_P.COLLECTING, *_OVER)),
            Rejected: Rule(_rejected, (_P.COLLECTING, *_OVER)),
        },
        _P.CLOSING: closed_rows(_P.CLOSING) | {Committed: Rule(committed, (_P.COMMITTED,))},
        _P.COMMITTED: closed_rows(_P.COMMITTED),
        _P.ABANDONED: closed_rows(_P.ABANDONED),
    }
)
