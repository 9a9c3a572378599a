import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import buffer
from coordinator.buffer import FLIGHT_OVER, TABLE, staleness_factor
from coordinator.round import DEADLINE, RESUME_GRACE_S, Phase, RoundState, UpdateState
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
    RoundOpened,
    UpdateArrived,
    UpdateSettled,
    UpdateStored,
    Validate,
)
from wire import (
    CancelWake,
    Effect,
    IllegalStepError,
    LocalProtocolError,
    Persist,
    Plan,
    Publish,
    Report,
    WakeAt,
    Woke,
    draw,
)
from wire.messages import Invite, Receipt, Settled

EVENTS = sorted({event for rows in TABLE.values() for event in rows}, key=lambda e: e.__name__)
DIGEST = bytes(32)
NOW_S = 100.0
DEADLINE_AT_S = 160.0
CONCURRENCY = 4
CLOSED = {Phase.CLOSING, Phase.COMMITTED}


def opened(*, cohort: int = 3, needed: int = 2, concurrency: int = CONCURRENCY) -> RoundOpened:
    return RoundOpened(
        round=7,
        base_version=6,
        base_digest=DIGEST,
        plan=Plan(),
        codec="ecq_sr",
        cohort=cohort,
        needed=needed,
        invited={},
        opened_at_s=NOW_S,
        deadline_at_s=DEADLINE_AT_S,
        chunk_bytes_max=1_000,
        weight_cap=1_000,
        mode="async",
        concurrency=concurrency,
        staleness_max=10,
    )


def uid(number: int) -> bytes:
    # Ids do not sort as devices do.
    return bytes([250 - 3 * number]) * 16


def stored(number: int, *, staleness: int = 0) -> UpdateStored:
    return UpdateStored(
        update_id=uid(number),
        device=f"d{number}",
        round=7 - staleness,
        base_version=6 - staleness,
        num_examples=10,
        weight=10,
        payload_bytes=100,
        payload_digest=DIGEST,
        metrics={},
        receipted_at_s=NOW_S,
        collected_in=7,
    )


def arrived(number: int, *, staleness: int = 0) -> UpdateArrived:
    return UpdateArrived(stored(number, staleness=staleness))


def chosen(*numbers: int) -> Chosen:
    return Chosen({f"d{number}": 10 + number for number in numbers})


def play(
    state: RoundState, *events: object, now_s: float = NOW_S
) -> tuple[RoundState, list[Effect]]:
    effects: list[Effect] = []
    for event in events:
        state, more = buffer.advance(state, event, now_s)
        effects += more
    return state, effects


def begun(*numbers: int, cohort: int = 3, needed: int = 2) -> RoundState:
    return play(RoundState(), Open(opened(cohort=cohort, needed=needed)), chosen(*numbers))[0]


def settlements(effects: Iterable[Effect]) -> list[tuple[str, bytes, bool, str]]:
    return [
        (effect.device, effect.message.update_id, effect.message.counted, effect.message.reason)
        for effect in effects
        if isinstance(effect, Publish) and isinstance(effect.message, Settled)
    ]


def invites(effects: Iterable[Effect]) -> dict[str, Invite]:
    return {
        effect.device: effect.message
        for effect in effects
        if isinstance(effect, Publish) and isinstance(effect.message, Invite)
    }


def at(phase: Phase) -> tuple[RoundState, ...]:
    """Buffers that came to a phase by legal steps, of all sorts."""
    empty = begun()
    one = play(begun(0, 1, 2, 3), arrived(0))[0]
    two = play(one, Accepted(uid(0)), arrived(1, staleness=2), Accepted(uid(1)), arrived(2))[0]
    overdue = play(one, Woke(DEADLINE))[0]
    nearly = play(one, Accepted(uid(0)), arrived(1), Woke(DEADLINE))[0]
    full = play(two, Accepted(uid(2)))[0]
    return {
        Phase.PLANNED: (RoundState(),),
        Phase.COLLECTING: (empty, begun(0), one, two, overdue, nearly),
        Phase.CLOSING: (full, play(two, Woke(DEADLINE))[0]),
        Phase.COMMITTED: (play(full, Committed(7, DIGEST))[0],),
    }.get(phase, (replace(one, phase=phase),))


