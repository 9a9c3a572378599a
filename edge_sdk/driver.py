"""A device without its threads: frames, timers and conditions in, effects executed in order.

Whoever runs it (the SDK's own thread, a fleet's loop over thousands) calls `on_frame`,
`on_link_up`, `on_link_down`, `on_gate` and `wake` from one thread, and passes the time. Work is
handed to `start_work` and comes back through `work_done`. Everything else happens here: what is
published is signed, what is persisted is on disk before the next effect runs, and whatever the
network sends is handled or counted and never raises.
"""

import dataclasses
import functools
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import quantization
from edge_sdk import session as machine
from edge_sdk.adoption import RELEASE_CHECK, Adoption
from edge_sdk.download import Download, Downloads, digest_of
from edge_sdk.journal import Enrolment, Journal
from edge_sdk.ladder import Means, uplink
from edge_sdk.models import ModelShelf
from edge_sdk.outbox import Outbox
from edge_sdk.parts import PartStore
from edge_sdk.reasons import Reason
from edge_sdk.release_check import CheckWork, ReleaseCheck
from edge_sdk.signals import (
    Adopt,
    Adopted,
    BaseFailed,
    BaseHeld,
    BaseMissing,
    BaseReady,
    Evaluate,
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
from edge_sdk.trainer import Model, Trainer, read_only
from edge_sdk.weighing import trains_head_alone, weigh
from edge_sdk.work import (
    RESIDUAL_ROUNDS_MAX,
    EvaluationWork,
    StartWork,
    TrainingWork,
    Work,
    WorkDone,
)
from wire import (
    CancelWake,
    Crypto,
    Effect,
    IllegalStepError,
    LocalProtocolError,
    Manifest,
    Persist,
    Publish,
    RemoteProtocolError,
    Report,
    Signer,
    Tensors,
    WakeAt,
    Woke,
    chunk_bytes_for,
    frames,
    topics,
)
from wire.messages import (
    Available,
    Chunk,
    Declined,
    EvaluateInvite,
    Failed,
    FetchRequest,
    Gone,
    Invite,
    Leave,
    Message,
    ModelOffer,
    Receipt,
    Refused,
    Release,
    ReleaseVeto,
    Revoked,
    UpdateOffer,
)
from wire.topics import Address

# Of a coordinator's frames: an older one refuses a `ReleaseVeto`, a kind that it does not know.
_HEARS_VETOES_SINCE_MINOR: Final = 1
# Of MQTT 5 around topic and payload, both ways: header, lengths, packet id, and the PUBACK.
_PACKET_BYTES: Final = 16
# Nobody answers these. The owner's `leave` is said whatever it costs.
_LAST_WORDS: Final = (Declined, Failed)
# How a check-in is answered whose description is not the coordinator's.
_OUTDATED: Final = (Available.KIND, "description_outdated")


def _all(most: int) -> int:
    return most


class DeviceDriver:
    """One enrolled device.

    Args:
        manifest: what `task.model()` returned.
        make_trainer: called once, when the first training starts: it may load data.
        journal: what survives a crash.
        shelf: where models are kept.
        enrolment: who the device is.
        signer: its key.
        crypto: the signature scheme.
        publish: sends (topic, payload) at QoS 1.
        start_work: runs work somewhere and calls `work_done` on the driver's own thread.
        observe: told every `Report`.
        device_class: a class of `device_profiles`, or "unknown".
        means: what is left of the day's budgets, from any thread.
        parts: where downloads are put together; None is memory, and a reboot loses them.
        room: how many more chunks the link can use now, if so many may be under way; where nobody
            says, everything is sent at once.
        may_send: whether the day's bytes do for a packet of so many bytes; what it refuses is not
            sent, as if the link were down.
        check_release: the app's own check of a release, None to use whatever is released.
        check_at_once: whether it may run while the gate is closed.
        description_digest: of the description that the manifest is from; empty when it is the
            task's own.

    Attributes:
        outdated: whether the coordinator has said that it has another description by now.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        make_trainer: Callable[[], Trainer],
        journal: Journal,
        shelf: ModelShelf,
        enrolment: Enrolment,
        signer: Signer,
        crypto: Crypto,
        publish: Callable[[str, bytes], None],
        start_work: StartWork,
        observe: Callable[[Report], None],
        device_class: str = "unknown",
        means: Callable[[], Means] = Means,
        parts: PartStore | None = None,
        room: Callable[[int], int] = _all,
        may_send: Callable[[int, bool], bool] = lambda _bytes, _last_word: True,
        check_release: ReleaseCheck | None = None,
        check_at_once: bool = False,
        description_digest: bytes = b"",
    ) -> None:
        self.manifest = manifest
        self.schema = manifest.schema.shared
        self.timers: dict[str, float] = {}
        self.incidents: Counter[str] = Counter()
        self.make_trainer = functools.cache(make_trainer)
        self._journal = journal
        self._shelf = shelf
        self._coordinator_key = enrolment.coordinator_key
        self._signer = signer
        self._crypto = crypto
        self._publish_bytes = publish
        self._observe = observe
        self._means = means
        self._room = room
        self._outbox = Outbox()
        self._may_send = may_send
        # Before there was one: a byte a value, as quantized models have it.
        self._fetch_bytes = self.schema.parameters
        self._up = Address(enrolment.federation, enrolment.device, "up")
        self._down = Address(enrolment.federation, enrolment.device, "down")
        self._first = {spec.name: manifest.tensors[spec.name] for spec in self.schema.tensors}
        self._work: Work | None = None
        self._trained: TrainingWork | None = None
        self._downloads = Downloads(self.schema, parts, self._note)
        self._adoption = Adoption(
            check=check_release,
            at_once=check_at_once,
            make_trainer=self.make_trainer,
            start_work=start_work,
            timers=self.timers,
        )
        self._coordinator_minor = 0
        self._events: deque[object] = deque()
        self._logged: set[str] = set()
        self.outdated = False
        self.session = self._boot(device_class, description_digest)

    def _boot(self, device_class: str, description_digest: bytes) -> machine.Session:
        """The session as the journal has it; models that are damaged count as not there."""
        kept = self._journal.begin_boot()
        released = kept.released_version if self._load(kept.released_version) else 0
        self.released = self._model(released)
        return machine.start(
            schema_digest=bytes.fromhex(self.manifest.schema.digest),
            boot=kept.boot,
            description_digest=description_digest,
            federation=self._up.scope,
            device=self._up.device,
            device_class=device_class,
            codecs=quantization.CODEC_NAMES,
            held_version=kept.held_version if self._load(kept.held_version) else 0,
            released_version=released,
            last_round=kept.last_round,
            sealed=kept.sealed,
            revoked=kept.revoked,
            veto=kept.veto,
        )

    # -- what whoever runs it calls ----------------------------------------------------------

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic that the device listens to."""
        return (self._down.topic,)

    @property
    def next_wake_s(self) -> float | None:
        """When `wake` is due, unix seconds."""
        return min(self.timers.values(), default=None)

    @property
    def revoked(self) -> bool:
        """Whether the device is out of the federation."""
        return self.session.phase is machine.Phase.REVOKED

    @property
    def resting(self) -> bool:
        """Whether nothing is under way that would be lost, or sealed."""
        return self.session.phase in machine.BETWEEN_WORK

    def will(self) -> tuple[str, bytes]:
        """The last will for a connection that is about to be made."""
        message = Gone(check_in=self.session.check_in)
        return self._up.topic, frames.seal(message, self._up, self._signer)

    def on_link_up(self, packet_bytes_max: int, now_s: float) -> None:
        """The broker is there, and takes packets of this size."""
        self._step(LinkUp(chunk_bytes_for(packet_bytes_max)), now_s)

    def on_link_down(self, now_s: float) -> None:
        """The broker is gone."""
        self._outbox.link_lost()
        self._step(LinkDown(), now_s)

    def on_gate(self, gate: GateOpened | GateClosed, now_s: float) -> None:
        """Conditions are judged anew."""
        self._step(gate, now_s)

    def wake(self, now_s: float) -> None:
        """Run every timer that is due."""
        for timer in sorted(name for name, at_s in self.timers.items() if at_s <= now_s):
            if self.timers.get(timer, now_s + 1.0) <= now_s:
                del self.timers[timer]
                if timer == RELEASE_CHECK:
                    self._decide(self._adoption.woke(), now_s)
                else:
                    self._step(Woke(timer), now_s)

    @property
    def is_uploading(self) -> bool:
        """Whether an update is on its way up."""
        return self.session.phase is machine.Phase.UPLOADING

    @property
    def has_more_to_send(self) -> bool:
        """Whether `send_more` is to be called when the broker has taken something."""
        return self._outbox.waits

    def send_more(self, now_s: float) -> None:
        """Publish chunks of the sealed update while the link can use them."""
        outbox = self._outbox
        moved = False
        while outbox.waits and self._room(outbox.under_way_max) > 0:
            start = outbox.take() * outbox.chunk_bytes
            data = self._journal.sealed_slice(outbox.update_id, start, outbox.chunk_bytes)
            if not data:
                raise LocalProtocolError("the journal has lost a sealed update")
            if not self._send(Chunk(outbox.update_id, start // outbox.chunk_bytes, data)):
                outbox.link_lost()
                break
            moved = True
        if moved:
            self._be_patient(machine.OFFER_AGAIN, outbox.under_way_bytes_max, now_s)

    def work_done(self, work: Work, event: WorkDone, now_s: float) -> None:
        """Work that `start_work` was given is over; what was stopped meanwhile is ignored."""
        if isinstance(work, CheckWork):
            self._decide(self._adoption.check_done(work, event, now_s), now_s)
            return
        if work is not self._work:
            return
        self._work = None
        self._trained = work if isinstance(work, TrainingWork) else None
        if isinstance(work, TrainingWork) and isinstance(event, Trained) and work.rung:
            self._observe(Report("fell_back", work.rung.name.lower()))
        self._step(event, now_s)
        self._trained = None

    def trainer_hung(self, round_number: int) -> None:
        """Tell the coordinator of work that was given up and goes on all the same."""
        self._send(Failed(round=round_number, reason="trainer_hung"))

    def leave(self) -> None:
        """Tell the coordinator that the owner takes the device out."""
        self._send(Leave())

    def on_frame(self, topic: str, data: bytes, now_s: float) -> None:
        """Take a publication from the broker, whatever it is."""
        try:
            address = topics.parse(topic)
            if address != self._down:
                raise RemoteProtocolError(f"topic {topic[:64]!r} is not this device's")  # noqa: TRY301 - one place counts
            message = frames.open_frame(data, address, self._coordinator_key, self._crypto)
            self._coordinator_minor = data[frames.MINOR_OFFSET]
            self.outdated |= self._is_outdated(message)
            self._on_message(message, now_s)
        except RemoteProtocolError as error:
            self._count_incident(error)

    def _is_outdated(self, message: Message) -> bool:
        says_so = isinstance(message, Refused) and (message.kind, message.reason) == _OUTDATED
        return says_so and bool(self.session.description_digest)

    def _on_message(self, message: Message, now_s: float) -> None:
        match message:
            case ModelOffer() | Chunk():
                self._on_download(message, now_s)
            case Refused() if message.kind == FetchRequest.KIND:
                for version in self._downloads:
                    self._fail_download(version, message.reason, now_s)
            case Release():
                if self._adoption.wanted_version not in (None, message.version):
                    self._adoption.drop()  # taken back or overtaken before the app saw it
                self._step(message, now_s)
            case Receipt():
                self._outbox.done(message.update_id)
                self._step(message, now_s)
            case _:
                self._step(self._weighed(message), now_s)

    def _on_download(self, message: ModelOffer | Chunk, now_s: float) -> None:
        if isinstance(message, Chunk):
            self._be_patient(machine.FETCH_AGAIN, len(message.data), now_s)
        elif message.version in self._downloads:
            self._fetch_bytes = message.payload_bytes
            self._be_patient(machine.FETCH_AGAIN, message.chunk_bytes, now_s)
        for download, failure in self._downloads.take(message):
            if failure:
                self._fail_download(download.version, failure, now_s)
            else:
                self._finish_download(download, now_s)

    def _weighed(self, message: Message) -> Message | TurnDown:
        """An invitation turned down for which what is left of the day's budgets does not do."""
        if not isinstance(message, Invite | EvaluateInvite):
            return message
        means, fetched = self._means(), self._fetch_bytes
        return weigh(message, self.session, means, self.manifest, fetched)

    def _be_patient(self, timer: str, bytes_before_next: int, now_s: float) -> None:
        """A transfer is on its way: it is asked for again only when nothing moves any more."""
        again_at_s = self.timers.get(timer)
        if again_at_s is not None:
            patience_s = machine.ANSWER_S_MIN + bytes_before_next / machine.SLOW_LINK_BYTES_PER_S
            self.timers[timer] = max(again_at_s, now_s + patience_s)

    # -- steps and effects -------------------------------------------------------------------

    def _step(self, event: object, now_s: float) -> None:
        """Give the session an event, execute its effects, go on while they raise new events."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # a step is under way; it takes this one when its effects are done
        while self._events:
            try:
                self.session, effects = machine.advance(self.session, self._events[0], now_s)
            except IllegalStepError:
                # Brokers deliver late and twice: what no longer fits is counted, not feared.
                self.incidents["unexpected"] += 1
                effects = ()
            for effect in effects:
                self._execute(effect, now_s)
            self.send_more(now_s)
            self._events.popleft()
        lost = self._adoption.next_check(
            gate_is_open=self.session.gate is not None,
            is_working=self._work is not None,
            models=self._candidate,
            now_s=now_s,
        )
        if lost is not None:
            self._fetch(lost.version, lost.digest, now_s)

    def _execute(self, effect: Effect, now_s: float) -> None:
        match effect:
            case Publish(message):
                if isinstance(message, UpdateOffer):
                    self._outbox.offered()
                self._send(message)
            case Persist(record):
                self._persist(record)
            case WakeAt(timer, at_s):
                self.timers[timer] = at_s
            case CancelWake(timer):
                self.timers.pop(timer, None)
            case Report():
                self._observe(effect)
            case _:
                self._execute_own(effect, now_s)

    def _execute_own(self, effect: Effect, now_s: float) -> None:
        """The effects that only a device knows."""
        match effect:
            case LocateBase():
                self._locate(effect, now_s)
            case Fetch():
                self._fetch(effect.version, effect.digest, now_s)
            case Train():
                self._train(effect, now_s)
            case Evaluate():
                self._evaluate(effect, now_s)
            case StopWork():
                self._stop_work()
            case SendChunks():
                self._begin_upload(effect)
            case Adopt():
                self._adopt(effect, now_s)
            case _:
                raise LocalProtocolError(f"no driver for {type(effect).__name__}")

    def _persist(self, record: object) -> None:
        match record:
            case SealedUpdate():
                if self._trained is None:
                    raise LocalProtocolError("an update was sealed that nobody trained")
                self._journal.seal(record, self._trained.payload)
                self._shelf.save_personal({**self._shelf.personal(), **self._trained.new_personal})
                # A crash before this line costs accuracy and nothing else: what this update left
                # out is lost, and what went into it from the one before goes out once more.
                self._shelf.save_residual(self._trained.new_residual)
            case ForgetUpdate():
                self._outbox.done(record.update_id)
                self._journal.forget(record)
            case VetoedRelease():
                self._journal.veto(record)
                self._retain()
            case Revoked():
                self._outbox.link_lost()
                self._journal.revoke(record.reason)
                self._adoption.drop()
            case _:
                raise LocalProtocolError(f"no place for {type(record).__name__}")

    def _send(self, message: Message) -> bool:
        """Sign and send, if the owner's bytes do; machines send again what is dropped here."""
        if isinstance(message, ReleaseVeto) and self._coordinator_minor < _HEARS_VETOES_SINCE_MINOR:
            return False
        frame, topic = frames.seal(message, self._up, self._signer), self._up.topic
        size = len(frame) + len(topic) + _PACKET_BYTES
        if isinstance(message, FetchRequest):
            size += self._fetch_bytes
        last_word = isinstance(message, _LAST_WORDS)
        if not (isinstance(message, Leave) or self._may_send(size, last_word)):
            return False
        self._publish_bytes(topic, frame)
        return True

    def _begin_upload(self, effect: SendChunks) -> None:
        sealed = self.session.sealed
        if sealed is None or sealed.update_id != effect.update_id:
            raise LocalProtocolError("chunks of an update that is not the sealed one")
        self._outbox.begin(effect, sealed.payload_bytes)

    # -- models ------------------------------------------------------------------------------

    def _load(self, version: int) -> Tensors | None:
        # Version 0 is the task's own, unless the coordinator's turned out to be another.
        kept = self._shelf.load(version)
        return self._first if kept is None and version == 0 else kept

    def _model(self, version: int) -> Model:
        """A version with all its tensors, the personal ones as trained here."""
        shared = self._load(version) or self._first
        tensors = self.manifest.complete(shared, self._shelf.personal())
        path = self._shelf.path(version)
        return Model(version, read_only(tensors), path, self.manifest.artefact)

    def _candidate(self, version: int) -> tuple[Model, Model] | None:
        """A version and the one that the app uses, None when the first is damaged."""
        here = self._load(version) is not None
        return (self._model(version), self.released) if here else None

    def _holds(self, version: int, digest: bytes) -> bool:
        tensors = self._load(version)
        return tensors is not None and digest_of(self.schema, tensors) == digest

    def _locate(self, effect: LocateBase, now_s: float) -> None:
        held = self._holds(effect.version, effect.digest)
        self._step(BaseHeld(effect.version) if held else BaseMissing(effect.version), now_s)

    def _fetch(self, version: int, digest: bytes, now_s: float) -> None:
        download = self._downloads.want(version, digest, lambda: self._delta_base(version))
        if download.complete:  # the process ended between the last chunk and the model
            self._finish_download(download, now_s)
            return
        self._send(download.request(self.session.chunk_bytes))

    def _delta_base(self, version: int) -> int:
        """Deltas lead forward only; a device that is asked back takes the whole model."""
        have = self.session.held_version
        return have if have < version and self._load(have) is not None else -1

    def _finish_download(self, download: Download, now_s: float) -> None:
        try:
            tensors = download.tensors(self._load(download.have_version) or {})
        except OSError as error:
            self._note(Report("disk_failed", f"version {download.version}: {error}"))
            download.discard()
            self._fail_download(download.version, Reason.DISK_FAILED, now_s)
            return
        except RemoteProtocolError as error:
            self._count_incident(error)
            download.discard()
            if download.have_version < 0 or self.session.gate is None:
                self._fail_download(download.version, error.reason, now_s)
                return
            # What is held may be what is wrong: once more, from nothing.
            again = self._downloads.from_nothing(download.version, download.digest)
            self._send(again.request(self.session.chunk_bytes))
            return
        self._shelf.save(download.version, tensors)
        self._downloads.done(download)
        held = max(self.session.held_version, download.version)
        self._journal.note_held(held)
        self._retain(held, download.version)
        self._step(BaseReady(download.version), now_s)
        wanted = self._adoption.wanted
        if wanted is not None and wanted.version == download.version:
            self._adopt(wanted, now_s)

    def _fail_download(self, version: int, reason: str, now_s: float) -> None:
        self._downloads.drop(version)
        if self._adoption.wanted_version == version:
            self._adoption.drop()
        self._step(BaseFailed(version, reason), now_s)

    def _adopt(self, effect: Adopt, now_s: float) -> None:
        is_here = self._holds(effect.version, effect.digest)
        if self._adoption.want(effect, is_here=is_here):
            self._use(effect, now_s)
        elif is_here:
            self._step(Woke(RELEASE_CHECK), now_s)  # checked at the end of a step
        else:
            self._fetch(effect.version, effect.digest, now_s)

    def _use(self, effect: Adopt, now_s: float) -> None:
        if self._load(effect.version) is None:
            self._adopt(effect, now_s)  # its file was damaged while it was checked
            return
        self._journal.note_released(effect.version)
        self.released = self._model(effect.version)
        self._retain()
        self._step(Adopted(effect.version), now_s)

    def _decide(self, verdict: Adopt | Vetoed | None, now_s: float) -> None:
        """A check is over, one way or another; then come those that waited behind it."""
        if isinstance(verdict, Adopt):
            self._use(verdict, now_s)
        else:
            self._step(verdict or Woke(RELEASE_CHECK), now_s)
        self._adoption.start_what_waits()

    def _retain(self, *versions: int) -> None:
        """Drop files of models that are neither these, nor held, used or on their way."""
        wanted = self._adoption.wanted_version
        kept = {*versions, self.session.held_version, self.released.version}
        self._shelf.retain(kept if wanted is None else kept | {wanted})

    def personalise(self, tensors: Tensors) -> None:
        """Keep a personal part that was trained beside the rounds; the app sees it at once."""
        personal = {**self._shelf.personal(), **tensors}
        self._shelf.save_personal(personal)
        # Not from its file, which may be damaged by now: the app has what was in it.
        seen = read_only({**self.released.tensors, **personal})
        self.released = dataclasses.replace(self.released, tensors=seen)

    # -- work --------------------------------------------------------------------------------

    def _train(self, effect: Train, now_s: float) -> None:
        base = self._load(effect.base_version)
        if base is None:
            self._step(TrainingFailed(effect.round, "base_lost"), now_s)
            return
        # Left out of an update that is long past, it is about a model that is gone.
        since = effect.round - self.session.last_round
        fresh = self.session.last_round == 0 or since <= RESIDUAL_ROUNDS_MAX
        keeps = fresh and quantization.keeps_residual(effect.codec)
        self._work = TrainingWork(
            order=effect,
            manifest=self.manifest,
            base=base,
            personal=self._shelf.personal(),
            residual=self._shelf.residual() if keeps else {},
            comes_often=fresh,
            payload_bytes_max=lambda: uplink(self._means().room),
            head_alone=trains_head_alone(self.manifest, self._means()),
            make_trainer=self.make_trainer,
        )
        self._adoption.start(self._work)

    def _evaluate(self, effect: Evaluate, now_s: float) -> None:
        base = self._load(effect.version)
        if base is None:
            self._step(TrainingFailed(effect.round, "base_lost"), now_s)
            return
        self._work = EvaluationWork(
            order=effect,
            manifest=self.manifest,
            base=base,
            personal=self._shelf.personal(),
            make_trainer=self.make_trainer,
        )
        self._adoption.start(self._work)

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.stop()
            self._work = None
        self._downloads.drop_others(self._adoption.wanted_version)

    def _note(self, report: Report) -> None:
        self.incidents[report.what] += 1
        self._observe(report)

    def _count_incident(self, error: RemoteProtocolError) -> None:
        self.incidents[error.reason] += 1
        if error.reason not in self._logged:
            self._logged.add(error.reason)
            self._observe(Report("bad_input", f"{error.reason}: {error}"))
