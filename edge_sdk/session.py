"""One device's session: what it is doing, what it may do next, and what it asks of its driver.

The problem. A device sleeps, roams, reboots and runs out of battery at any moment, the broker
forgets, the coordinator restarts. Yet an update that was sealed is delivered and counted at most
once, and nothing is trained that nobody will take.

The rules:

1. One piece of work at a time: `IDLE -> INVITED -> FETCHING -> TRAINING -> SEALED -> UPLOADING ->
   SETTLED`. Work that ends early ends in `DECLINED` or `DISCARDED`, always with a reason that the
   coordinator is told, if it can be. The three endings wait for the next check-in.
2. Before `SEALED` nothing is durable: a reboot loses the work, and the round does not depend on
   it. From `SEALED` on the update is only sent again, never computed again. It is forgotten when
   it is settled, and for no other reason.
3. The link is a second machine, `DOWN | UP`. Training goes on while it is down; an upload falls
   back to `SEALED` and is offered again when it returns. Only the unconnected form is stored.
4. The gate (battery, heat, network, the owner's budgets) is a third: closing it stops work that is
   not sealed. A sealed update is small and paid for; it is delivered all the same, unless it is the
   day's bytes that are spent: then the link is down until the next day. A release waits too.
5. An invitation counts only if it answers a check-in of this boot, for a round later than any that
   this device has sealed: an old one that a broker kept cannot start work.
6. Asked to evaluate, a device goes the same way to the base, measures it, reports and is `IDLE`
   again. Nothing of that is durable, and what is interrupted is not done again.
7. A release that the device's own check is against never reaches the app. The verdict is durable
   before it is sent, and stands for that version alone (`edge_sdk.releasing`).

What not to do: no arrays here (ids, digests and sizes only), no clock (`now_s` comes in), no
trust in a PUBACK. A message that the table does not expect is an `IllegalStepError`; the driver
counts it and goes on, since brokers deliver late and twice.
"""

from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from edge_sdk.releasing import adopted, released, vetoed
from edge_sdk.signals import (
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
from wire import CancelWake, Effect, Persist, Publish, Report, Rule, Table, WakeAt, Woke, limits
from wire import advance as advance_table
from wire.errors import LocalProtocolError
from wire.identity import update_id as update_id_of
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
    Revoked,
    Settled,
    UpdateOffer,
    UploadStatus,
)

CHECK_IN: Final = "check_in"
DEADLINE: Final = "deadline"
FETCH_AGAIN: Final = "fetch_again"
OFFER_AGAIN: Final = "offer_again"

# A lease is refreshed before it ends, so that a device does not fall out of the pool for a moment.
LEASE_REFRESH: Final = 0.8
# Each check-in that no work follows promises to be there for twice as long, so often: what is lost
# is still said again soon, and a device that nobody needs hardly speaks (docs/adr/0034).
PATIENCE_DOUBLES_MAX: Final = 2
# However short a window conditions promise.
CHECK_IN_S_MIN: Final = 10.0
# Waiting for an answer to a transfer: a floor, plus what the bytes take on a slow cellular link.
ANSWER_S_MIN: Final = 5.0
ANSWER_S_MAX: Final = 300.0
SLOW_LINK_BYTES_PER_S: Final = 20_000.0
# After a failure of its own a device does not come back at once.
FAILURE_PAUSE_S: Final = 30.0
# What is left of a day's budget does not grow; there may be smaller work later.
TURN_DOWN_PAUSE_S: Final = 1_800.0


class Phase(Enum):
    """Where the device's work stands."""

    UNENROLLED = "unenrolled"
    IDLE = "idle"
    INVITED = "invited"
    FETCHING = "fetching"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SEALED = "sealed"
    UPLOADING = "uploading"
    SETTLED = "settled"
    DECLINED = "declined"
    DISCARDED = "discarded"
    REVOKED = "revoked"


# Nothing that would be lost with the process, and nothing sealed.
BETWEEN_WORK: Final = frozenset({Phase.IDLE, Phase.SETTLED, Phase.DECLINED, Phase.DISCARDED})