def candidates(state: RoundState) -> dict[type, tuple[object, ...]]:
    known = sorted(state.updates)
    return {
        Open: (Open(opened()), Open(opened(), {"d9": Flight(5, 130.0)})),
        Resume: (
            Resume(opened(), ()),
            Resume(opened(), (stored(0), stored(1, staleness=1)), flights={"d2": Flight(7, 150.0)}),
        ),
        Chosen: (chosen(), chosen(5, 6), chosen(0, 1, 2, 3, 4, 5, 6)),
        UpdateArrived: tuple(arrived(n) for n in range(4)),
        Accepted: tuple(Accepted(key) for key in (*known, b"nobody's update!")),
        Rejected: tuple(Rejected(key, "not_finite") for key in (*known, b"nobody's update!")),
        InviteeLost: tuple(InviteeLost(f"d{n}", "gone") for n in range(4)),
        DeviceAsks: (DeviceAsks("d3", 99), DeviceAsks("stranger", 1)),
        Woke: (Woke(DEADLINE), Woke(FLIGHT_OVER), Woke("unknown")),
        Committed: (Committed(7, DIGEST),),
        ClockSet: (ClockSet(1e6), ClockSet(-1e6)),
    }


# -- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_is_a_legal_step_or_an_illegal_one_that_changes_nothing(
    phase: Phase, kind: type
) -> None:
    for state in at(phase):
        assert state.phase is phase
        before = repr(state)
        for event in candidates(state)[kind]:
            newcomer = isinstance(event, UpdateArrived) and (
                event.update.update_id not in state.updates
            )
            if kind not in TABLE.get(phase, {}):
                with pytest.raises(IllegalStepError, match=phase.name):
                    buffer.advance(state, event, NOW_S)
            elif newcomer and phase in CLOSED:
                with pytest.raises(LocalProtocolError, match="closing"):
                    buffer.advance(state, event, NOW_S)
            else:
                after, _ = buffer.advance(state, event, NOW_S)
                assert after.phase in TABLE[phase][kind].to
                assert len(after.flights) <= CONCURRENCY
            assert repr(state) == before


def test_every_target_of_the_table_is_reached_and_no_other() -> None:
    declared = {
        (phase, kind, target)
        for phase, rows in TABLE.items()
        for kind, rule in rows.items()
        for target in rule.to
    }
    taken = set()
    for phase in TABLE:
        assert isinstance(phase, Phase)
        for state in at(phase):
            for kind in TABLE[phase]:
                for event in candidates(state)[kind]:
                    if isinstance(event, UpdateArrived) and phase in CLOSED:
                        event = arrived(0)  # noqa: PLW2901 - a newcomer is no step
                    taken.add((phase, kind, buffer.advance(state, event, NOW_S)[0].phase))
    assert declared - taken == set()
    assert taken - declared == set()


def test_a_buffer_is_never_abandoned() -> None:
    assert "ABANDONED" not in draw(TABLE)


def test_a_buffer_that_was_never_opened_is_a_bug_and_says_so() -> None:
    with pytest.raises(LocalProtocolError, match="not been opened"):
        buffer.advance(RoundState(phase=Phase.COLLECTING), Woke(DEADLINE), 0.0)


# -- inviting ------------------------------------------------------------------------------------


def test_invitations_are_on_disk_before_they_leave() -> None:
    _, effects = play(begun(), chosen(0, 1))
    assert effects[0] == Persist(RoundInvited(7, {"d0": 10, "d1": 11}, NOW_S, NOW_S + 60.0))
    assert effects[1] == WakeAt(FLIGHT_OVER, NOW_S + 60.0)
    sent = invites(effects)
    assert {device: message.check_in for device, message in sent.items()} == {"d0": 10, "d1": 11}
    assert {(message.round, message.base_version) for message in sent.values()} == {(7, 6)}


