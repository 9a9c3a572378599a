import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import round as rounds
from coordinator.round import DEADLINE, RESUME_GRACE_S, TABLE, Phase, RoundState, UpdateState
from coordinator.signals import (
    Accepted,
    ClockSet,
    Commit,
    Committed,
    DeviceAsks,
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
from wire import (
    CancelWake,
    Effect,
    IllegalStepError,
    LocalProtocolError,
    Persist,
    Plan,
    Publish,
    WakeAt,
    Woke,
    draw,
)
from wire.messages import Invite, Receipt, Settled

EVENTS = sorted({event for rows in TABLE.values() for event in rows}, key=lambda e: e.__name__)
DIGEST = bytes(32)
NOW_S = 100.0
DEADLINE_AT_S = 160.0
ENDED = {Phase.COMMITTED, Phase.ABANDONED}


def opened(count: int = 4, *, cohort: int = 3, needed: int = 2) -> RoundOpened:
    return RoundOpened(
        round=7,
        base_version=6,
        base_digest=DIGEST,
        plan=Plan(),
        codec="ecq_sr",
        cohort=cohort,
        needed=needed,
        invited={f"d{i}": 10 + i for i in range(count)},
        opened_at_s=NOW_S,
        deadline_at_s=DEADLINE_AT_S,
        chunk_bytes_max=1_000,
        weight_cap=1_000,
    )


def uid(number: int) -> bytes:
    # Ids do not sort as devices do.
    return bytes([250 - 3 * number]) * 16


def stored(number: int) -> UpdateStored:
    return UpdateStored(
        update_id=uid(number),
        device=f"d{number}",
        round=7,
        base_version=6,
        num_examples=10,
        weight=10,
        payload_bytes=100,
        payload_digest=DIGEST,
        metrics={},
        receipted_at_s=NOW_S,
    )


def arrived(number: int) -> UpdateArrived:
    return UpdateArrived(stored(number))


def play(
    state: RoundState, *events: object, now_s: float = NOW_S
) -> tuple[RoundState, list[Effect]]:
    effects: list[Effect] = []
    for event in events:
        state, more = rounds.advance(state, event, now_s)
        effects += more
    return state, effects


def begun(count: int = 4, *, cohort: int = 3, needed: int = 2) -> RoundState:
    return play(RoundState(), Open(opened(count, cohort=cohort, needed=needed)))[0]


def receipts(effects: Iterable[Effect]) -> list[tuple[str, bytes]]:
    return [
        (effect.device, effect.message.update_id)
        for effect in effects
        if isinstance(effect, Publish) and isinstance(effect.message, Receipt)
    ]


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
    """Rounds that came to a phase by legal steps, of all sorts."""
    one = play(begun(), arrived(0))[0]
    two = play(one, Accepted(uid(0)), arrived(1))[0]
    last = play(two, InviteeLost("d2", "gone"), InviteeLost("d3", "gone"))[0]
    alone = play(begun(1, cohort=3), arrived(0))[0]
    waiting = play(begun(3), arrived(0), Accepted(uid(0)), arrived(1), Accepted(uid(1)))[0]
    full = play(two, Accepted(uid(1)), arrived(2), arrived(3), Accepted(uid(2)))[0]
    enough = play(two, Accepted(uid(1)))[0]
    lost = (InviteeLost("d1", "gone"), InviteeLost("d2", "gone"))
    few = play(one, Accepted(uid(0)), *lost)[0]
    nearly = play(enough, arrived(2), InviteeLost("d3", "gone"))[0]
    return {
        Phase.PLANNED: (RoundState(),),
        Phase.INVITING: (begun(), begun(1)),
        Phase.COLLECTING: (one, two, last, alone, waiting, enough, few, nearly),
        Phase.CLOSING: (full,),
        Phase.COMMITTED: (play(full, Committed(7, DIGEST))[0],),
        Phase.ABANDONED: (play(two, Woke(DEADLINE))[0],),
        Phase.KEYING: (replace(one, phase=Phase.KEYING),),
        Phase.UNMASKING: (replace(one, phase=Phase.UNMASKING),),
    }[phase]


def candidates(state: RoundState) -> dict[type, tuple[object, ...]]:
    known = sorted(state.updates)
    return {
        Open: (Open(opened()),),
        Resume: (Resume(opened(), ()), Resume(opened(), (stored(0), stored(1)))),
        UpdateArrived: tuple(arrived(n) for n in range(4) if known == [] or n < 4),
        Accepted: tuple(Accepted(key) for key in (*known, b"nobody's update!")),
        Rejected: tuple(Rejected(key, "not_finite") for key in (*known, b"nobody's update!")),
        InviteeLost: tuple(InviteeLost(f"d{n}", "gone") for n in range(4)),
        DeviceAsks: (DeviceAsks("d3", 99), DeviceAsks("stranger", 1)),
        Woke: (Woke(DEADLINE), Woke("unknown")),
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
                    rounds.advance(state, event, NOW_S)
            elif newcomer and phase in {Phase.CLOSING, *ENDED}:
                with pytest.raises(LocalProtocolError, match="closing"):
                    rounds.advance(state, event, NOW_S)
            else:
                after, _ = rounds.advance(state, event, NOW_S)
                assert after.phase in TABLE[phase][kind].to
            assert repr(state) == before


def test_every_target_of_the_table_is_reached_and_no_other() -> None:
    declared = {
        (phase, kind, target)
        for phase, rows in TABLE.items()
        for kind, rule in rows.items()
        for target in rule.to
    }
    taken = set()
    for phase in (phase for phase in Phase if phase in TABLE):
        for state in at(phase):
            for kind in TABLE[phase]:
                for event in candidates(state)[kind]:
                    if isinstance(event, UpdateArrived) and phase in {Phase.CLOSING, *ENDED}:
                        event = arrived(0)  # noqa: PLW2901 - a newcomer is no step
                    taken.add((phase, kind, rounds.advance(state, event, NOW_S)[0].phase))
    assert declared - taken == set()
    assert taken - declared == set()


def test_phases_of_secure_aggregation_are_reserved_and_nothing_leads_there() -> None:
    for phase in (Phase.KEYING, Phase.UNMASKING):
        assert phase not in TABLE
        assert phase.name not in draw(TABLE)


# -- opening -------------------------------------------------------------------------------------


def test_a_round_is_on_disk_before_the_first_invitation_leaves() -> None:
    state, effects = play(RoundState(), Open(opened()))
    assert effects[0] == Persist(opened())
    assert WakeAt(DEADLINE, DEADLINE_AT_S) in effects
    sent = invites(effects)
    assert {device: message.check_in for device, message in sent.items()} == opened().invited
    assert {message.deadline_s for message in sent.values()} == {60.0}
    assert {message.chunk_bytes_max for message in sent.values()} == {1_000}
    assert state.waiting_for == set(opened().invited)


@pytest.mark.parametrize("by_s", [3.2e7, -3.2e7])
def test_what_is_left_of_a_round_does_not_change_when_somebody_sets_the_clock(by_s: float) -> None:
    state, _ = play(begun(), ClockSet(by_s))
    _, effects = play(state, DeviceAsks("d2", 99), now_s=NOW_S + 10.0 + by_s)
    assert invites(effects)["d2"].deadline_s == pytest.approx(50.0)


def test_an_invited_device_that_lost_its_invitation_is_told_again_what_time_is_left() -> None:
    state, effects = play(begun(), DeviceAsks("d2", 99), now_s=150.0)
    message = invites(effects)["d2"]
    assert (message.check_in, message.deadline_s) == (99, 10.0)
    _, late = play(state, DeviceAsks("d2", 100), now_s=1e6)
    assert invites(late)["d2"].deadline_s > 0.0


def test_a_stranger_or_one_that_is_done_is_not_invited() -> None:
    state, _ = play(begun(), arrived(0), InviteeLost("d1", "gone"))
    for device in ("stranger", "d0", "d1"):
        assert play(state, DeviceAsks(device, 99)) == (state, [])


# -- receipts ------------------------------------------------------------------------------------


def test_a_receipt_leaves_only_after_the_update_is_on_disk() -> None:
    state, effects = play(begun(), arrived(0))
    assert effects == [
        Persist(stored(0)),
        Publish(Receipt(uid(0)), "d0"),
        Validate(uid(0), "d0", 10),
    ]
    assert state.updates == {uid(0): UpdateState.STORED}
    assert "d0" not in state.waiting_for


def test_a_duplicate_is_receipted_again_and_neither_stored_nor_validated_again() -> None:
    state, _ = play(begun(), arrived(0))
    after, effects = play(state, arrived(0))
    assert after == state
    assert effects == [Publish(Receipt(uid(0)), "d0")]
    accepted, _ = play(state, Accepted(uid(0)))
    assert play(accepted, arrived(0)) == (accepted, [Publish(Receipt(uid(0)), "d0")])


def test_a_duplicate_of_something_decided_is_told_the_decision() -> None:
    state, first = play(begun(), arrived(0), Rejected(uid(0), "not_finite"))
    told = [("d0", uid(0), False, "not_finite")]
    assert settlements(first) == told
    assert settlements(play(state, arrived(0))[1]) == told
    (closing,) = at(Phase.CLOSING)
    assert settlements(play(closing, arrived(0))[1]) == []
    (committed,) = at(Phase.COMMITTED)
    assert settlements(play(committed, arrived(0))[1]) == [("d0", uid(0), True, "counted")]
    assert settlements(play(committed, arrived(3))[1]) == [("d3", uid(3), False, "round_closed")]
    (abandoned,) = at(Phase.ABANDONED)
    assert settlements(play(abandoned, arrived(0))[1]) == [("d0", uid(0), False, "round_abandoned")]


def test_a_rejection_is_on_disk_before_the_device_hears_of_it() -> None:
    _, effects = play(begun(), arrived(0), Rejected(uid(0), "schema_mismatch"))
    settled = UpdateSettled(uid(0), 7, "schema_mismatch", NOW_S)
    told = Publish(Settled(uid(0), counted=False, reason="schema_mismatch"), "d0")
    assert effects.index(Persist(settled)) < effects.index(told)


@pytest.mark.parametrize("again", [Accepted(uid(0)), Rejected(uid(0), "late")])
def test_an_update_is_decided_once(again: object) -> None:
    accepted, _ = play(begun(), arrived(0), Accepted(uid(0)))
    assert play(accepted, again) == (accepted, [])
    rejected, _ = play(begun(), arrived(0), Rejected(uid(0), "not_finite"))
    assert play(rejected, again) == (rejected, [])


def test_a_decision_about_an_update_that_nobody_stored_changes_nothing() -> None:
    state, _ = play(begun(), arrived(0))
    for event in (Accepted(uid(9)), Rejected(uid(9), "late")):
        assert play(state, event) == (state, [])


# -- how a round ends ----------------------------------------------------------------------------


def test_it_closes_as_soon_as_the_cohort_is_accepted() -> None:
    state, effects = play(begun(), *(arrived(n) for n in range(3)))
    for number in (1, 0):
        state, effects = play(state, Accepted(uid(number)))
        assert (state.phase, effects) == (Phase.COLLECTING, [])
    state, effects = play(state, Accepted(uid(2)))
    assert state.phase is Phase.CLOSING
    assert effects == [CancelWake(DEADLINE), Commit(7, 6, (uid(2), uid(1), uid(0)))]


def test_settlements_wait_until_the_commit_is_on_disk() -> None:
    state, effects = play(begun(), arrived(0), arrived(1), arrived(2), Accepted(uid(0)))
    state, more = play(state, Accepted(uid(1)), Accepted(uid(2)))
    assert settlements(effects + more) == []
    state, effects = play(state, Committed(7, DIGEST))
    assert state.phase is Phase.COMMITTED
    assert settlements(effects) == [(f"d{n}", uid(n), True, "counted") for n in (2, 1, 0)]


@pytest.mark.parametrize(("accepted", "phase"), [(0, Phase.ABANDONED), (1, Phase.ABANDONED)])
def test_a_deadline_without_the_quorum_abandons(accepted: int, phase: Phase) -> None:
    steps = [event for n in range(accepted) for event in (arrived(n), Accepted(uid(n)))]
    state, effects = play(begun(), *steps)
    state, effects = play(state, Woke(DEADLINE), now_s=DEADLINE_AT_S)
    assert state.phase is phase
    ids = tuple(sorted(uid(n) for n in range(accepted)))
    record = RoundAbandoned(7, ids, "deadline_passed", DEADLINE_AT_S)
    assert effects[1] == Persist(record)
    assert [told[1:] for told in settlements(effects)] == [
        (key, False, "round_abandoned") for key in ids
    ]


def test_a_deadline_with_the_quorum_commits_what_is_accepted() -> None:
    state, _ = play(begun(), arrived(0), Accepted(uid(0)), arrived(1), Accepted(uid(1)), arrived(2))
    state, effects = play(state, Woke(DEADLINE))
    assert effects[-1] == Commit(7, 6, (uid(1), uid(0)))
    state, effects = play(state, Accepted(uid(2)), Committed(7, DIGEST))
    assert sorted(told[1:3] for told in settlements(effects)) == sorted(
        [(uid(0), True), (uid(1), True), (uid(2), False)]
    )


def test_it_does_not_wait_when_nobody_is_left_to_wait_for() -> None:
    state, _ = play(begun(), arrived(0), Accepted(uid(0)), arrived(1), InviteeLost("d2", "failed"))
    state, effects = play(state, InviteeLost("d3", "gone"))
    assert state.phase is Phase.COLLECTING  # one is still being validated
    committed, effects = play(state, Accepted(uid(1)))
    assert effects[-1] == Commit(7, 6, (uid(1), uid(0)))
    abandoned, effects = play(state, Rejected(uid(1), "not_finite"))
    assert (committed.phase, abandoned.phase) == (Phase.CLOSING, Phase.ABANDONED)
    assert sorted(settlements(effects)) == [
        ("d0", uid(0), False, "round_abandoned"),
        ("d1", uid(1), False, "not_finite"),
    ]


def test_a_round_that_everybody_declines_is_abandoned_at_once() -> None:
    state, effects = play(begun(), *(InviteeLost(f"d{n}", "battery_low") for n in range(4)))
    assert state.phase is Phase.ABANDONED
    assert Persist(RoundAbandoned(7, (), "nobody_left", NOW_S)) in effects


def test_a_device_that_is_lost_after_it_delivered_still_counts() -> None:
    state, _ = play(begun(), arrived(0), InviteeLost("d0", "gone"), Accepted(uid(0)))
    assert state.accepted == (uid(0),)


def test_another_timer_ends_nothing() -> None:
    for phase in (Phase.INVITING, Phase.COLLECTING, Phase.CLOSING):
        for state in at(phase):
            assert play(state, Woke("unknown")) == (state, [])


# -- resuming ------------------------------------------------------------------------------------


def test_a_resumed_round_validates_what_is_on_disk_and_waits_for_the_others() -> None:
    state, effects = play(RoundState(), Resume(opened(), (stored(0), stored(2))))
    assert state.phase is Phase.COLLECTING
    assert state.waiting_for == {"d1", "d3"}
    assert [e for e in effects if isinstance(e, Validate)] == [
        Validate(uid(0), "d0", 10),
        Validate(uid(2), "d2", 10),
    ]
    assert not any(isinstance(effect, Persist) for effect in effects)
    assert invites(effects) == {}
    assert WakeAt(DEADLINE, DEADLINE_AT_S) in effects
    assert play(state, DeviceAsks("d1", 99))[1] != []


def test_a_round_resumed_after_its_deadline_still_hears_who_is_waiting() -> None:
    _, effects = play(RoundState(), Resume(opened(), ()), now_s=1_000.0)
    assert WakeAt(DEADLINE, 1_000.0 + RESUME_GRACE_S) in effects


@pytest.mark.parametrize("crash_after", range(6))
def test_a_round_resumed_after_any_update_commits_the_same_set(crash_after: int) -> None:
    numbers = (2, 0, 1)
    steps = [event for n in numbers for event in (arrived(n), Accepted(uid(n)))]
    _, effects = play(begun(), *steps[:crash_after])
    disk = tuple(
        effect.record
        for effect in effects
        if isinstance(effect, Persist) and isinstance(effect.record, UpdateStored)
    )
    state, effects = play(RoundState(), Resume(opened(), disk))
    answers = [Accepted(effect.update_id) for effect in effects if isinstance(effect, Validate)]
    state, _ = play(state, *answers)
    # Devices without a receipt offer again; so do some whose receipt was lost.
    for number in numbers:
        if state.phase is not Phase.CLOSING:
            known = uid(number) in state.updates
            state, _ = play(state, arrived(number), *([] if known else [Accepted(uid(number))]))
    assert state.phase is Phase.CLOSING
    assert state.accepted == (uid(2), uid(1), uid(0))


# -- random rounds -------------------------------------------------------------------------------


@dataclass
class Ledger:
    """An honest driver, its disk and its outbox, checked after every step."""

    state: RoundState = field(default_factory=RoundState)
    disk: set[bytes] = field(default_factory=set)
    decided: Counter[bytes] = field(default_factory=Counter)
    told: dict[bytes, set[tuple[bool, str]]] = field(default_factory=dict)
    to_validate: list[bytes] = field(default_factory=list)
    commit: Commit | None = None

    def step(self, event: object) -> None:
        try:
            self.state, effects = rounds.advance(self.state, event, NOW_S)
        except LocalProtocolError:
            return
        for effect in effects:
            self.execute(effect)
        if self.state.phase in ENDED:
            assert Counter(self.disk) == self.decided
            assert self.disk == set(self.told)

    def execute(self, effect: Effect) -> None:
        if isinstance(effect, Validate):
            self.to_validate.append(effect.update_id)
        elif isinstance(effect, Commit):
            assert self.commit is None
            self.commit = effect
            undecided = [k for k, v in self.state.updates.items() if v is UpdateState.STORED]
            self.decided.update([*effect.accepted, *undecided])
        elif isinstance(effect, Persist):
            if isinstance(effect.record, UpdateStored):
                assert effect.record.update_id not in self.disk
                self.disk.add(effect.record.update_id)
            elif isinstance(effect.record, UpdateSettled):
                self.decided[effect.record.update_id] += 1
            elif isinstance(effect.record, RoundAbandoned):
                assert self.commit is None
                self.decided.update(effect.record.accepted)
        elif isinstance(effect, Publish):
            message = effect.message
            if isinstance(message, Receipt):
                assert message.update_id in self.disk
            elif isinstance(message, Settled):
                assert self.decided[message.update_id] == 1
                verdicts = self.told.setdefault(message.update_id, set())
                verdicts.add((message.counted, message.reason))
                assert len(verdicts) == 1

    def validate(self, which: int, reason: str = "") -> None:
        if self.to_validate:
            key = self.to_validate.pop(which % len(self.to_validate))
            self.step(Rejected(key, reason) if reason else Accepted(key))


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "arrive", "accept", "accept", "reject", "lose", "wake"]),
            st.integers(0, 7),
        ),
        max_size=40,
    ),
    st.integers(1, 5),
    st.data(),
)
def test_every_stored_update_is_settled_exactly_once_whatever_happens(
    choices: list[tuple[str, int]], cohort: int, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(1, cohort))
    ledger = Ledger()
    ledger.step(Open(opened(8, cohort=cohort, needed=needed)))
    for what, which in choices:
        if what == "arrive":
            ledger.step(arrived(which))
        elif what == "accept":
            ledger.validate(which)
        elif what == "reject":
            ledger.validate(which, "not_finite")
        elif what == "lose":
            ledger.step(InviteeLost(f"d{which}", "gone"))
        elif which == 0:
            ledger.step(Woke(DEADLINE))
        if ledger.commit is not None and which % 2:
            ledger.step(Committed(7, DIGEST))
    ledger.step(Woke(DEADLINE))
    if ledger.commit is not None:
        assert needed <= len(ledger.commit.accepted) <= cohort
        ledger.step(Committed(7, DIGEST))
    assert ledger.state.phase in ENDED


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(2, 8))
def test_the_same_updates_in_any_order_are_the_same_accepted_tuple(
    chance: random.Random, count: int
) -> None:
    ledger = Ledger()
    ledger.step(Open(opened(count, cohort=count, needed=count)))
    order = [n for n in range(count) for _ in range(chance.randint(1, 3))]
    chance.shuffle(order)
    for number in order:
        ledger.step(arrived(number))
        if chance.random() < 0.5:
            ledger.validate(chance.randrange(8))
    while ledger.to_validate:
        ledger.validate(chance.randrange(8))
    assert ledger.commit == Commit(7, 6, tuple(sorted(uid(n) for n in range(count))))


def test_a_round_that_was_never_opened_is_a_bug_and_says_so() -> None:
    with pytest.raises(LocalProtocolError, match="not been opened"):
        rounds.advance(RoundState(phase=Phase.COLLECTING), Woke(DEADLINE), 0.0)