# -- the record ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """All that a device's session remembers; frozen, a step returns the next one.

    `held_version` is the newest model whose tensors are stored, `released_version` what the app
    sees, -1 for none; `veto` is the last release that it is not to see. `boot` grows with every
    start of the driver. `in_vain` counts check-ins since the device came or had work.
    `evaluated_version` is the newest that this boot has taken to evaluate. `description_digest` is
    empty where the task has a model of its own.
    """

    phase: Phase
    schema_digest: bytes
    boot: int
    description_digest: bytes = b""
    federation: str = ""
    device: str = ""
    device_class: str = "unknown"
    codecs: tuple[str, ...] = ()
    held_version: int = 0
    released_version: int = 0
    last_round: int = 0
    link: bool = False
    chunk_bytes: int = 0
    gate: GateOpened | None = None
    gate_reason: str = "starting"
    check_ins: int = 0
    in_vain: int = 0
    invitation: Invite | EvaluateInvite | None = None
    sealed: SealedUpdate | None = None
    offers: int = 0
    receipted: bool = False
    evaluated_version: int = -1
    veto: VetoedRelease | None = None

    @property
    def check_in(self) -> int:
        """The number of the latest check-in: grows within a boot and over boots."""
        return (self.boot << 32) | self.check_ins


Step = tuple[Session, tuple[Effect, ...]]


def start(
    *,
    schema_digest: bytes,
    boot: int,
    description_digest: bytes = b"",
    federation: str = "",
    device: str = "",
    device_class: str = "unknown",
    codecs: tuple[str, ...] = (),
    held_version: int = 0,
    released_version: int = 0,
    last_round: int = 0,
    sealed: SealedUpdate | None = None,
    revoked: bool = False,
    veto: VetoedRelease | None = None,
) -> Session:
    """The session of a device that has just started, from what its journal holds."""
    phase = Phase.IDLE if device else Phase.UNENROLLED
    if sealed is not None:
        phase = Phase.SEALED
    if revoked:
        phase = Phase.REVOKED
    return Session(
        phase=phase,
        schema_digest=schema_digest,
        boot=boot,
        description_digest=description_digest,
        federation=federation,
        device=device,
        device_class=device_class,
        codecs=codecs,
        held_version=held_version,
        released_version=released_version,
        last_round=last_round,
        sealed=sealed,
        veto=veto,
        # What was sealed before this boot may have been offered already: ask before sending again.
        offers=0 if sealed is None else 1,
    )


def advance(session: Session, event: object, now_s: float) -> Step:
    """Take one step; see `wire.machine.advance` for what is raised."""
    return advance_table(TABLE, session, event, now_s)


# -- pieces that actions share -------------------------------------------------------------------


def _check_in(s: Session, now_s: float) -> Step:
    """Speak, if link and gate allow it; the answer is an invitation or a time to come back."""
    s, gate = replace(s, phase=Phase.IDLE, invitation=None), s.gate
    if not s.link or gate is None:
        return s, ()
    patience_s = gate.check_in_s * 2.0 ** min(s.in_vain, PATIENCE_DOUBLES_MAX)
    window_s = min(gate.window_s, patience_s, limits.LEASE_S_MAX)
    s = replace(s, check_ins=s.check_ins + 1, in_vain=s.in_vain + 1)
    available = Available(
        check_in=s.check_in,
        window_s=window_s,
        held_version=s.held_version,
        released_version=s.released_version,
        schema_digest=s.schema_digest,
        device_class=s.device_class,
        battery_fraction=gate.battery_fraction,
        charging=gate.charging,
        metered=gate.metered,
        codecs=s.codecs,
        stays_s=min(gate.window_s, limits.LEASE_S_MAX),
        description_digest=s.description_digest,
    )
    refresh_s = max(LEASE_REFRESH * window_s, CHECK_IN_S_MIN)
    return s, (Publish(available), WakeAt(CHECK_IN, now_s + refresh_s))


def _answer_s(s: Session, bytes_under_way: int) -> float:
    """How long to wait for an answer before asking again: doubles with every try."""
    patience_s = min(ANSWER_S_MIN * 2.0 ** min(max(s.offers - 1, 0), 10), ANSWER_S_MAX)
    return float(patience_s + bytes_under_way / SLOW_LINK_BYTES_PER_S)


def _chunk_bytes(s: Session, sealed: SealedUpdate) -> int:
    """What both ends of the way let through."""
    return min(s.chunk_bytes, sealed.chunk_bytes_max)


def _offer(s: Session, now_s: float) -> Step:
    """Offer the sealed update; the first time with all its chunks, later asking what is missing."""
    sealed = s.sealed
    if sealed is None:
        raise LocalProtocolError("there is no sealed update to offer")
    offer = UpdateOffer(
        update_id=sealed.update_id,
        round=sealed.round,
        base_version=sealed.base_version,
        payload_bytes=sealed.payload_bytes,
        payload_digest=sealed.payload_digest,
        chunk_bytes=_chunk_bytes(s, sealed),
        num_examples=sealed.num_examples,
        chunks_follow=s.offers == 0,
        metrics=sealed.metrics,
    )
    # A question is small, and may be lost with a broker that comes back before its subscribers.
    under_way = sealed.payload_bytes if offer.chunks_follow else 0
    again = WakeAt(OFFER_AGAIN, now_s + _answer_s(s, under_way))
    effects: tuple[Effect, ...] = (Publish(offer), again)
    if s.offers == 0:
        effects = (Publish(offer), SendChunks(sealed.update_id, b"", offer.chunk_bytes), again)
    return replace(s, phase=Phase.UPLOADING, offers=s.offers + 1), effects


def _end_work(s: Session, phase: Phase, now_s: float, pause_s: float) -> Step:
    """End a piece of work that was not sealed; look for more after a pause."""
    after = replace(s, phase=phase, invitation=None)
    return after, (
        CancelWake(DEADLINE),
        CancelWake(FETCH_AGAIN),
        WakeAt(CHECK_IN, now_s + pause_s),
    )


# -- actions: link and gate ----------------------------------------------------------------------


def _stay(s: Session, _event: object, _now_s: float) -> Step:
    return s, ()


def _link_up_note(s: Session, event: LinkUp, _now_s: float) -> Step:
    return replace(s, link=True, chunk_bytes=event.chunk_bytes), ()


def _link_up_speak(s: Session, event: LinkUp, now_s: float) -> Step:
    s = replace(s, link=True, chunk_bytes=event.chunk_bytes, in_vain=0)
    return _check_in(s, now_s)


def _link_up_fetch(s: Session, event: LinkUp, now_s: float) -> Step:
    return _fetch_again(replace(s, link=True, chunk_bytes=event.chunk_bytes), event, now_s)


def _link_up_offer(s: Session, event: LinkUp, now_s: float) -> Step:
    # A new link starts the waiting anew, but asks what is missing instead of sending all again.
    return _offer(
        replace(s, link=True, chunk_bytes=event.chunk_bytes, offers=min(s.offers, 1)), now_s
    )


def _link_down(s: Session, _event: LinkDown, _now_s: float) -> Step:
    return replace(s, link=False), ()


def _link_down_uploading(s: Session, _event: LinkDown, _now_s: float) -> Step:
    return replace(s, link=False, phase=Phase.SEALED), (CancelWake(OFFER_AGAIN),)


def _gate_open_note(s: Session, event: GateOpened, _now_s: float) -> Step:
    return replace(s, gate=event), ()


def _gate_open_speak(s: Session, event: GateOpened, now_s: float) -> Step:
    was_open = s.gate is not None
    s = replace(s, gate=event)
    return (s, ()) if was_open else _check_in(replace(s, in_vain=0), now_s)


def _gate_close_note(s: Session, event: GateClosed, _now_s: float) -> Step:
    return replace(s, gate=None, gate_reason=event.reason), ()


def _gate_close_idle(s: Session, event: GateClosed, _now_s: float) -> Step:
    was_open = s.gate is not None
    s = replace(s, gate=None, gate_reason=event.reason)
    if not was_open or not s.link or s.check_ins == 0:
        return s, ()
    withdrawn = Declined(check_in=s.check_in, round=0, reason=event.reason)
    return s, (CancelWake(CHECK_IN), Publish(withdrawn))


def _gate_close_working(s: Session, event: GateClosed, now_s: float) -> Step:
    s = replace(s, gate=None, gate_reason=event.reason)
    return _give_up(s, event.reason, "", now_s, pause_s=0.0)


# -- actions: check-in and invitation ------------------------------------------------------------


def _woke_check_in(s: Session, event: Woke, now_s: float) -> Step:
    if event.timer != CHECK_IN:
        return s, ()
    return _check_in(s, now_s)


def _come_back(s: Session, event: ComeBackAt, now_s: float) -> Step:
    # A coordinator that restarted may know an earlier check-in of this boot, and no later one. It
    # may know none of this boot at all, when both came up at once: then it can only say "now".
    # An old word that a broker kept can make a device speak, but never keep it silent.
    if event.check_in > s.check_in or (event.check_in <= s.boot << 32 and event.after_s > 0.0):
        return s, ()
    return s, (WakeAt(CHECK_IN, now_s + event.after_s), Report("come_back", event.reason))


def _come_back_uploading(s: Session, event: ComeBackAt, now_s: float) -> Step:
    """The coordinator has restarted: what it knows of the sealed update may be asked at once."""
    if event.check_in > s.check_in or event.after_s > 0.0:
        return s, ()
    return s, (WakeAt(OFFER_AGAIN, now_s), Report("come_back", event.reason))


def _invited(s: Session, event: Invite, now_s: float) -> Step:
    if event.round <= s.last_round:
        return s, (Report("invite_ignored", f"round {event.round} is not newer than the last"),)
    said = Report("invited", f"round {event.round} on version {event.base_version}")
    return _asked(s, event, now_s, said, LocateBase(event.base_version, event.base_digest))


def _asked_to_evaluate(s: Session, event: EvaluateInvite, now_s: float) -> Step:
    if event.version <= s.evaluated_version:
        return s, (Report("invite_ignored", f"version {event.version} was evaluated already"),)
    said = Report("asked_to_evaluate", f"version {event.version}")
    after, effects = _asked(s, event, now_s, said, LocateBase(event.version, event.model_digest))
    if after.invitation is not None:
        after = replace(after, evaluated_version=event.version)
    return after, effects


def _asked(
    s: Session, event: Invite | EvaluateInvite, now_s: float, said: Report, locate: LocateBase
) -> Step:
    """Take work, if it is meant for now and the gate is open."""
    if not s.boot << 32 < event.check_in <= s.check_in:
        return s, (
            Report("invite_ignored", f"round {event.round} answers another boot's check-in"),
        )
    if s.gate is None:
        return _decline(s, event.round, s.gate_reason, now_s + FAILURE_PAUSE_S)
    return replace(s, phase=Phase.INVITED, invitation=event, in_vain=0), (
        CancelWake(CHECK_IN),
        WakeAt(DEADLINE, now_s + event.deadline_s),
        said,
        locate,
    )


def _turned_down(s: Session, event: TurnDown, now_s: float) -> Step:
    """Leave work to others for which the day's budgets do not do."""
    if not s.boot << 32 < event.check_in <= s.check_in:
        return s, (
            Report("invite_ignored", f"round {event.round} answers another boot's check-in"),
        )
    return _decline(s, event.round, event.reason, now_s + TURN_DOWN_PAUSE_S)


