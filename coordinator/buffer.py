"""One round in mode "async": a buffer that fills while devices come, work and go.

The problem. A synchronous round is as slow as the devices that it still needs, and begins only when
enough of them are there at once. Here devices are invited one by one as they check in, whoever is
done is counted in whatever round is open then, and nobody waits for anybody.

This is FedBuff (Nguyen et al. 2022, algorithm 1), with the rules of `coordinator.round` on top:

1. `PLANNED -> COLLECTING -> CLOSING -> COMMITTED`. The buffer holds `cohort` updates (the paper's
   K). It closes when that many are accepted; from its deadline on the quorum, `needed`, is enough.
   It is never abandoned: an update that was receipted waits for the next one.
2. At most `concurrency` devices are *in flight*. Each has as long as a round would give it; after
   that it is not waited for, though its update may still be taken. Who is in flight when a buffer
   closes stays so when the next one opens.
3. Invitations are on disk before they leave, updates before their receipts, and the version with
   all settlements before the first settlement. An update keeps the id of the round that its device
   was invited to, and is settled with the round that it was collected in.
4. An update whose base is s versions old weighs 1 / sqrt(1 + s) of what it would (the paper's
   section 5); s is at most `staleness_max`, which the driver sees to before it takes the update.

What not to do: no choice of devices here, no clock, no arrays.
"""

import itertools
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import msgspec

from coordinator.round import (
    DEADLINE,
    Phase,
    RoundState,
    Step,
    UpdateState,
    closed_rows,
    committed,
    deadline_after_restart_s,
    invite,
    opened_of,
    said_again,
    set_clock,
    settlement_of,
    whole_s,
    with_update,
)
from coordinator.signals import (
    Accepted,
    Chosen,
    ClockSet,
    Commit,
    Committed,
    DeviceAsks,
    Flight,
    FlightEnded,
    InviteeLost,
    Open,
    Rejected,
    Resume,
    RoundInvited,
    UpdateArrived,
    UpdateSettled,
    UpdateStored,
    Validate,
)
from wire import CancelWake, Effect, Persist, Publish, Report, Rule, Table, WakeAt, Woke
from wire import advance as advance_table
from wire.messages import Receipt

FLIGHT_OVER: Final = "flight_over"


def staleness_factor(staleness: int) -> float:
    """What an update weighs whose base is this many versions old, of 1 when it is not old."""
    return float((1.0 + max(staleness, 0)) ** -0.5)


def advance(state: RoundState, event: object, now_s: float) -> Step:
    """Take one step; see `wire.machine.advance` for what is raised."""
    return advance_table(TABLE, state, event, now_s)


def room(state: RoundState) -> int:
    """How many more devices may be in flight."""
    return max(opened_of(state).concurrency - len(state.flights), 0)


# -- pieces --------------------------------------------------------------------------------------


def _without(state: RoundState, *devices: str) -> RoundState:
    flights = {name: f for name, f in state.flights.items() if name not in devices}
    return replace(state, flights=MappingProxyType(flights))


def _mind_flights(state: RoundState) -> Effect:
    """Wake up when the first of those in flight has had its time."""
    if not state.flights:
        return CancelWake(FLIGHT_OVER)
    return WakeAt(FLIGHT_OVER, min(flight.until_s for flight in state.flights.values()))


def _validate(state: RoundState, update: UpdateStored) -> Validate:
    staleness = opened_of(state).base_version - update.base_version
    return Validate(update.update_id, update.device, update.weight, staleness)


def _close_if_over(state: RoundState) -> Step:
    """Rule 1, asked after every event that could end the round."""
    opened = opened_of(state)
    accepted = len(state.accepted)
    if accepted < (opened.needed if state.overdue else opened.cohort):
        return state, ()
    return replace(state, phase=Phase.CLOSING), (
        CancelWake(DEADLINE),
        CancelWake(FLIGHT_OVER),
        Commit(opened.round, opened.base_version, state.accepted),
    )


# -- actions -------------------------------------------------------------------------------------


def _open(state: RoundState, event: Open, _now_s: float) -> Step:
    opened = event.opened
    flights = MappingProxyType(dict(event.flights))
    after = replace(state, phase=Phase.COLLECTING, opened=opened, flights=flights)
    return after, (
        Persist(opened),
        WakeAt(DEADLINE, opened.deadline_at_s),
        _mind_flights(after),
        Report("round_opened", f"round {opened.round}: {len(flights)} under way"),
    )


def _resume(state: RoundState, event: Resume, now_s: float) -> Step:
    opened = event.opened
    # Whatever the clock has gone through, nobody is waited for longer than a round.
    latest_s = now_s + whole_s(opened)
    flights = {
        name: replace(flight, until_s=min(flight.until_s, latest_s))
        for name, flight in event.flights.items()
    }
    after = replace(
        state,
        phase=Phase.COLLECTING,
        opened=opened,
        flights=MappingProxyType(flights),
        updates=MappingProxyType({update.update_id: UpdateState.STORED for update in event.stored}),
        owners=MappingProxyType({update.update_id: update.device for update in event.stored}),
    )
    return after, (
        WakeAt(DEADLINE, deadline_after_restart_s(opened, now_s)),
        _mind_flights(after),
        Report("round_resumed", f"round {opened.round}: {len(event.stored)} updates on disk"),
        *(_validate(after, update) for update in event.stored),
    )


