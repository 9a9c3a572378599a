import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import session
from edge_sdk.session import (
    ANSWER_S_MAX,
    CHECK_IN,
    DEADLINE,
    FETCH_AGAIN,
    OFFER_AGAIN,
    TABLE,
    Phase,
    Session,
)
from edge_sdk.signals import (
    LEASE_S,
    Adopt,
    Adopted,
    BaseFailed,
    BaseHeld,
    BaseMissing,
    BaseReady,
    EnrolmentDone,
    Evaluate,
    Evaluated,
    Fetch,
    ForgetUpdate,
    GateClosed,
    GateOpened,
    LinkDown,
    LinkUp,
    LocateBase,
    SealedUpdate,
    SendChunks,
    StopWork,
    Train,
    Trained,
    TrainingFailed,
    TurnDown,
    Vetoed,
    VetoedRelease,
)
from wire import (
    CancelWake,
    Effect,
    IllegalStepError,
    LocalProtocolError,
    Message,
    Persist,
    Plan,
    Publish,
    Report,
    WakeAt,
    Woke,
    draw,
    update_id,
)
from wire.messages import (
    Available,
    ComeBackAt,
    Declined,
    EvaluateInvite,
    EvaluationReport,
    Failed,
    Invite,
    Receipt,
    Refused,
    Release,
    ReleaseVeto,
    Revoked,
    Settled,
    UpdateOffer,
    UploadStatus,
)

DIGEST = bytes(32)
VETO = Vetoed(9, DIGEST, "loss_is_worse", "2 instead of 1", {"loss_candidate": 2.0})
BOOT = 3
TIMERS = (CHECK_IN, DEADLINE, FETCH_AGAIN, OFFER_AGAIN)
BASE = 5
GATE = GateOpened(600.0, battery_fraction=0.8, charging=False, metered=True)
BETWEEN = {Phase.SETTLED, Phase.DECLINED, Phase.DISCARDED}
WORKING = {Phase.INVITED, Phase.FETCHING, Phase.TRAINING, Phase.EVALUATING}
SEALED = {Phase.SEALED, Phase.UPLOADING}
EVENTS = sorted({event for rows in TABLE.values() for event in rows}, key=lambda e: e.__name__)


def fresh(boot: int = BOOT) -> Session:
    return session.start(
        schema_digest=DIGEST,
        boot=boot,
        federation="fed",
        device="d1",
        codecs=("ecq_sr",),
        held_version=4,
    )


def invite(s: Session, *, round_number: int | None = None, check_in: int | None = None) -> Invite:
    return Invite(
        check_in=s.check_in if check_in is None else check_in,
        round=s.last_round + 1 if round_number is None else round_number,
        base_version=BASE,
        base_digest=DIGEST,
        plan=Plan(),
        codec="ecq_sr",
        deadline_s=60.0,
        chunk_bytes_max=700,
    )


def ask(s: Session, *, version: int = BASE, check_in: int | None = None) -> EvaluateInvite:
    return EvaluateInvite(
        check_in=s.check_in if check_in is None else check_in,
        round=3,
        version=version,
        model_digest=DIGEST,
        plan=Plan(),
        deadline_s=30.0,
    )


def evaluated(round_number: int = 3, version: int = BASE) -> Evaluated:
    return Evaluated(round_number, version, 0.25, 40, {"accuracy": 0.75})


def sealed_for(round_number: int) -> SealedUpdate:
    return SealedUpdate(
        update_id=update_id("fed", round_number, "d1"),
        round=round_number,
        base_version=BASE,
        payload_bytes=2_000,
        payload_digest=DIGEST,
        num_examples=10,
        chunk_bytes_max=700,
        metrics={"base_loss": 0.5},
    )


def candidates(s: Session) -> dict[type, tuple[object, ...]]:
    """Of every type of event: the one that is meant for this moment first, then others."""
    round_number = s.invitation.round if s.invitation else s.last_round + 1
    own = s.sealed.update_id if s.sealed else bytes(16)
    other = b"another's update"
    return {
        LinkUp: (LinkUp(1_000),),
        LinkDown: (LinkDown(),),
        GateOpened: (GATE,),
        GateClosed: (GateClosed("battery_low"),),
        Woke: tuple(Woke(timer) for timer in (*TIMERS, "unknown")),
        EnrolmentDone: (EnrolmentDone("d1", "fed"),),
        ComeBackAt: (
            ComeBackAt(max(s.check_in, 1), 10.0),
            ComeBackAt(s.check_in + 1, 10.0),
            ComeBackAt(1, 10.0),
        ),
        Invite: (
            invite(s),
            invite(s, round_number=s.last_round),
            invite(s, check_in=s.boot << 32),
            invite(s, check_in=s.check_in + 1),
        ),
        EvaluateInvite: (
            ask(s),
            ask(s, version=s.evaluated_version),
            ask(s, version=BASE + 1, check_in=s.boot << 32),
            ask(s, version=BASE + 1, check_in=s.check_in + 1),
        )
        if s.evaluated_version >= 0
        else (ask(s), ask(s, check_in=s.check_in + 1)),
        TurnDown: (
            TurnDown(s.check_in, 3, "bytes_too_few"),
            TurnDown(s.check_in + 1, 3, "bytes_too_few"),
        ),
        Evaluated: (evaluated(), evaluated(4), evaluated(version=BASE - 1)),
        BaseHeld: (BaseHeld(BASE),),
        BaseMissing: (BaseMissing(BASE),),
        BaseReady: (BaseReady(BASE), BaseReady(BASE - 1)),
        BaseFailed: (BaseFailed(BASE, "digest_mismatch"), BaseFailed(BASE - 1, "late")),
        Trained: (Trained(sealed_for(round_number)), Trained(sealed_for(round_number + 7))),
        TrainingFailed: (
            TrainingFailed(round_number, "trainer_failed", "boom"),
            TrainingFailed(round_number + 7, "late"),
        ),
        UploadStatus: (UploadStatus(own, b"\x01"), UploadStatus(other, b"")),
        Receipt: (Receipt(own), Receipt(other)),
        Settled: (
            Settled(own, counted=True, reason="counted"),
            Settled(own, counted=False, reason="round_closed"),
            Settled(other, counted=True, reason="counted"),
        ),
        Release: (Release(9, DIGEST), Release(s.released_version, DIGEST)),
        Adopted: (Adopted(9),),
        Vetoed: (VETO,),
        Refused: (Refused(5, "malformed", "no"),),
        Revoked: (Revoked("owner_left"),),
    }