def _decline(s: Session, round_number: int, reason: str, again_at_s: float) -> Step:
    refusal = Declined(check_in=s.check_in, round=round_number, reason=reason)
    return replace(s, phase=Phase.DECLINED), (
        Publish(refusal),
        Report("declined", reason),
        WakeAt(CHECK_IN, again_at_s),
    )


def _invitation(s: Session) -> Invite | EvaluateInvite:
    if s.invitation is None:
        raise LocalProtocolError(f"{s.phase.name} without an invitation")
    return s.invitation


def _wanted(s: Session) -> tuple[int, bytes]:
    """The model that the work is about: version and digest."""
    invite = _invitation(s)
    if isinstance(invite, Invite):
        return invite.base_version, invite.base_digest
    return invite.version, invite.model_digest


def _begin(s: Session) -> Step:
    """The model is here: do what was asked for."""
    invite = _invitation(s)
    if not isinstance(invite, Invite):
        return replace(s, phase=Phase.EVALUATING), (
            CancelWake(FETCH_AGAIN),
            Evaluate(invite.round, invite.version, invite.plan),
        )
    update_id = update_id_of(s.federation, invite.round, s.device)
    return replace(s, phase=Phase.TRAINING), (
        CancelWake(FETCH_AGAIN),
        Train(
            invite.round,
            invite.base_version,
            invite.plan,
            invite.codec,
            update_id,
            invite.chunk_bytes_max,
        ),
    )