def test_who_comes_later_gets_as_long_as_who_came_first() -> None:
    state, _ = play(begun(), chosen(0))
    _, effects = play(state, chosen(1), now_s=NOW_S + 50.0)
    assert invites(effects)["d1"].deadline_s == 60.0


def test_no_more_are_in_flight_than_may_be_in_the_order_of_the_choice() -> None:
    state, _ = play(begun(), chosen(5, 2))
    after, effects = play(state, chosen(2, 9, 1, 3))
    assert list(invites(effects)) == ["d9", "d1"]
    assert len(after.flights) == CONCURRENCY == 4
    assert play(after, chosen(8)) == (after, [])


def test_a_device_that_lost_its_invitation_gets_it_again_with_the_time_that_is_left() -> None:
    state, _ = play(begun(), chosen(0))
    after, effects = play(state, DeviceAsks("d0", 99), now_s=NOW_S + 45.0)
    assert after == state
    assert (invites(effects)["d0"].check_in, invites(effects)["d0"].deadline_s) == (99, 15.0)


def test_a_device_that_works_for_an_earlier_round_is_not_invited_to_that_again() -> None:
    state, _ = play(RoundState(), Open(opened(), {"d0": Flight(5, 150.0)}))
    assert play(state, DeviceAsks("d0", 99)) == (state, [])
    assert play(state, DeviceAsks("stranger", 99)) == (state, [])


def test_who_is_in_flight_when_a_buffer_closes_is_so_when_the_next_opens() -> None:
    state, effects = play(RoundState(), Open(opened(), {"d0": Flight(5, 130.0)}))
    assert effects[0] == Persist(opened())
    assert WakeAt(FLIGHT_OVER, 130.0) in effects
    assert buffer.room(state) == CONCURRENCY - 1


def test_whose_time_is_over_is_not_waited_for() -> None:
    flights = {"d0": Flight(5, 130.0), "d1": Flight(6, 140.0)}
    state, _ = play(RoundState(), Open(opened(), flights))
    after, effects = play(state, Woke(FLIGHT_OVER), now_s=130.0)
    assert set(after.flights) == {"d1"}
    assert effects == [
        WakeAt(FLIGHT_OVER, 140.0),
        Report("invitee_lost", "deadline_passed", "d0"),
    ]
    assert play(after, Woke(FLIGHT_OVER), now_s=141.0)[1][0] == CancelWake(FLIGHT_OVER)


def test_a_device_that_gives_up_makes_room_and_that_is_on_disk() -> None:
    state, _ = play(begun(), chosen(0, 1))
    after, effects = play(state, InviteeLost("d0", "battery_low"))
    assert effects[0] == Persist(FlightEnded(7, "d0", "battery_low"))
    assert set(after.flights) == {"d1"}
    assert play(after, InviteeLost("d0", "battery_low")) == (after, [])


@pytest.mark.parametrize("by_s", [3.2e7, -3.2e7])
def test_what_is_left_of_a_flight_does_not_change_when_somebody_sets_the_clock(
    by_s: float,
) -> None:
    state, _ = play(begun(0), ClockSet(by_s))
    _, effects = play(state, DeviceAsks("d0", 99), now_s=NOW_S + 10.0 + by_s)
    assert invites(effects)["d0"].deadline_s == pytest.approx(50.0)


# -- collecting ----------------------------------------------------------------------------------


def test_a_receipt_leaves_only_after_the_update_is_on_disk() -> None:
    state, effects = play(begun(0), arrived(0))
    assert effects == [
        Persist(stored(0)),
        Publish(Receipt(uid(0)), "d0"),
        CancelWake(FLIGHT_OVER),
        Validate(uid(0), "d0", 10),
    ]
    assert state.flights == {}