def play(s: Session, *events: object, now_s: float = 100.0) -> tuple[Session, list[Effect]]:
    effects: list[Effect] = []
    for event in events:
        s, more = session.advance(s, event, now_s)
        effects += more
    return s, effects


def sent(effects: Iterable[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Publish)]


def idle() -> Session:
    """Connected, open, checked in."""
    return play(fresh(), GATE, LinkUp(1_000))[0]


def at(phase: Phase) -> Session:
    """A session that came to a phase by legal steps."""
    s = idle()
    if phase is Phase.UNENROLLED:
        return session.start(schema_digest=DIGEST, boot=BOOT)
    if phase is Phase.REVOKED:
        return play(s, Revoked("owner_left"))[0]
    if phase is Phase.DECLINED:
        return play(s, GateClosed("battery_low"), invite(s))[0]
    road = {
        Phase.IDLE: (),
        Phase.INVITED: (invite(s),),
        Phase.FETCHING: (invite(s), BaseMissing(BASE)),
        Phase.TRAINING: (invite(s), BaseHeld(BASE)),
        Phase.EVALUATING: (ask(s), BaseHeld(BASE)),
        Phase.DISCARDED: (invite(s), BaseHeld(BASE), Woke(DEADLINE)),
        Phase.UPLOADING: (invite(s), BaseHeld(BASE), Trained(sealed_for(1))),
        Phase.SEALED: (invite(s), BaseHeld(BASE), Trained(sealed_for(1)), LinkDown()),
        Phase.SETTLED: (
            invite(s),
            BaseHeld(BASE),
            Trained(sealed_for(1)),
            Settled(sealed_for(1).update_id, counted=True, reason="counted"),
        ),
    }[phase]
    return play(s, *road)[0]


# -- the table -----------------------------------------------------------------------------------


def test_candidates_has_every_event_of_the_table() -> None:
    assert set(candidates(fresh())) == set(EVENTS)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_is_a_legal_step_or_an_illegal_one_that_changes_nothing(
    phase: Phase, kind: type
) -> None:
    here = at(phase)
    assert here.phase is phase
    before = repr(here)
    for event in candidates(here)[kind]:
        if kind in TABLE.get(phase, {}):
            after, _ = session.advance(here, event, 100.0)
            assert after.phase in TABLE[phase][kind].to
        else:
            with pytest.raises(IllegalStepError, match=phase.name):
                session.advance(here, event, 100.0)
        assert repr(here) == before


def test_what_is_no_event_at_all_is_an_illegal_step() -> None:
    for phase in Phase:
        for event in (None, "LinkUp", object()):
            with pytest.raises(IllegalStepError):
                session.advance(at(phase), event, 0.0)


def test_every_target_of_the_table_is_reached_and_no_other() -> None:
    declared = {
        (phase, kind, target)
        for phase, rows in TABLE.items()
        for kind, rule in rows.items()
        for target in rule.to
    }
    taken = set()
    for phase in (phase for phase in Phase if phase in TABLE):
        variants = [at(phase)]
        if phase in (Phase.INVITED, Phase.FETCHING):
            lost = () if phase is Phase.INVITED else (BaseMissing(BASE),)
            variants.append(play(idle(), ask(idle()), *lost)[0])
        if phase is Phase.DECLINED:
            variants.append(play(idle(), TurnDown(idle().check_in, 1, "bytes_too_few"))[0])
        for change in (LinkDown(), GateClosed("battery_low")):
            variants += [play(s, change)[0] for s in variants]
        for s in variants:
            if s.phase is not phase:
                continue
            for kind in TABLE[phase]:
                for event in candidates(s)[kind]:
                    taken.add((phase, kind, session.advance(s, event, 0.0)[0].phase))
    assert declared - taken == set()
    assert taken - declared == set()


def test_the_table_can_be_drawn() -> None:
    assert "IDLE --> INVITED: EvaluateInvite, Invite" in draw(TABLE)
    assert "EVALUATING --> IDLE: Evaluated" in draw(TABLE)


# -- evaluation ----------------------------------------------------------------------------------