def _base_held(s: Session, _event: BaseHeld, _now_s: float) -> Step:
    return _begin(s)


def _base_missing(s: Session, event: object, now_s: float) -> Step:
    return _fetch_again(replace(s, phase=Phase.FETCHING), event, now_s)


def _fetch_again(s: Session, _event: object, now_s: float) -> Step:
    version, digest = _wanted(s)
    if not s.link:
        return s, ()
    return s, (
        Fetch(version, digest),
        WakeAt(FETCH_AGAIN, now_s + ANSWER_S_MIN),
    )


def _base_ready(s: Session, event: BaseReady, _now_s: float) -> Step:
    if event.version != _wanted(s)[0]:
        return replace(s, held_version=max(s.held_version, event.version)), ()
    return _begin(replace(s, held_version=event.version))


def _base_ready_note(s: Session, event: BaseReady, _now_s: float) -> Step:
    return replace(s, held_version=max(s.held_version, event.version)), ()


def _base_failed(s: Session, event: BaseFailed, now_s: float) -> Step:
    if event.version != _wanted(s)[0]:
        return s, ()
    return _give_up(s, event.reason, "", now_s, pause_s=FAILURE_PAUSE_S)


def _woke_before_training(s: Session, event: Woke, now_s: float) -> Step:
    if event.timer == DEADLINE:
        return _too_late(s, now_s)
    if event.timer == FETCH_AGAIN and s.phase is Phase.FETCHING:
        return _fetch_again(s, event, now_s)
    return s, ()