def test_an_update_says_how_stale_it_is_to_whoever_validates_it() -> None:
    _, effects = play(begun(), arrived(0, staleness=3))
    assert Validate(uid(0), "d0", 10, 3) in effects
    _, effects = play(RoundState(), Resume(opened(), (stored(0, staleness=3),)))
    assert Validate(uid(0), "d0", 10, 3) in effects


def test_staleness_weighs_as_in_the_paper() -> None:
    assert [staleness_factor(s) for s in (-1, 0, 3, 8)] == pytest.approx([1.0, 1.0, 0.5, 1 / 3])


def test_a_device_that_delivers_old_work_has_not_begun_the_new() -> None:
    state, _ = play(begun(), chosen(0))
    after, effects = play(state, arrived(0, staleness=2))
    assert effects[0] == Persist(FlightEnded(7, "d0", "delivered_earlier_work"))
    assert after.flights == {}


def test_a_duplicate_is_receipted_again_and_neither_stored_nor_validated_again() -> None:
    state, _ = play(begun(0), arrived(0))
    assert play(state, arrived(0)) == (state, [Publish(Receipt(uid(0)), "d0")])


def test_a_rejection_is_on_disk_before_the_device_hears_of_it_and_ends_nothing() -> None:
    state, effects = play(begun(0), arrived(0), Rejected(uid(0), "not_finite"))
    assert state.phase is Phase.COLLECTING
    settled = Persist(UpdateSettled(uid(0), 7, "not_finite", NOW_S))
    told = Publish(Settled(uid(0), counted=False, reason="not_finite"), "d0")
    assert effects.index(settled) < effects.index(told)


# -- how it ends ---------------------------------------------------------------------------------


def full(*numbers: int) -> list[object]:
    return [event for n in numbers for event in (arrived(n), Accepted(uid(n)))]


def test_it_closes_when_the_cohort_is_accepted() -> None:
    state, effects = play(begun(), *full(2, 0))
    assert state.phase is Phase.COLLECTING
    state, effects = play(state, *full(1))
    assert state.phase is Phase.CLOSING
    assert effects[-1] == Commit(7, 6, (uid(2), uid(1), uid(0)))
    assert settlements(effects) == []
    _, effects = play(state, Committed(7, DIGEST))
    assert {told[2:] for told in settlements(effects)} == {(True, "counted")}


def test_from_its_deadline_on_the_quorum_is_enough() -> None:
    state, effects = play(begun(), *full(0), Woke(DEADLINE))
    assert state.phase is Phase.COLLECTING
    state, effects = play(state, *full(1))
    assert state.phase is Phase.CLOSING
    assert effects[-1] == Commit(7, 6, (uid(1), uid(0)))
    state, effects = play(begun(), *full(0, 1), Woke(DEADLINE))
    assert effects[-1] == Commit(7, 6, (uid(1), uid(0)))


def test_a_resumed_buffer_waits_for_nobody_longer_than_a_round() -> None:
    flights = {"d2": Flight(7, 1e9), "d3": Flight(6, 120.0)}
    state, effects = play(RoundState(), Resume(opened(), (), flights=flights), now_s=1_000.0)
    assert state.flights == {"d2": Flight(7, 1_060.0), "d3": Flight(6, 120.0)}
    assert WakeAt(DEADLINE, 1_000.0 + RESUME_GRACE_S) in effects
    assert WakeAt(FLIGHT_OVER, 120.0) in effects