def test_the_story_of_one_evaluation() -> None:
    s, effects = play(idle(), ask(idle()))
    assert s.phase is Phase.INVITED
    assert effects[:2] == [CancelWake(CHECK_IN), WakeAt(DEADLINE, 130.0)]
    assert effects[-1] == LocateBase(BASE, DIGEST)
    s, effects = play(s, BaseMissing(BASE))
    assert effects[0] == Fetch(BASE, DIGEST)
    s, effects = play(s, BaseReady(BASE - 1))
    assert (s.phase, effects) == (Phase.FETCHING, [])
    s, effects = play(s, BaseReady(BASE))
    assert s.phase is Phase.EVALUATING
    assert effects == [CancelWake(FETCH_AGAIN), Evaluate(3, BASE, Plan())]
    s, effects = play(s, evaluated())
    assert s.phase is Phase.IDLE
    assert sent(effects) == [EvaluationReport(3, BASE, 0.25, 40, {"accuracy": 0.75})]
    assert WakeAt(CHECK_IN, 100.0) in effects
    s, effects = play(s, Woke(CHECK_IN))
    assert isinstance(sent(effects)[0], Available)


def test_nothing_of_an_evaluation_is_written_down_and_no_round_is_used_up_by_it() -> None:
    s, effects = play(idle(), ask(idle()), BaseHeld(BASE), evaluated(), Woke(CHECK_IN))
    assert not any(isinstance(effect, Persist) for effect in effects)
    assert s.last_round == 0
    assert play(s, invite(s, round_number=3))[0].phase is Phase.INVITED


def test_a_version_is_evaluated_once_a_boot_whatever_a_broker_repeats() -> None:
    s, _ = play(idle(), ask(idle()), BaseHeld(BASE), evaluated(), Woke(CHECK_IN))
    for again in (ask(s), ask(s, check_in=idle().check_in), ask(s, version=BASE - 1)):
        after, effects = play(s, again)
        assert after.phase is Phase.IDLE
        assert [effect.what for effect in effects if isinstance(effect, Report)] == [
            "invite_ignored"
        ]
    assert play(s, ask(s, version=BASE + 1))[0].phase is Phase.INVITED


def test_an_order_to_evaluate_that_answers_another_boot_is_ignored_and_forgotten() -> None:
    for check_in in (BOOT << 32, idle().check_in + 1):
        s, _ = play(idle(), ask(idle(), version=BASE + 7, check_in=check_in))
        assert (s.phase, s.evaluated_version) == (Phase.IDLE, -1)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (GateClosed("battery_low"), "battery_low"),
        (Woke(DEADLINE), "deadline_passed"),
        (TrainingFailed(3, "no_examples"), "no_examples"),
    ],
)
def test_an_evaluation_that_cannot_be_done_ends_with_a_reason(event: object, reason: str) -> None:
    s, effects = play(idle(), ask(idle()), BaseHeld(BASE), event)
    assert s.phase is Phase.DISCARDED
    assert sent(effects[-6:])[-1] == Failed(3, reason)
    assert StopWork(reason) in effects


def test_with_a_closed_gate_an_evaluation_is_declined() -> None:
    s, effects = play(idle(), GateClosed("battery_low"), ask(idle()))
    assert s.phase is Phase.DECLINED
    assert sent(effects)[-1] == Declined(s.check_in, 3, "battery_low")


def test_a_device_that_works_is_not_disturbed_by_an_order_to_evaluate() -> None:
    for phase in (*WORKING, *SEALED):
        with pytest.raises(IllegalStepError):
            session.advance(at(phase), ask(at(phase), version=BASE + 1), 0.0)


# -- the story of one update ---------------------------------------------------------------------


def test_the_story_of_one_update() -> None:
    s, effects = play(fresh(), GATE)
    assert effects == []
    s, effects = play(s, LinkUp(1_000))
    (available,) = sent(effects)
    assert isinstance(available, Available)
    assert available.check_in == (BOOT << 32) + 1 == s.check_in
    assert (available.held_version, available.battery_fraction) == (4, 0.8)
    assert (available.charging, available.metered) == (False, True)
    assert available.window_s == LEASE_S

    s, effects = play(s, invite(s))
    assert s.phase is Phase.INVITED
    assert effects[0] == CancelWake(CHECK_IN)
    assert effects[1] == WakeAt(DEADLINE, 160.0)
    assert effects[-1] == LocateBase(BASE, DIGEST)

    s, effects = play(s, BaseMissing(BASE))
    assert s.phase is Phase.FETCHING
    assert effects[0] == Fetch(BASE, DIGEST)

    s, effects = play(s, BaseReady(BASE))
    assert s.phase is Phase.TRAINING
    assert s.held_version == BASE
    own = update_id("fed", 1, "d1")
    assert effects[-1] == Train(1, BASE, Plan(), "ecq_sr", own, 700)

    s, effects = play(s, Trained(sealed_for(1)))
    assert s.phase is Phase.UPLOADING
    assert effects[0] == Persist(sealed_for(1))
    (offer,) = sent(effects)
    assert isinstance(offer, UpdateOffer)
    assert offer.chunks_follow
    assert offer.chunk_bytes == 700
    assert SendChunks(own, b"", 700) in effects

    s, effects = play(s, Receipt(own))
    assert s.receipted
    assert s.sealed is not None
    assert WakeAt(OFFER_AGAIN, 100.0 + ANSWER_S_MAX) in effects

    s, effects = play(s, Settled(own, counted=True, reason="counted"))
    assert s.phase is Phase.SETTLED
    assert s.sealed is None
    assert effects[0] == Persist(ForgetUpdate(own, 1, counted=True, reason="counted"))
    assert effects[-1] == WakeAt(CHECK_IN, 100.0)

    s, effects = play(s, Woke(CHECK_IN))
    assert s.phase is Phase.IDLE
    (again,) = sent(effects)
    assert isinstance(again, Available)
    assert again.check_in == available.check_in + 1