def _woke_training(s: Session, event: Woke, now_s: float) -> Step:
    return _too_late(s, now_s) if event.timer == DEADLINE else (s, ())


def _too_late(s: Session, now_s: float) -> Step:
    return _give_up(s, "deadline_passed", "", now_s, pause_s=0.0)


def _give_up(s: Session, reason: str, detail: str, now_s: float, *, pause_s: float) -> Step:
    invite = _invitation(s)
    after, effects = _end_work(s, Phase.DISCARDED, now_s, pause_s)
    return after, (
        StopWork(reason),
        Publish(Failed(round=invite.round, reason=reason, detail=detail)),
        Report("discarded", reason),
        *effects,
    )


# -- actions: training and sealing ---------------------------------------------------------------


def _trained(s: Session, event: Trained, now_s: float) -> Step:
    invite = _invitation(s)
    sealed = event.sealed
    if sealed.round != invite.round:
        return s, ()
    s = replace(
        s,
        phase=Phase.SEALED,
        sealed=sealed,
        last_round=sealed.round,
        invitation=None,
        offers=0,
        receipted=False,
    )
    effects: tuple[Effect, ...] = (Persist(sealed), CancelWake(DEADLINE), Report("sealed"))
    if not s.link:
        return s, effects
    s, more = _offer(s, now_s)
    return s, (*effects, *more)


def _evaluated(s: Session, event: Evaluated, now_s: float) -> Step:
    invite = _invitation(s)
    if (event.round, event.version) != (invite.round, _wanted(s)[0]):
        return s, ()
    report = EvaluationReport(
        round=event.round,
        version=event.version,
        loss=event.loss,
        num_examples=event.num_examples,
        metrics=event.metrics,
    )
    after, effects = _end_work(s, Phase.IDLE, now_s, pause_s=0.0)
    # Without a link it is lost, and does not matter: others are asked, too.
    return after, (Publish(report), Report("evaluated", f"version {event.version}"), *effects)


def _training_failed(s: Session, event: TrainingFailed, now_s: float) -> Step:
    if event.round != _invitation(s).round:
        return s, ()
    after, effects = _give_up(s, event.reason, event.detail, now_s, pause_s=FAILURE_PAUSE_S)
    said = Report("training_failed", f"{event.reason}: {event.detail}".rstrip(": "))
    return after, (said, *effects)