@pytest.mark.parametrize("crash_after", range(6))
def test_a_buffer_resumed_after_any_update_commits_the_same_set(crash_after: int) -> None:
    _, effects = play(begun(), *full(2, 0, 1)[:crash_after])
    disk = tuple(
        effect.record
        for effect in effects
        if isinstance(effect, Persist) and isinstance(effect.record, UpdateStored)
    )
    state, effects = play(RoundState(), Resume(opened(), disk))
    validated = [e.update_id for e in effects if isinstance(e, Validate)]
    state, _ = play(state, *(Accepted(key) for key in validated))
    for number in (2, 0, 1):
        if state.phase is not Phase.CLOSING:
            known = uid(number) in state.updates
            state, _ = play(state, arrived(number), *([] if known else [Accepted(uid(number))]))
    assert state.accepted == (uid(2), uid(1), uid(0))
    assert state.phase is Phase.CLOSING


# -- random buffers ------------------------------------------------------------------------------


@dataclass
class Ledger:
    """An honest driver, its disk and its outbox, checked after every step."""

    state: RoundState = field(default_factory=RoundState)
    disk: set[bytes] = field(default_factory=set)
    invited: set[str] = field(default_factory=set)
    decided: Counter[bytes] = field(default_factory=Counter)
    to_validate: list[bytes] = field(default_factory=list)
    commit: Commit | None = None

    def step(self, event: object) -> None:
        try:
            self.state, effects = buffer.advance(self.state, event, NOW_S)
        except LocalProtocolError:
            return
        for effect in effects:
            self.execute(effect)
        assert len(self.state.flights) <= CONCURRENCY
        if self.state.phase is Phase.COMMITTED:
            assert Counter(self.disk) == self.decided

    def execute(self, effect: Effect) -> None:
        match effect:
            case Validate(update_id):
                self.to_validate.append(update_id)
            case Commit():
                assert self.commit is None
                self.commit = effect
                left = [k for k, v in self.state.updates.items() if v is UpdateState.STORED]
                self.decided.update([*effect.accepted, *left])
            case Persist(UpdateStored() as update):
                assert update.update_id not in self.disk
                self.disk.add(update.update_id)
            case Persist(UpdateSettled() as settled):
                self.decided[settled.update_id] += 1
            case Persist(RoundInvited() as record):
                self.invited |= set(record.invited)
            case Publish(Invite(), device):
                assert device in self.invited
            case Publish(Receipt() as receipt):
                assert receipt.update_id in self.disk
            case Publish(Settled() as told):
                assert self.decided[told.update_id] == 1


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["choose", "arrive", "arrive", "accept", "accept", "reject", "lose"]),
            st.integers(0, 9),
        ),
        max_size=50,
    ),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_every_stored_update_is_settled_exactly_once_whatever_happens(
    choices: list[tuple[str, int]], cohort: int, chance: random.Random
) -> None:
    needed = chance.randint(1, cohort)
    ledger = Ledger()
    ledger.step(Open(opened(cohort=cohort, needed=needed), {"d9": Flight(5, 120.0)}))
    for what, which in choices:
        if what == "choose":
            ledger.step(chosen(*range(which)))
        elif what == "arrive":
            ledger.step(arrived(which, staleness=which % 3))
        elif what == "lose":
            ledger.step(InviteeLost(f"d{which}", "gone"))
        elif ledger.to_validate:
            key = ledger.to_validate.pop(which % len(ledger.to_validate))
            ledger.step(Accepted(key) if what == "accept" else Rejected(key, "not_finite"))
    ledger.step(Woke(DEADLINE))
    for number in range(20, 20 + cohort):  # sooner or later somebody comes
        ledger.step(arrived(number))
        while ledger.to_validate:
            ledger.step(Accepted(ledger.to_validate.pop()))
    assert ledger.commit is not None
    assert needed <= len(ledger.commit.accepted) <= cohort
    ledger.step(Committed(7, DIGEST))
    assert ledger.state.phase is Phase.COMMITTED


def test_a_record_of_a_synchronous_round_reads_as_one() -> None:
    whole = msgspec.to_builtins(opened(), builtin_types=(bytes,))
    for name in ("mode", "concurrency", "staleness_max"):
        del whole[name]
    assert msgspec.convert(whole, type=RoundOpened).mode == "sync"