def test_a_base_that_is_held_is_not_fetched() -> None:
    s = at(Phase.INVITED)
    s, effects = play(s, BaseHeld(BASE))
    assert s.phase is Phase.TRAINING
    assert not any(isinstance(effect, Fetch) for effect in effects)


def test_a_device_without_a_name_says_nothing_until_it_is_enrolled() -> None:
    s, effects = play(at(Phase.UNENROLLED), GATE, LinkUp(1_000), Woke(CHECK_IN))
    assert effects == []
    s, _ = play(s, LinkDown(), EnrolmentDone("d1", "fed"))
    assert (s.phase, s.device, s.federation) == (Phase.IDLE, "d1", "fed")
    _, effects = play(s, LinkUp(1_000))
    assert isinstance(sent(effects)[0], Available)


# -- persist before publish ----------------------------------------------------------------------


def test_a_sealed_update_is_on_disk_before_anybody_hears_of_it() -> None:
    _, effects = play(at(Phase.TRAINING), Trained(sealed_for(1)))
    persisted = effects.index(Persist(sealed_for(1)))
    revealing = [
        k for k, effect in enumerate(effects) if isinstance(effect, Publish | SendChunks | Report)
    ]
    assert all(persisted < k for k in revealing)


def test_a_settlement_is_on_disk_before_the_next_check_in_can_leave() -> None:
    settled = Settled(sealed_for(1).update_id, counted=False, reason="round_closed")
    s, effects = play(at(Phase.UPLOADING), settled)
    assert isinstance(effects[0], Persist)
    assert sent(effects) == []
    assert s.phase is Phase.SETTLED


def test_a_restart_after_any_effect_of_sealing_offers_the_same_update_or_trains_anew() -> None:
    """The journal is what was persisted: before it there is no update, after it there is one."""
    _, effects = play(at(Phase.TRAINING), Trained(sealed_for(1)))
    for crash in range(len(effects) + 1):
        kept = [e.record for e in effects[:crash] if isinstance(e, Persist)]
        sealed = next((record for record in kept if isinstance(record, SealedUpdate)), None)
        again = session.start(
            schema_digest=DIGEST,
            boot=BOOT + 1,
            federation="fed",
            device="d1",
            last_round=1 if sealed else 0,
            sealed=sealed,
        )
        again, more = play(again, GATE, LinkUp(1_000))
        (message,) = sent(more)
        if sealed is None:
            assert isinstance(message, Available)
        else:
            assert isinstance(message, UpdateOffer)
            assert message.update_id == sealed.update_id
            assert not message.chunks_follow
            assert not any(isinstance(effect, SendChunks) for effect in more)


# -- invitations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check_in", "round_number"),
    [
        (BOOT << 32, 1),  # a check-in that was never sent
        ((BOOT << 32) + 2, 1),  # one that is yet to be
        (((BOOT - 1) << 32) + 1, 1),  # another boot's
        (((BOOT + 1) << 32) + 1, 1),
        ((BOOT << 32) + 1, 0),  # a round that this device has sealed
    ],
)
def test_a_replayed_or_old_invitation_starts_nothing(check_in: int, round_number: int) -> None:
    s = idle()
    after, effects = play(s, invite(s, check_in=check_in, round_number=round_number))
    assert after == s
    assert [type(effect) for effect in effects] == [Report]


def test_an_invitation_kept_by_the_broker_before_any_check_in_starts_nothing() -> None:
    s = fresh()
    for check_in in (BOOT << 32, (BOOT << 32) + 1):
        after, _ = play(s, GATE, invite(s, check_in=check_in))
        assert after.phase is Phase.IDLE
        assert after.invitation is None


def test_the_invitation_of_a_sealed_round_replayed_after_a_restart_starts_nothing() -> None:
    s = session.start(
        schema_digest=DIGEST, boot=BOOT + 1, federation="fed", device="d1", last_round=7
    )
    s, _ = play(s, GATE, LinkUp(1_000))
    for number in (1, 6, 7):
        after, _ = play(s, invite(s, round_number=number))
        assert after.phase is Phase.IDLE
    assert play(s, invite(s, round_number=8))[0].phase is Phase.INVITED


def test_an_invitation_that_comes_twice_is_an_illegal_step_the_second_time() -> None:
    s = idle()
    twice = invite(s)
    s, _ = play(s, twice)
    for road in ((), (BaseHeld(BASE),), (BaseHeld(BASE), Trained(sealed_for(1)))):
        working, _ = play(s, *road)
        with pytest.raises(IllegalStepError):
            session.advance(working, twice, 100.0)


def test_an_invitation_to_an_earlier_check_in_of_this_boot_counts() -> None:
    """A coordinator may answer the check-in before the one that is under way."""
    s = idle()
    first = s.check_in
    s, _ = play(s, Woke(CHECK_IN))
    assert play(s, invite(s, check_in=first))[0].phase is Phase.INVITED


def test_what_is_turned_down_is_declined_with_its_reason_and_leads_on_in_time() -> None:
    s = idle()
    s, effects = play(s, TurnDown(s.check_in, 7, "bytes_too_few"))
    (declined,) = sent(effects)
    assert declined == Declined(check_in=s.check_in, round=7, reason="bytes_too_few")
    assert WakeAt(CHECK_IN, 100.0 + session.TURN_DOWN_PAUSE_S) in effects
    s, effects = play(s, GATE)
    assert (s.phase, effects) == (Phase.DECLINED, [])
    s, _ = play(s, Woke(CHECK_IN))
    assert s.phase is Phase.IDLE