# -- actions: delivery ---------------------------------------------------------------------------


def _is_ours(s: Session, update_id: bytes) -> bool:
    return s.sealed is not None and s.sealed.update_id == update_id


def _upload_status(s: Session, event: UploadStatus, now_s: float) -> Step:
    if not _is_ours(s, event.update_id) or s.sealed is None:
        return s, ()
    wait_s = _answer_s(s, s.sealed.payload_bytes)
    return s, (
        SendChunks(event.update_id, event.received, _chunk_bytes(s, s.sealed)),
        WakeAt(OFFER_AGAIN, now_s + wait_s),
    )


def _receipt(s: Session, event: Receipt, now_s: float) -> Step:
    if not _is_ours(s, event.update_id):
        return s, ()
    # The decision comes when the round closes; ask again if it does not come at all.
    return replace(s, receipted=True), (
        WakeAt(OFFER_AGAIN, now_s + ANSWER_S_MAX),
        Report("receipted"),
    )


def _settled(s: Session, event: Settled, now_s: float) -> Step:
    if not _is_ours(s, event.update_id) or s.sealed is None:
        return s, ()
    forget = ForgetUpdate(event.update_id, s.sealed.round, event.counted, event.reason)
    after = replace(s, phase=Phase.SETTLED, sealed=None, offers=0, receipted=False)
    return after, (
        Persist(forget),
        CancelWake(OFFER_AGAIN),
        Report("settled", event.reason),
        WakeAt(CHECK_IN, now_s),
    )


def _woke_uploading(s: Session, event: Woke, now_s: float) -> Step:
    return _offer(s, now_s) if event.timer == OFFER_AGAIN else (s, ())


# -- actions: refusal, the end; releases are in `edge_sdk.releasing` ------------------------------


def _enrolled(s: Session, event: EnrolmentDone, _now_s: float) -> Step:
    return replace(s, phase=Phase.IDLE, device=event.device, federation=event.federation), ()


def _refused(s: Session, event: Refused, _now_s: float) -> Step:
    return s, (Report("refused", f"{event.reason}: {event.detail}"),)


def _revoked(s: Session, event: Revoked, _now_s: float) -> Step:
    after = replace(s, phase=Phase.REVOKED, invitation=None, sealed=None)
    return after, (
        StopWork("revoked"),
        Persist(event),
        CancelWake(CHECK_IN),
        CancelWake(DEADLINE),
        CancelWake(FETCH_AGAIN),
        CancelWake(OFFER_AGAIN),
        Report("revoked", event.reason),
    )


# -- the table -----------------------------------------------------------------------------------

_P = Phase
_RESTING = (_P.IDLE,)
_OVER = (_P.DISCARDED,)


def _rows(
    phase: Phase, rows: dict[type, Rule[Session]], *, enrolled: bool = True
) -> dict[type, Rule[Session]]:
    """What every phase answers alike, under what this one answers in its own way."""
    here = (phase,)
    common: dict[type, Rule[Session]] = {
        LinkUp: Rule(_link_up_note, here),
        LinkDown: Rule(_link_down, here),
        GateOpened: Rule(_gate_open_note, here),
        GateClosed: Rule(_gate_close_note, here),
        Woke: Rule(_stay, here),
        Trained: Rule(_stay, here),
        Evaluated: Rule(_stay, here),
        TrainingFailed: Rule(_stay, here),
        BaseReady: Rule(_base_ready_note, here),
        BaseFailed: Rule(_stay, here),
    }
    if enrolled:
        common |= {
            Release: Rule(released, here),
            Adopted: Rule(adopted, here),
            Vetoed: Rule(vetoed, here),
            Refused: Rule(_refused, here),
            Revoked: Rule(_revoked, (_P.REVOKED,)),
        }
    return common | rows


def _between_work(phase: Phase) -> dict[type, Rule[Session]]:
    """What the phases do in which there is no work, and a check-in may be due."""
    stay_or_rest = tuple(dict.fromkeys((phase, _P.IDLE)))
    return {
        Woke: Rule(_woke_check_in, stay_or_rest),
        LinkUp: Rule(_link_up_speak, _RESTING),
        GateOpened: Rule(_gate_open_speak, stay_or_rest),
    }


