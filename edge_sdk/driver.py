"""A device without its threads: frames, timers and conditions in, effects executed in order.

Whoever runs it (the SDK's own thread, a fleet's loop over thousands) calls `on_frame`,
`on_link_up`, `on_link_down`, `on_gate` and `wake` from one thread, and passes the time. Work is
handed to `start_work` and comes back through `work_done`. Everything else happens here: what is
published is signed, what is persisted is on disk before the next effect runs, and whatever the
network sends is handled or counted and never raises.
"""

import functools
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import quantization
from edge_sdk import session as machine
from edge_sdk.download import Download, digest_of
from edge_sdk.journal import Enrolment, Journal
from edge_sdk.ladder import Costs, Means, Room, Rung, allowed, uplink
from edge_sdk.models import ModelShelf
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
)
from edge_sdk.trainer import Model, Trainer, read_only
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
    chunk_count,
    frames,
    topics,
)
from wire.chunks import missing, split
from wire.messages import (
    Available,
    Chunk,
    EvaluateInvite,
    FetchRequest,
    Gone,
    Invite,
    Leave,
    Message,
    ModelOffer,
    Refused,
    Release,
    Revoked,
)
from wire.topics import Address

# How a check-in is answered whose description is not the coordinator's.
_OUTDATED: Final = (Available.KIND, "description_outdated")


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
        description_digest: bytes = b"",
    ) -> None:
        self.manifest = manifest
        self.schema = manifest.schema.shared
        self.timers: dict[str, float] = {}
        self.incidents: Counter[str] = Counter()
        self._make_trainer = functools.cache(make_trainer)
        self._journal = journal
        self._shelf = shelf
        self._coordinator_key = enrolment.coordinator_key
        self._signer = signer
        self._crypto = crypto
        self._publish_bytes = publish
        self._start_work = start_work
        self._observe = observe
        self._means = means
        self._last_fetch_bytes = 0
        self._up = Address(enrolment.federation, enrolment.device, "up")
        self._down = Address(enrolment.federation, enrolment.device, "down")
        self._first = {spec.name: manifest.tensors[spec.name] for spec in self.schema.tensors}
        self._work: Work | None = None
        self._trained: TrainingWork | None = None
        self._downloads: dict[int, Download] = {}
        self._adopting: Adopt | None = None
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
        self._step(LinkDown(), now_s)

    def on_gate(self, gate: GateOpened | GateClosed, now_s: float) -> None:
        """Conditions are judged anew."""
        self._step(gate, now_s)

    def wake(self, now_s: float) -> None:
        """Run every timer that is due."""
        for timer in sorted(name for name, at_s in self.timers.items() if at_s <= now_s):
            if self.timers.get(timer, now_s + 1.0) <= now_s:
                del self.timers[timer]
                self._step(Woke(timer), now_s)

    def work_done(self, work: Work, event: WorkDone, now_s: float) -> None:
        """Work that `start_work` was given is over; what was stopped meanwhile is ignored."""
        if work is not self._work:
            return
        self._work = None
        self._trained = work if isinstance(work, TrainingWork) else None
        if isinstance(work, TrainingWork) and isinstance(event, Trained) and work.rung:
            self._observe(Report("fell_back", work.rung.name.lower()))
        self._step(event, now_s)
        self._trained = None

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
            self.outdated |= self._is_outdated(message)
            self._on_message(message, now_s)
        except RemoteProtocolError as error:
            self._count_incident(error)

    def _is_outdated(self, message: Message) -> bool:
        says_so = isinstance(message, Refused) and (message.kind, message.reason) == _OUTDATED
        return says_so and bool(self.session.description_digest)

    def _on_message(self, message: Message, now_s: float) -> None:
        match message:
            case ModelOffer():
                download = self._downloads.get(message.version)
                if download is not None:
                    download.announce(message)
                    self._last_fetch_bytes = message.payload_bytes
                    self._be_patient(message.chunk_bytes, now_s)
            case Chunk():
                self._be_patient(len(message.data), now_s)
                for download in tuple(self._downloads.values()):
                    if download.add(message):
                        self._finish_download(download, now_s)
            case Refused() if message.kind == FetchRequest.KIND:
                for version in tuple(self._downloads):
                    self._fail_download(version, message.reason, now_s)
            case Release():
                if self._adopting is not None and self._adopting.version != message.version:
                    self._adopting = None  # taken back or overtaken before it was here
                self._step(message, now_s)
            case _:
                self._step(self._weighed(message), now_s)

    def _weighed(self, message: Message) -> Message | TurnDown:
        """An invitation turned down for which what is left of the day's budgets does not do."""
        if not isinstance(message, Invite | EvaluateInvite) or self.session.gate is None:
            return message
        means = self._means()
        if means.room == Room():
            return message
        trains = isinstance(message, Invite)
        version = message.base_version if isinstance(message, Invite) else message.version
        head = self.manifest.head or tuple(spec.name for spec in self.schema.tensors)
        costs = Costs(
            training=means.training,
            evaluation=means.evaluation,
            fetch_bytes=0 if version == self.session.held_version else self._last_fetch_bytes,
            values=self.schema.parameters,
            head_values=sum(self.manifest.tensors[name].size for name in head),
        )
        rung, short = allowed(means.room, costs)
        if short is None or (rung < Rung.SKIP and not trains):
            return message
        return TurnDown(message.check_in, message.round, short)

    def _be_patient(self, bytes_before_next: int, now_s: float) -> None:
        """A download is on its way: it is asked for again only when nothing comes any more."""
        asked_again_at_s = self.timers.get(machine.FETCH_AGAIN)
        if asked_again_at_s is not None:
            patience_s = machine.ANSWER_S_MIN + bytes_before_next / machine.SLOW_LINK_BYTES_PER_S
            self.timers[machine.FETCH_AGAIN] = max(asked_again_at_s, now_s + patience_s)

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
            self._events.popleft()

    def _execute(self, effect: Effect, now_s: float) -> None:
        match effect:
            case Publish(message):
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
                self._fetch(effect.version, effect.digest)
            case Train():
                self._train(effect, now_s)
            case Evaluate():
                self._evaluate(effect, now_s)
            case StopWork():
                self._stop_work()
            case SendChunks():
                self._send_chunks(effect)
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
                self._journal.forget(record)
            case Revoked():
                self._journal.revoke(record.reason)
            case _:
                raise LocalProtocolError(f"no place for {type(record).__name__}")

    def _send(self, message: Message) -> None:
        self._publish_bytes(self._up.topic, frames.seal(message, self._up, self._signer))

    def _send_chunks(self, effect: SendChunks) -> None:
        payload = self._journal.sealed_payload(effect.update_id)
        if payload is None:
            raise LocalProtocolError("the journal has lost a sealed update")
        for index in missing(effect.received, chunk_count(len(payload), effect.chunk_bytes)):
            data = split(payload, effect.chunk_bytes, index)
            self._send(Chunk(effect.update_id, index, data))

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

    def _holds(self, version: int, digest: bytes) -> bool:
        tensors = self._load(version)
        return tensors is not None and digest_of(self.schema, tensors) == digest

    def _locate(self, effect: LocateBase, now_s: float) -> None:
        held = self._holds(effect.version, effect.digest)
        self._step(BaseHeld(effect.version) if held else BaseMissing(effect.version), now_s)

    def _fetch(self, version: int, digest: bytes) -> None:
        download = self._downloads.get(version)
        if download is None or download.digest != digest:
            have = self.session.held_version
            # Deltas lead forward only; a device that is asked back takes the whole model.
            have = have if have < version and self._load(have) is not None else -1
            download = self._downloads[version] = Download(version, digest, have, self.schema)
        self._send(download.request(self.session.chunk_bytes))

    def _finish_download(self, download: Download, now_s: float) -> None:
        try:
            tensors = download.tensors(self._load(download.have_version) or {})
        except RemoteProtocolError as error:
            self._count_incident(error)
            if download.have_version < 0 or self.session.gate is None:
                self._fail_download(download.version, error.reason, now_s)
                return
            # What is held may be what is wrong: once more, from nothing.
            again = Download(download.version, download.digest, -1, self.schema)
            self._downloads[download.version] = again
            self._send(again.request(self.session.chunk_bytes))
            return
        del self._downloads[download.version]
        self._shelf.save(download.version, tensors)
        held = max(self.session.held_version, download.version)
        self._journal.note_held(held)
        self._shelf.retain({held, self.released.version, download.version})
        self._step(BaseReady(download.version), now_s)
        if self._adopting is not None and self._adopting.version == download.version:
            self._adopt(self._adopting, now_s)

    def _fail_download(self, version: int, reason: str, now_s: float) -> None:
        del self._downloads[version]
        if self._adopting is not None and self._adopting.version == version:
            self._adopting = None
        self._step(BaseFailed(version, reason), now_s)

    def _adopt(self, effect: Adopt, now_s: float) -> None:
        if not self._holds(effect.version, effect.digest):
            self._adopting = effect
            self._fetch(effect.version, effect.digest)
            return
        self._adopting = None
        self._journal.note_released(effect.version)
        self.released = self._model(effect.version)
        self._shelf.retain({self.session.held_version, effect.version})
        self._step(Adopted(effect.version), now_s)

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
            make_trainer=self._make_trainer,
        )
        self._start_work(self._work)

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
            make_trainer=self._make_trainer,
        )
        self._start_work(self._work)

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.stop()
            self._work = None
        wanted = None if self._adopting is None else self._adopting.version
        self._downloads = {v: d for v, d in self._downloads.items() if v == wanted}

    def _count_incident(self, error: RemoteProtocolError) -> None:
        self.incidents[error.reason] += 1
        if error.reason not in self._logged:
            self._logged.add(error.reason)
            self._observe(Report("bad_input", f"{error.reason}: {error}"))