def test_an_invitation_at_a_closed_gate_is_declined_with_the_reason() -> None:
    s, _ = play(idle(), GateClosed("battery_low"))
    s, effects = play(s, invite(s))
    assert s.phase is Phase.DECLINED
    (declined,) = sent(effects)
    assert isinstance(declined, Declined)
    assert (declined.round, declined.reason) == (1, "battery_low")


def test_come_back_is_believed_for_a_check_in_of_this_boot_only() -> None:
    s = idle()
    _, effects = play(s, ComeBackAt(s.check_in, 50.0))
    assert effects == [WakeAt(CHECK_IN, 150.0), Report("come_back", "not_needed")]
    for other in (1, BOOT << 32, s.check_in + 1, ((BOOT - 1) << 32) + 1):
        assert play(s, ComeBackAt(other, 50.0)) == (s, [])


def test_a_coordinator_that_knows_only_an_earlier_boot_can_say_now_and_nothing_else() -> None:
    s = idle()
    earlier = ((BOOT - 1) << 32) + 7
    _, effects = play(s, ComeBackAt(earlier, 0.0, "coordinator_is_back"))
    assert effects == [WakeAt(CHECK_IN, 100.0), Report("come_back", "coordinator_is_back")]
    assert play(s, ComeBackAt(earlier, 0.001)) == (s, [])
    assert play(s, ComeBackAt(s.check_in + 1, 0.0)) == (s, [])


# -- offering again ------------------------------------------------------------------------------


def test_offering_again_asks_instead_of_sending_all_again() -> None:
    s = at(Phase.UPLOADING)
    for event in (Woke(OFFER_AGAIN), LinkUp(500), Woke(OFFER_AGAIN)):
        s, effects = play(s, event)
        (offer,) = sent(effects)
        assert isinstance(offer, UpdateOffer)
        assert not offer.chunks_follow
        assert not any(isinstance(effect, SendChunks) for effect in effects)


def test_only_what_is_missing_is_sent_again() -> None:
    s = at(Phase.UPLOADING)
    own = sealed_for(1).update_id
    after, effects = play(s, UploadStatus(own, b"\x05"))
    assert effects[0] == SendChunks(own, b"\x05", 700)
    assert after == s
    assert play(s, UploadStatus(b"another's update", b"")) == (s, [])


def test_patience_doubles_up_to_a_bound_and_starts_anew_with_a_new_link() -> None:
    s = at(Phase.UPLOADING)
    waits = []
    for _ in range(12):
        s, effects = play(s, Woke(OFFER_AGAIN))
        waits += [e.at_s - 100.0 for e in effects if isinstance(e, WakeAt)]
    assert all(after == min(2 * before, ANSWER_S_MAX) for before, after in pairwise(waits))
    assert waits[-1] == ANSWER_S_MAX
    _, effects = play(s, LinkUp(1_000))
    assert [e.at_s - 100.0 for e in effects if isinstance(e, WakeAt)] == waits[:1]


def test_a_coordinator_without_room_is_asked_again_less_and_less_often() -> None:
    s = at(Phase.UPLOADING)
    sealed, waited = s.sealed, []
    for _ in range(4):
        s, effects = play(s, Woke("offer_again"))
        waited += [e.at_s - 100.0 for e in effects if isinstance(e, WakeAt)]
        s, effects = play(s, Refused(UpdateOffer.KIND, "disk_full", "try again later"))
        assert (s.phase, s.sealed) == (Phase.UPLOADING, sealed)
        assert not sent(effects), "a refusal is not answered at once"
        assert not [e for e in effects if isinstance(e, CancelWake | Persist)]
    assert waited == sorted(waited)
    assert waited[-1] >= 2 * waited[0]


def test_a_coordinator_that_is_back_is_asked_at_once_for_what_is_sealed() -> None:
    s = at(Phase.UPLOADING)
    now = WakeAt(OFFER_AGAIN, 100.0)
    for check_in in (s.check_in, 1):
        _, effects = play(s, ComeBackAt(check_in, 0.0, "coordinator_is_back"))
        assert effects == [now, Report("come_back", "coordinator_is_back")]
    assert play(s, ComeBackAt(s.check_in, 1.0)) == (s, [])
    assert play(s, ComeBackAt(s.check_in + 1, 0.0)) == (s, [])


def test_a_chunk_fits_both_ends_of_the_way() -> None:
    for link_bytes, expected in ((300, 300), (100_000, 700)):
        _, effects = play(at(Phase.SEALED), LinkUp(link_bytes))
        (offer,) = sent(effects)
        assert isinstance(offer, UpdateOffer)
        assert offer.chunk_bytes == expected


def test_a_settlement_or_receipt_of_another_update_changes_nothing() -> None:
    s = at(Phase.UPLOADING)
    other = b"another's update"
    assert play(s, Receipt(other)) == (s, [])
    assert play(s, Settled(other, counted=True, reason="counted")) == (s, [])
    offline = at(Phase.SEALED)
    assert play(offline, Settled(other, counted=True, reason="counted")) == (offline, [])