def _chosen(state: RoundState, event: Chosen, now_s: float) -> Step:
    opened = opened_of(state)
    new = ((d, check_in) for d, check_in in event.check_ins.items() if d not in state.flights)
    invited = dict(itertools.islice(new, room(state)))
    if not invited:
        return state, ()
    until_s = now_s + whole_s(opened)
    flights = {**state.flights, **dict.fromkeys(invited, Flight(opened.round, until_s))}
    after = replace(
        state,
        opened=msgspec.structs.replace(opened, invited=opened.invited | invited),
        flights=MappingProxyType(flights),
    )
    return after, (
        Persist(RoundInvited(opened.round, invited, now_s, until_s)),
        _mind_flights(after),
        *(
            invite(opened, device, check_in, whole_s(opened))
            for device, check_in in invited.items()
        ),
    )


def _asks(state: RoundState, event: DeviceAsks, now_s: float) -> Step:
    opened, flight = opened_of(state), state.flights.get(event.device)
    if flight is None or flight.round != opened.round:
        return state, ()
    return state, (invite(opened, event.device, event.check_in, flight.until_s - now_s),)


def _lost(state: RoundState, event: InviteeLost, _now_s: float) -> Step:
    flight = state.flights.get(event.device)
    if flight is None:
        return state, ()
    after = _without(state, event.device)
    return after, (
        Persist(FlightEnded(flight.round, event.device, event.reason)),
        _mind_flights(after),
        Report("invitee_lost", event.reason, event.device),
    )


def _arrived(state: RoundState, event: UpdateArrived, _now_s: float) -> Step:
    update = event.update
    if update.update_id in state.updates:
        return state, said_again(state, update.update_id)
    after = replace(
        with_update(_without(state, update.device), update.update_id, UpdateState.STORED),
        owners=MappingProxyType({**state.owners, update.update_id: update.device}),
    )
    flight = state.flights.get(update.device)
    # It was taken for idle and invited anew, which it has not heard while it worked.
    other = (
        ()
        if flight is None or flight.round == update.round
        else (Persist(FlightEnded(flight.round, update.device, "delivered_earlier_work")),)
    )
    return after, (
        *other,
        Persist(update),
        Publish(Receipt(update.update_id), update.device),
        _mind_flights(after),
        _validate(after, update),
    )


def _accepted(state: RoundState, event: Accepted, _now_s: float) -> Step:
    if state.updates.get(event.update_id) is not UpdateState.STORED:
        return state, ()
    return _close_if_over(with_update(state, event.update_id, UpdateState.ACCEPTED))


def _rejected(state: RoundState, event: Rejected, now_s: float) -> Step:
    if state.updates.get(event.update_id) is not UpdateState.STORED:
        return state, ()
    after = with_update(state, event.update_id, UpdateState.NOT_COUNTED, event.reason)
    return after, (
        Persist(UpdateSettled(event.update_id, opened_of(state).round, event.reason, now_s)),
        Report("update_rejected", event.reason, state.owners[event.update_id]),
        settlement_of(after, event.update_id),
    )


def _woke(state: RoundState, event: Woke, now_s: float) -> Step:
    if event.timer == DEADLINE:
        return _close_if_over(replace(state, overdue=True))
    if event.timer != FLIGHT_OVER:
        return state, ()
    over = sorted(name for name, flight in state.flights.items() if flight.until_s <= now_s)
    after = _without(state, *over)
    return after, (
        _mind_flights(after),
        *(Report("invitee_lost", "deadline_passed", device) for device in over),
    )


def _clock_set(state: RoundState, event: ClockSet, now_s: float) -> Step:
    after, effects = set_clock(state, event, now_s)
    flights = {
        name: replace(flight, until_s=flight.until_s + event.by_s)
        for name, flight in state.flights.items()
    }
    return replace(after, flights=MappingProxyType(flights)), effects


# -- the table -----------------------------------------------------------------------------------

_P = Phase
_OVER = (_P.COLLECTING, _P.CLOSING)
_OPEN = (_P.COLLECTING,)

TABLE: Final[Table[RoundState]] = MappingProxyType(
    {
        _P.PLANNED: {
            Open: Rule(_open, _OPEN),
            Resume: Rule(_resume, _OPEN),
        },
        _P.COLLECTING: {
            Chosen: Rule(_chosen, _OPEN),
            DeviceAsks: Rule(_asks, _OPEN),
            InviteeLost: Rule(_lost, _OPEN),
            UpdateArrived: Rule(_arrived, _OPEN),
            Accepted: Rule(_accepted, _OVER),
            Rejected: Rule(_rejected, _OPEN),
            Woke: Rule(_woke, _OVER),
            ClockSet: Rule(_clock_set, _OPEN),
        },
        _P.CLOSING: closed_rows(_P.CLOSING) | {Committed: Rule(committed, (_P.COMMITTED,))},
        _P.COMMITTED: closed_rows(_P.COMMITTED),
    }
)