_WORKING: dict[type, Rule[Session]] = {
    GateClosed: Rule(_gate_close_working, _OVER),
}

TABLE: Final[Table[Session]] = MappingProxyType(
    {
        _P.UNENROLLED: _rows(
            _P.UNENROLLED, {EnrolmentDone: Rule(_enrolled, _RESTING)}, enrolled=False
        ),
        _P.IDLE: _rows(
            _P.IDLE,
            _between_work(_P.IDLE)
            | {
                GateClosed: Rule(_gate_close_idle, _RESTING),
                ComeBackAt: Rule(_come_back, _RESTING),
                Invite: Rule(_invited, (_P.INVITED, _P.DECLINED, _P.IDLE)),
                EvaluateInvite: Rule(_asked_to_evaluate, (_P.INVITED, _P.DECLINED, _P.IDLE)),
                TurnDown: Rule(_turned_down, (_P.DECLINED, _P.IDLE)),
            },
        ),
        _P.INVITED: _rows(
            _P.INVITED,
            _WORKING
            | {
                BaseHeld: Rule(_base_held, (_P.TRAINING, _P.EVALUATING)),
                BaseMissing: Rule(_base_missing, (_P.FETCHING,)),
                Woke: Rule(_woke_before_training, (_P.INVITED, _P.DISCARDED)),
            },
        ),
        _P.FETCHING: _rows(
            _P.FETCHING,
            _WORKING
            | {
                LinkUp: Rule(_link_up_fetch, (_P.FETCHING,)),
                BaseReady: Rule(_base_ready, (_P.TRAINING, _P.EVALUATING, _P.FETCHING)),
                BaseFailed: Rule(_base_failed, (_P.DISCARDED, _P.FETCHING)),
                Woke: Rule(_woke_before_training, (_P.FETCHING, _P.DISCARDED)),
            },
        ),
        _P.TRAINING: _rows(
            _P.TRAINING,
            _WORKING
            | {
                Trained: Rule(_trained, (_P.SEALED, _P.UPLOADING, _P.TRAINING)),
                TrainingFailed: Rule(_training_failed, (_P.DISCARDED, _P.TRAINING)),
                Woke: Rule(_woke_training, (_P.TRAINING, _P.DISCARDED)),
            },
        ),
        _P.EVALUATING: _rows(
            _P.EVALUATING,
            _WORKING
            | {
                Evaluated: Rule(_evaluated, (_P.IDLE, _P.EVALUATING)),
                TrainingFailed: Rule(_training_failed, (_P.DISCARDED, _P.EVALUATING)),
                Woke: Rule(_woke_training, (_P.EVALUATING, _P.DISCARDED)),
            },
        ),
        _P.SEALED: _rows(
            _P.SEALED,
            {
                LinkUp: Rule(_link_up_offer, (_P.UPLOADING,)),
                Settled: Rule(_settled, (_P.SETTLED, _P.SEALED)),
            },
        ),
        _P.UPLOADING: _rows(
            _P.UPLOADING,
            {
                LinkUp: Rule(_link_up_offer, (_P.UPLOADING,)),
                LinkDown: Rule(_link_down_uploading, (_P.SEALED,)),
                UploadStatus: Rule(_upload_status, (_P.UPLOADING,)),
                Receipt: Rule(_receipt, (_P.UPLOADING,)),
                Settled: Rule(_settled, (_P.SETTLED, _P.UPLOADING)),
                ComeBackAt: Rule(_come_back_uploading, (_P.UPLOADING,)),
                Woke: Rule(_woke_uploading, (_P.UPLOADING,)),
            },
        ),
        _P.SETTLED: _rows(_P.SETTLED, _between_work(_P.SETTLED)),
        _P.DECLINED: _rows(_P.DECLINED, _between_work(_P.DECLINED)),
        _P.DISCARDED: _rows(_P.DISCARDED, _between_work(_P.DISCARDED)),
        _P.REVOKED: _rows(_P.REVOKED, {}, enrolled=False),
    }
)