def test_a_settlement_that_comes_twice_is_an_illegal_step_the_second_time() -> None:
    settled = Settled(sealed_for(1).update_id, counted=True, reason="counted")
    s, _ = play(at(Phase.UPLOADING), settled)
    with pytest.raises(IllegalStepError):
        session.advance(s, settled, 100.0)


# -- gate, deadline, link ------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase in WORKING])
@pytest.mark.parametrize(
    ("event", "reason"),
    [(GateClosed("battery_low"), "battery_low"), (Woke(DEADLINE), "deadline_passed")],
)
def test_work_that_is_not_sealed_stops_with_a_reason(
    phase: Phase, event: object, reason: str
) -> None:
    s, effects = play(at(phase), event)
    assert s.phase is Phase.DISCARDED
    assert s.invitation is None
    assert effects[0] == StopWork(reason)
    number = 3 if phase is Phase.EVALUATING else 1
    assert sent(effects) == [Failed(round=number, reason=reason)]
    assert WakeAt(CHECK_IN, 100.0) in effects


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase in SEALED])
def test_a_closing_gate_and_a_late_deadline_do_not_stop_a_sealed_update(phase: Phase) -> None:
    s, effects = play(at(phase), GateClosed("battery_low"), Woke(DEADLINE))
    assert effects == []
    assert (s.phase, s.sealed) == (phase, sealed_for(1))


def test_an_upload_goes_on_over_a_closed_gate() -> None:
    s, _ = play(at(Phase.SEALED), GateClosed("battery_low"))
    s, effects = play(s, LinkUp(1_000))
    assert isinstance(sent(effects)[0], UpdateOffer)


def test_a_gate_that_closes_withdraws_the_check_in() -> None:
    s = idle()
    s, effects = play(s, GateClosed("metered"))
    assert effects == [
        CancelWake(CHECK_IN),
        Publish(Declined(check_in=s.check_in, round=0, reason="metered")),
    ]
    assert play(s, GateClosed("metered"))[1] == []
    _, effects = play(s, GATE)
    assert isinstance(sent(effects)[0], Available)


def test_a_failure_of_the_device_itself_is_told_and_followed_by_a_pause() -> None:
    s, effects = play(at(Phase.TRAINING), TrainingFailed(1, "trainer_failed", "boom"))
    assert s.phase is Phase.DISCARDED
    (failed,) = sent(effects)
    assert isinstance(failed, Failed)
    assert failed.reason == "trainer_failed"
    assert WakeAt(CHECK_IN, 130.0) in effects
    s, effects = play(at(Phase.FETCHING), BaseFailed(BASE, "digest_mismatch"))
    assert s.phase is Phase.DISCARDED
    assert sent(effects) == [Failed(round=1, reason="digest_mismatch")]


def test_training_goes_on_while_the_link_is_down_and_is_offered_when_it_returns() -> None:
    s, effects = play(at(Phase.TRAINING), LinkDown(), Trained(sealed_for(1)))
    assert s.phase is Phase.SEALED
    assert sent(effects) == []
    _, effects = play(s, LinkUp(1_000))
    (offer,) = sent(effects)
    assert isinstance(offer, UpdateOffer)
    assert offer.chunks_follow


def test_a_link_that_flaps_sends_the_chunks_once_and_asks_each_time() -> None:
    s, effects = play(at(Phase.TRAINING), Trained(sealed_for(1)))
    for _ in range(20):
        s, more = play(s, LinkDown(), LinkUp(1_000))
        assert s.phase is Phase.UPLOADING
        effects += more
    offers = [message for message in sent(effects) if isinstance(message, UpdateOffer)]
    assert [offer.chunks_follow for offer in offers] == [True] + [False] * 20
    assert sum(isinstance(effect, SendChunks) for effect in effects) == 1


def test_a_link_that_flaps_while_fetching_asks_for_the_same_model_again() -> None:
    s, effects = play(at(Phase.FETCHING), LinkDown(), Woke(FETCH_AGAIN))
    assert effects == []
    s, effects = play(s, LinkUp(1_000))
    assert effects == [Fetch(BASE, DIGEST), WakeAt(FETCH_AGAIN, 105.0)]
    assert s.phase is Phase.FETCHING


def test_results_of_work_that_was_given_up_change_nothing() -> None:
    s = at(Phase.DISCARDED)
    for late in (Trained(sealed_for(1)), TrainingFailed(1, "late"), BaseFailed(BASE, "late")):
        assert play(s, late) == (s, [])
    busy = at(Phase.TRAINING)
    assert play(busy, Trained(sealed_for(9))) == (busy, [])
    assert play(busy, TrainingFailed(9, "late")) == (busy, [])


# -- release, revocation -------------------------------------------------------------------------


def test_a_release_is_adopted_once_and_in_any_phase_of_work() -> None:
    for phase in (Phase.IDLE, Phase.TRAINING, Phase.UPLOADING, Phase.SETTLED):
        s = at(phase)
        after, effects = play(s, Release(9, DIGEST))
        assert after == s
        assert effects == [Adopt(9, DIGEST, "stable")]
        after, _ = play(s, Adopted(9))
        assert after.released_version == 9
        assert play(after, Release(9, DIGEST))[1] == []


@pytest.mark.parametrize("reason", ["metered", "byte_budget_spent"])
def test_a_release_waits_while_bytes_are_short(reason: str) -> None:
    closed, _ = play(at(Phase.IDLE), GateClosed(reason))
    after, effects = play(closed, Release(9, DIGEST))
    assert after == closed
    assert effects == [Report("release_waits", reason)]
    _, effects = play(after, GATE)
    (available,) = sent(effects)
    assert isinstance(available, Available)
    assert available.released_version != 9


def test_a_release_does_not_wait_for_a_charger() -> None:
    closed, _ = play(at(Phase.IDLE), GateClosed("battery_low"))
    assert play(closed, Release(9, DIGEST))[1] == [Adopt(9, DIGEST, "stable")]


def test_a_veto_is_on_disk_before_it_is_said_and_is_said_again_when_it_is_asked_for() -> None:
    for phase in Phase:
        s = at(phase)
        if phase in (Phase.UNENROLLED, Phase.REVOKED):
            continue
        after, effects = play(s, VETO)
        record = VetoedRelease(9, DIGEST, 0, VETO.reason, VETO.detail, VETO.metrics)
        said = Publish(ReleaseVeto(9, VETO.reason, VETO.detail, VETO.metrics))
        assert effects[:-1] == ([Persist(record), said] if s.link else [Persist(record)])
        assert (after.phase, after.released_version) == (s.phase, s.released_version)
        assert play(after, Release(9, DIGEST))[1] == ([said] if s.link else [])


def test_a_veto_survives_a_reboot_and_stands_for_that_version_and_those_bytes_alone() -> None:
    record = VetoedRelease(9, DIGEST, 4, "check_failed")
    s = session.start(
        schema_digest=DIGEST, boot=4, federation="fed", device="d1", released_version=4, veto=record
    )
    s, _ = play(s, GATE, LinkUp(1_000))
    assert sent(play(s, Release(9, DIGEST))[1]) == [ReleaseVeto(9, "check_failed")]
    for other in (Release(10, DIGEST), Release(9, bytes(31) + b"1")):
        assert play(s, other)[1] == [Adopt(other.version, other.model_digest, "stable")]
    assert play(s, Release(4, DIGEST))[1] == []


def test_a_check_in_promises_no_more_than_the_owner_lets_it() -> None:
    gate = GateOpened(7_200.0, check_in_s=3_600.0)
    _, effects = play(fresh(), gate, LinkUp(1_000))
    (available,) = sent(effects)
    assert isinstance(available, Available)
    assert available.window_s == 3_600.0
    assert WakeAt(CHECK_IN, 100.0 + 0.8 * 3_600.0) in effects


def windows(s: Session, count: int) -> tuple[Session, list[float]]:
    """What the next check-ins promise, each at the time that the one before has set."""
    promised = []
    for _ in range(count):
        s, effects = play(s, Woke(CHECK_IN))
        (available,) = sent(effects)
        assert isinstance(available, Available)
        promised.append(available.window_s)
    return s, promised


def test_each_check_in_in_vain_promises_twice_as_long_up_to_a_bound() -> None:
    s, _ = play(fresh(), GateOpened(7_200.0), LinkUp(1_000))
    s, promised = windows(s, 4)
    assert promised == [2 * LEASE_S, 4 * LEASE_S, 4 * LEASE_S, 4 * LEASE_S]
    s, _ = play(s, GateOpened(300.0))
    assert windows(s, 1)[1] == [300.0], "never longer than the gate stays open"


@pytest.mark.parametrize(
    "news",
    [
        (LinkDown(), LinkUp(1_000)),
        (GateClosed("not_charging"), GateOpened(7_200.0)),
    ],
)
def test_a_device_that_comes_again_promises_as_at_first(news: tuple[object, ...]) -> None:
    s, _ = play(fresh(), GateOpened(7_200.0), LinkUp(1_000))
    s, _ = windows(s, 3)
    s, effects = play(s, *news)
    available = sent(effects)[-1]
    assert isinstance(available, Available)
    assert available.window_s == LEASE_S


def test_after_work_a_device_promises_as_at_first() -> None:
    s, _ = play(fresh(), GateOpened(7_200.0), LinkUp(1_000))
    s, _ = windows(s, 3)
    s, _ = play(s, invite(s), BaseHeld(BASE), TrainingFailed(invite(s).round, "trainer_failed"))
    assert windows(s, 1)[1] == [LEASE_S]


def test_a_revoked_device_stops_stores_it_and_never_speaks_again() -> None:
    for phase in (Phase.IDLE, Phase.TRAINING, Phase.UPLOADING):
        s, effects = play(at(phase), Revoked("owner_left"))
        assert effects[:2] == [StopWork("revoked"), Persist(Revoked("owner_left"))]
        assert {e.timer for e in effects if isinstance(e, CancelWake)} == set(TIMERS)
        assert (s.invitation, s.sealed) == (None, None)
        woken = [Woke(timer) for timer in TIMERS]
        assert play(s, LinkDown(), LinkUp(1_000), GATE, *woken)[1] == []
    again = session.start(
        schema_digest=DIGEST, boot=9, device="d1", sealed=sealed_for(1), revoked=True
    )
    assert play(again, GATE, LinkUp(1_000))[1] == []


def test_our_own_contradictions_are_local_errors() -> None:
    s = idle()
    for phase, event in (
        (Phase.TRAINING, Trained(sealed_for(1))),
        (Phase.FETCHING, BaseReady(BASE)),
        (Phase.UPLOADING, Woke(OFFER_AGAIN)),
    ):
        with pytest.raises(LocalProtocolError):
            session.advance(replace(s, phase=phase), event, 0.0)


# -- random lives --------------------------------------------------------------------------------


@dataclass
class Life:
    """A device's session with its timers and its journal, checked after every step."""

    s: Session = field(default_factory=fresh)
    now_s: float = 0.0
    timers: dict[str, float] = field(default_factory=dict)
    journal: SealedUpdate | None = None
    whole_sends: dict[bytes, int] = field(default_factory=dict)
    settled: list[bytes] = field(default_factory=list)

    def step(self, event: object) -> None:
        if isinstance(event, Woke):
            if event.timer not in self.timers:
                return
            self.now_s = max(self.now_s, self.timers.pop(event.timer))
        before = self.s
        try:
            self.s, effects = session.advance(before, event, self.now_s)
        except IllegalStepError:
            assert type(event) not in TABLE[before.phase]
            return
        for effect in effects:
            self.execute(effect)
        self.check(before, event, effects)

    def execute(self, effect: Effect) -> None:
        if isinstance(effect, WakeAt):
            assert effect.at_s >= self.now_s
            self.timers[effect.timer] = effect.at_s
        elif isinstance(effect, CancelWake):
            self.timers.pop(effect.timer, None)
        elif isinstance(effect, Persist) and isinstance(effect.record, SealedUpdate):
            assert self.journal is None
            self.journal = effect.record
        elif isinstance(effect, Persist) and isinstance(effect.record, ForgetUpdate):
            assert self.journal is not None
            assert self.journal.update_id == effect.record.update_id
            self.settled.append(effect.record.update_id)
            self.journal = None
        elif isinstance(effect, Publish) and isinstance(effect.message, UpdateOffer):
            # Whoever hears of an update can rely on its being on disk.
            assert self.journal is not None
            assert effect.message.update_id == self.journal.update_id
            count = self.whole_sends.get(effect.message.update_id, 0)
            self.whole_sends[effect.message.update_id] = count + effect.message.chunks_follow

    def check(self, before: Session, event: object, effects: Sequence[Effect]) -> None:
        s = self.s
        assert self.journal == s.sealed
        assert (s.sealed is not None) == (s.phase in SEALED)
        assert (s.invitation is not None) == (s.phase in WORKING)
        if before.sealed is not None and s.sealed != before.sealed:
            assert isinstance(event, Settled)
            assert event.update_id == before.sealed.update_id
        assert s.last_round >= before.last_round
        assert s.check_in >= before.check_in
        assert all(count <= 1 for count in self.whole_sends.values())
        assert len(set(self.settled)) == len(self.settled)
        if not s.link:
            said = [type(message) for message in sent(effects)]
            assert set(said) <= {Failed, Declined}
            assert not any(isinstance(effect, Fetch | SendChunks) for effect in effects)
        for message in sent(effects):
            decoder = msgspec.msgpack.Decoder(type(message))
            assert decoder.decode(msgspec.msgpack.encode(message)) == message
        self.check_that_it_goes_on()

    def check_that_it_goes_on(self) -> None:
        """Whatever happened, something is due that takes the device out of where it stands."""
        s = self.s
        if s.phase in WORKING:
            assert DEADLINE in self.timers
        if s.phase is Phase.FETCHING and s.link:
            assert FETCH_AGAIN in self.timers
        if s.phase is Phase.UPLOADING:
            assert s.link
            assert OFFER_AGAIN in self.timers
        if s.phase is Phase.SEALED:
            assert not s.link
        if s.phase in BETWEEN or (s.phase is Phase.IDLE and s.link and s.gate is not None):
            assert CHECK_IN in self.timers

    def reboot(self) -> None:
        """What is not in the journal is lost; so are the timers."""
        self.s = session.start(
            schema_digest=DIGEST,
            boot=self.s.boot + 1,
            federation="fed",
            device="d1",
            last_round=self.s.last_round,
            sealed=self.journal,
        )
        self.timers = {}


REBOOT = object
CHOICES = st.tuples(
    st.sampled_from([kind for kind in EVENTS if kind is not Revoked] + [REBOOT]),
    st.integers(0, 4),
)


@settings(max_examples=30)
@given(st.lists(CHOICES, min_size=10, max_size=40), st.integers(0, 2**16))
def test_any_life_keeps_its_sealed_update_until_it_is_settled(
    choices: list[tuple[type, int]], seed: int
) -> None:
    life = Life()
    life.step(GATE)
    life.step(LinkUp(1_000))
    chance = random.Random(seed)
    for kind, which in choices:
        if kind is REBOOT:
            life.reboot()
            continue
        events = candidates(life.s)[kind]
        life.step(events[which % len(events)])
        # Then something that may well happen here, or lives would hardly ever seal.
        likely = chance.choice(list(TABLE[life.s.phase]))
        if likely is not Revoked:
            life.step(candidates(life.s)[likely][0])


@settings(max_examples=30)
@given(st.lists(st.sampled_from([LinkUp(1_000), LinkDown(), Woke(OFFER_AGAIN)]), max_size=40))
def test_any_flapping_of_the_link_ends_in_one_settlement(events: list[object]) -> None:
    life = Life()
    life.step(GATE)
    life.step(LinkUp(1_000))
    life.step(invite(life.s))
    for event in (BaseHeld(BASE), Trained(sealed_for(1)), *events, LinkUp(1_000)):
        life.step(event)
    life.step(Settled(sealed_for(1).update_id, counted=True, reason="counted"))
    assert life.settled == [sealed_for(1).update_id]
    assert life.whole_sends == {sealed_for(1).update_id: 1}
