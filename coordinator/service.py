"""The coordinator: what every message means, who may send it, and what it is answered with.

It has no thread, no socket and no clock of its own: whoever runs it (the gateway's main loop, a
fleet's virtual world) calls `on_frame`, `on_link_up` and `wake` from one thread, and passes the
time. Rounds are the `Conductor`'s.

Whatever the network sends is either handled or counted: a `RemoteProtocolError` never leaves
`on_frame`, is added to its device's count, logged once per device and reason, and the round goes
on. Counts reach the store in batches, because a flood must not become a flood of transactions.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from coordinator.conductor import Conductor
from coordinator.config import FederationConfig
from coordinator.downloads import Downloads
from coordinator.enrolment import Enrolment
from coordinator.evaluation import Evaluator
from coordinator.identity import Identity
from coordinator.inbox import Inbox
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.pace import LEASE_SLACK, Pacer
from coordinator.participation import TOO_SLOW, Classes
from coordinator.signals import DeviceAsks, UpdateStored
from coordinator.store import Store
from wire import (
    Crypto,
    Manifest,
    RemoteProtocolError,
    Report,
    UnknownSenderError,
    chunk_bytes_for,
    frames,
    identity,
    topics,
)
from wire.errors import (
    DuplicateError,
    NotInvitedError,
    SchemaMismatchError,
    StaleRoundError,
)
from wire.link import publish_packet_bytes
from wire.messages import (
    Available,
    Chunk,
    ComeBackAt,
    Declined,
    EnrolRequest,
    Failed,
    FetchRequest,
    Gone,
    Leave,
    Message,
    Receipt,
    Refused,
    Release,
    Revoked,
    Settled,
    UpdateOffer,
    UploadStatus,
)
from wire.topics import Address

FLUSH: Final = "flush"
FLUSH_EVERY_S: Final = 5.0
STABLE: Final = "stable"
# What an update is settled with that came when its round had all it needed.
ROUND_CLOSED: Final = "round_closed"
_ROUNDS_TOLD_AGAIN: Final = 2
_BOOT_BITS: Final = 32
_NOBODY: Final = "-"
# After a restart a round's invitees and as many again are recalled at once.
_RECALLED: Final = 2


class Coordinator:
    """One federation's coordinator.

    Args:
        config: the federation's file.
        manifest: what `task.model()` returned.
        evaluator: what `task.test()` returned, or None.
        store: where everything durable is.
        keys: the coordinator's identity.
        crypto: the signature scheme.
        publish: sends (topic, payload) at QoS 1.
        observe: told every `Report`, for progress and logs.
        now_s: unix seconds.
        seed: the federation's public seed.
        first_gathering: how many devices to hear before the first round, if they come in time.
        gathering_s: how long to wait for them.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        manifest: Manifest,
        evaluator: Evaluator | None,
        store: Store,
        keys: Identity,
        crypto: Crypto,
        publish: Callable[[str, bytes], None],
        observe: Callable[[Report], None],
        now_s: float,
        seed: int = 0,
        first_gathering: int = 0,
        gathering_s: float = 30.0,
    ) -> None:
        self.config = config
        self.store = store
        self.models = Models(manifest, store, config.downlink.codec, now_s)
        self.leases = Leases()
        rows = store.devices()
        self.classes = Classes()
        for name, row in rows.items():
            self.classes.enrol(name, row["device_class"])
        self._pacer = Pacer(seed, config.selection.check_ins_per_s_max, now_s)
        self.sent_bytes = 0
        self.received_bytes = 0
        self.rounds = Conductor(
            config=config,
            store=store,
            models=self.models,
            leases=self.leases,
            classes=self.classes,
            evaluator=evaluator,
            publish=self._publish,
            observe=observe,
            count_incident=self.count_incident,
            traffic=lambda: (self.sent_bytes, self.received_bytes),
            run_over=self._run_over,
            seed=seed,
            first_gathering=first_gathering,
            gathering_until_s=now_s + gathering_s,
        )
        self._keys = keys
        self.crypto = crypto
        self._publish_bytes = publish
        self._observe = observe
        self._devices = {
            name: bytes(row["public_key"]) for name, row in rows.items() if row["revoked"] is None
        }
        self._revoked = {
            name: (bytes(row["public_key"]), str(row["revoked"]))
            for name, row in rows.items()
            if row["revoked"] is not None
        }
        self._check_ins = {name: int(row["last_check_in"]) for name, row in rows.items()}
        self._new_check_ins: set[str] = set()
        self._enrolment = Enrolment(store, keys, crypto, config.federation.name)
        self._inbox = Inbox(self.models.payload_bytes_max)
        self._incidents: dict[tuple[str, str], tuple[int, str]] = {}
        self._logged: set[tuple[str, str]] = set()
        self._downloads = Downloads(self.models, store, self._publish)
        self._downloads.chunk_bytes_max = self.rounds.chunk_bytes_max

    # -- what whoever runs it calls ----------------------------------------------------------

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic filters that the coordinator listens to."""
        mine = identity.coordinator_id(self._keys.signer.public_key)
        return (
            topics.uplink_filter(self.config.federation.name),
            topics.uplink_filter(topics.enrolment_scope(mine)),
        )

    @property
    def finished(self) -> bool:
        """Whether every round of the federation is closed."""
        return self.rounds.finished

    @property
    def next_wake_s(self) -> float | None:
        """When `wake` is due, unix seconds."""
        return min(self.rounds.timers.values(), default=None)

    @property
    def partials(self) -> int:
        """How many updates are half here."""
        return len(self._inbox)

    @property
    def public_key(self) -> bytes:
        """What devices believe: 32 bytes."""
        return self._keys.signer.public_key

    def admit(self, public_key: bytes, device_class: str, now_s: float) -> str:
        """Enrol a device without a token, by whoever runs the coordinator; returns its name."""
        device = identity.device_id(public_key)
        self.store.admit(device, public_key, device_class, now_s)
        self._devices[device] = public_key
        self.classes.enrol(device, device_class)
        return device

    def start(self, now_s: float) -> None:
        """Resume the round that the last run left open, if it did, and begin to plan."""
        self.rounds.start(now_s)
        self._flush_soon(now_s)

    def stop(self) -> None:
        """Write what is only in memory: counts. Rounds need nothing."""
        self._flush()

    def on_link_up(self, packet_bytes_max: int, now_s: float) -> None:
        """The broker is there, and takes packets of this size."""
        chunk_bytes_max = chunk_bytes_for(packet_bytes_max)
        self.rounds.chunk_bytes_max = self._downloads.chunk_bytes_max = chunk_bytes_max
        self.rounds.link_is_up = True
        self.rounds.plan_soon(now_s)
        self._recall(now_s)

    def on_link_down(self) -> None:
        """The broker is gone: what is said now reaches nobody, so no round is opened."""
        self.rounds.link_is_up = False

    def on_clock_step(self, by_s: float, now_s: float) -> None:
        """Somebody has set the clock that `now_s` comes from."""
        self._observe(Report("clock_set", f"by {by_s:+.0f} s"))
        self.leases.on_clock_step(by_s)
        self._downloads.on_clock_step()
        self.rounds.on_clock_step(by_s, now_s)

    def _recall(self, now_s: float) -> None:
        """Say again what may have been lost with the link, or with this process before it.

        Settlements of the last rounds may have been lost between the transaction and the broker,
        and so may invitations. Of the others as many as a round needs are asked to speak again now
        rather than when their leases would have ended, which are not kept over a restart; and some
        more after them, at the rate that the file allows.
        """
        last = self.store.last_round()
        for number in range(max(last - _ROUNDS_TOLD_AGAIN, 1), last + 1):
            for row in self.store.updates(number):
                if row.device in self._devices:
                    self._tell(row.device, row.update_id)
        others = []
        for device, check_in in sorted(self._check_ins.items()):
            if not check_in or device not in self._devices:
                continue
            if self.rounds.may_still_train(device, now_s):
                self.rounds.step(DeviceAsks(device, check_in), now_s)
            else:
                others.append(device)
        at_once = _RECALLED * self.rounds.planner.to_invite()
        for device, after_s in self._pacer.recall(others, last, at_once):
            recall = ComeBackAt(self._check_ins[device], after_s, "coordinator_is_back")
            self._publish(recall, device)

    def wake(self, now_s: float) -> None:
        """Run every timer that is due."""
        timers = self.rounds.timers
        for timer in sorted(name for name, at_s in timers.items() if at_s <= now_s):
            if timers.get(timer, now_s + 1.0) > now_s:
                continue
            del timers[timer]
            if timer == FLUSH:
                self._flush()
            else:
                self.rounds.wake(timer, now_s)
        self._flush_soon(now_s)

    def on_frame(self, topic: str, data: bytes, now_s: float) -> None:
        """Take a publication from the broker, whatever it is."""
        self.received_bytes += publish_packet_bytes(topic, len(data), mqtt5=True)
        device = _NOBODY
        try:
            address = topics.parse(topic)
            if address.scope != self.config.federation.name:
                self._enrol(address, data, now_s)
                return
            public_key = self._devices.get(address.device)
            if public_key is None and address.device in self._revoked:
                self._remind(address, data)
                return
            if public_key is None:
                raise UnknownSenderError(f"{address.device} is not enrolled here")
            device = address.device
            message = frames.open_frame(data, address, public_key, self.crypto)
            self._on_message(device, message, now_s)
        except RemoteProtocolError as error:
            self.count_incident(device, error)
        self._flush_soon(now_s)

    def _remind(self, address: Address, data: bytes) -> None:
        """A device that is out speaks: it has not heard that it is."""
        public_key, reason = self._revoked[address.device]
        frames.verify(frames.parse(data), address, public_key, self.crypto)
        self._publish(Revoked(reason), address.device)

    def count_incident(self, device: str, error: RemoteProtocolError) -> None:
        """Count a typed error against a device; say it the first time."""
        key = (device, error.reason)
        self._incidents[key] = (self._incidents.get(key, (0, ""))[0] + 1, str(error)[:200])
        if key not in self._logged:
            self._logged.add(key)
            self._observe(Report("bad_input", f"{error.reason}: {error}", device))

    def release(self, alias: str, version: int, digest: bytes, now_s: float) -> None:
        """Point an alias at a version, and tell devices; some of a large fleet hear it later."""
        self.store.release(alias, version, digest, now_s)
        self._observe(Report("released", f"{alias} is version {version}"))
        for device in self._pacer.told_at_once(list(self._devices), version):
            self._publish(Release(version, digest, alias), device)

    def _run_over(self, now_s: float) -> None:
        """Every round is closed: what came of them becomes the model that apps use."""
        released = self.store.released(STABLE)
        if released is None or released["version"] != self.models.version:
            self.release(STABLE, self.models.version, self.models.digest, now_s)

    # -- messages ----------------------------------------------------------------------------

    def _enrol(self, address: Address, data: bytes, now_s: float) -> None:
        mine = topics.enrolment_scope(identity.coordinator_id(self._keys.signer.public_key))
        if address.scope != mine:
            raise RemoteProtocolError(f"scope {address.scope!r} is not served here")
        frame = frames.parse(data)
        if frame.kind != EnrolRequest.KIND:
            raise RemoteProtocolError(f"kind {frame.kind} on the enrolment topic")
        request = frames.decode(frame, address)
        if not isinstance(request, EnrolRequest):
            raise RemoteProtocolError("not an enrolment request")
        frames.verify(frame, address, request.public_key, self.crypto)
        answer, enrolled = self._enrolment.redeem(address.device, request, now_s)
        if enrolled:
            self._devices[enrolled] = request.public_key
            self.classes.enrol(enrolled, request.device_class)
            self._observe(Report("enrolled", request.device_class, enrolled))
        elif isinstance(answer, Refused):
            key = (_NOBODY, answer.reason)
            self._incidents[key] = (self._incidents.get(key, (0, ""))[0] + 1, answer.detail)
        self._send(answer, Address(address.scope, address.device, "down"))

    def _on_message(self, device: str, message: Message, now_s: float) -> None:
        match message:
            case Available():
                self._available(device, message, now_s)
            case Declined():
                self._lost(device, message.reason, message.round, now_s)
            case Failed():
                if message.detail:
                    self._observe(Report("training_failed", f"{message.detail}", device))
                self._lost(device, message.reason, message.round, now_s)
            case Gone():
                self.leases.end_since(device, message.check_in)
            case FetchRequest():
                self._downloads.serve(device, message, now_s)
            case UpdateOffer():
                self._offer(device, message, now_s)
            case Chunk():
                self._chunk(device, message, now_s)
            case Leave():
                self.store.revoke(device, message.reason)
                self._observe(Report("left", message.reason, device))
                self._revoked[device] = (self._devices[device], message.reason)
                self._lost(device, message.reason, 0, now_s)
                self._publish(Revoked(message.reason), device)
                del self._devices[device]
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not expected from a device")

    def _available(self, device: str, message: Available, now_s: float) -> None:
        if message.check_in <= self._check_ins.get(device, 0):
            raise RemoteProtocolError(f"check-in {message.check_in} is not newer than the last")
        if message.schema_digest != bytes.fromhex(self.models.manifest.schema.digest):
            self._publish(
                Refused(Available.KIND, "schema_mismatch", "another task's model"), device
            )
            raise SchemaMismatchError("the device trains another model")
        before, self._check_ins[device] = self._check_ins.get(device, 0), message.check_in
        first_of_boot = message.check_in >> _BOOT_BITS != before >> _BOOT_BITS
        self._new_check_ins.add(device)
        if first_of_boot:
            # A restart can only recall a device whose boot it knows; the others can wait.
            self._flush_check_ins()
        released = self.store.released(STABLE)
        if released is not None and released["version"] != message.released_version:
            self._publish(Release(released["version"], released["digest"], STABLE), device)
        if self.rounds.may_still_train(device, now_s):
            self.rounds.step(DeviceAsks(device, message.check_in), now_s)
            return
        if self.rounds.is_open and device in self.rounds.round.waiting_for:
            # It has nothing sealed, or it would not check in, and its round is as good as over.
            self.rounds.lose(device, "deadline_passed", now_s)
        if self.finished:
            idle_s = self._pacer.idle_s(device, message.check_in)
            self._publish(ComeBackAt(message.check_in, idle_s, "run_over"), device)
            return
        after_s = self._pacer.silence_s(
            device,
            message.check_in,
            message.window_s,
            opens_in_s=self.rounds.planner.earliest_s(now_s) - now_s,
            now_s=now_s,
        )
        if after_s is not None:
            self._publish(ComeBackAt(message.check_in, after_s, "not_needed"), device)
        silent_s = LEASE_SLACK * (after_s or 0.0)
        self.leases.check_in(device, message, now_s, silent_s=silent_s)
        self.rounds.plan_soon(now_s)

    def _lost(self, device: str, reason: str, round_number: int, now_s: float) -> None:
        if self.leases.end(device) or device in self.rounds.round.waiting_for:
            self._observe(Report("declined", reason, device))
        current = self.rounds.round
        if reason == TOO_SLOW and round_number and device not in current.waiting_for:
            self.rounds.note_too_slow(device, round_number)
        if current.opened is None or not self.rounds.is_open:
            self.rounds.plan_soon(now_s)
        elif round_number in (0, current.opened.round) and device in current.waiting_for:
            self.rounds.lose(device, reason, now_s)

    def _offer(self, device: str, message: UpdateOffer, now_s: float) -> None:
        name = self.config.federation.name
        if message.update_id != identity.update_id(name, message.round, device):
            raise RemoteProtocolError("the update id is not this device's for this round")
        known = self.store.update(message.update_id)
        if known is not None:
            self._tell(device, message.update_id)
            if known.digest != message.payload_digest:
                raise DuplicateError("the same update id was offered with other bytes")
            return
        update = self._describe(device, message, now_s)
        if self._is_late(device, message):
            self.rounds.note_late(device, message.round, now_s)
            self._refuse(device, update, ROUND_CLOSED, now_s)
            return
        refusal = self._why_not(device, message)
        if isinstance(refusal, StaleRoundError | NotInvitedError):
            # No work of ours: told, counted, and given no line, or a liar could fill the ledger.
            self._publish(Settled(message.update_id, counted=False, reason=refusal.reason), device)
            raise refusal
        if refusal is not None:
            self._refuse(device, update, refusal.reason, now_s)
            self._lost(device, refusal.reason, message.round, now_s)
            raise refusal
        received = self._inbox.announce(device, update, message.chunk_bytes)
        if not message.chunks_follow:
            self._publish(UploadStatus(message.update_id, received), device)

    def _refuse(self, device: str, update: UpdateStored, reason: str, now_s: float) -> None:
        """Settle an update that is not taken; on disk before the device hears of it."""
        self.store.refuse_update(update, reason, now_s)
        self._publish(Settled(update.update_id, counted=False, reason=reason), device)
        self.leases.expect(device)

    def _is_late(self, device: str, message: UpdateOffer) -> bool:
        """Whether this is honest work that others were quicker with: nobody's fault."""
        if self.rounds.is_open and message.round == self.store.last_round():
            return False
        opened = self.store.round_opened(message.round)
        return (
            opened is not None
            and device in opened.invited
            and message.base_version == opened.base_version
        )

    def _why_not(self, device: str, message: UpdateOffer) -> RemoteProtocolError | None:
        """Why an offered update cannot be taken, before a byte of it is."""
        opened = self.rounds.round.opened
        if not self.rounds.is_open or opened is None or message.round != opened.round:
            return StaleRoundError(f"round {message.round} is not open")
        if device not in opened.invited:
            return NotInvitedError(f"was not invited to round {message.round}")
        if message.base_version != opened.base_version:
            return StaleRoundError(f"trained on version {message.base_version}")
        return self._inbox.why_too_large(message.payload_bytes, message.chunk_bytes)

    @property
    def _weight_cap(self) -> int:
        """The open round's: a file that is changed counts from the next round on."""
        opened = self.rounds.round.opened
        return self.config.aggregation.weight_cap if opened is None else opened.weight_cap

    def _describe(self, device: str, message: UpdateOffer, now_s: float) -> UpdateStored:
        return UpdateStored(
            update_id=message.update_id,
            device=device,
            round=message.round,
            base_version=message.base_version,
            num_examples=message.num_examples,
            weight=min(message.num_examples, self._weight_cap),
            payload_bytes=message.payload_bytes,
            payload_digest=message.payload_digest,
            metrics=dict(message.metrics),
            receipted_at_s=now_s,
        )

    def _chunk(self, device: str, message: Chunk, now_s: float) -> None:
        done = self._inbox.add(device, message)
        if done is None:
            return
        update, payload = done
        update = msgspec.structs.replace(update, receipted_at_s=now_s)
        current = self.rounds.round
        expected = current.opened is not None and current.opened.round == update.round
        if not self.rounds.is_open or not expected or update.update_id in current.updates:
            if self.store.update(update.update_id) is None:
                self.store.refuse_update(update, ROUND_CLOSED, now_s)
            self._tell(device, update.update_id)
            return
        self.rounds.take(update, payload, now_s)

    def _tell(self, device: str, update_id: bytes) -> None:
        """Say what the ledger says of an update."""
        row = self.store.update(update_id)
        if row is None or row.device != device:
            return
        if row.receipted_at is not None:
            self._publish(Receipt(update_id), device)
        if row.counted is not None:
            self._publish(Settled(update_id, row.counted, row.reason or "counted"), device)

    # -- speaking ----------------------------------------------------------------------------

    def _publish(self, message: Message, device: str) -> None:
        self._send(message, Address(self.config.federation.name, device, "down"))

    def _send(self, message: Message, address: Address) -> None:
        data = frames.seal(message, address, self._keys.signer)
        self.sent_bytes += publish_packet_bytes(address.topic, len(data), mqtt5=True)
        self._publish_bytes(address.topic, data)

    def _flush_soon(self, now_s: float) -> None:
        """Write counts within a while; a coordinator at which nobody speaks does not wake."""
        if (self._incidents or self._new_check_ins) and FLUSH not in self.rounds.timers:
            self.rounds.timers[FLUSH] = now_s + FLUSH_EVERY_S

    def _flush(self) -> None:
        self.rounds.note_traffic()
        if self._incidents:
            self.store.add_incidents(self._incidents)
            self._incidents = {}
        self._flush_check_ins()

    def _flush_check_ins(self) -> None:
        if self._new_check_ins:
            self.store.note_check_ins({d: self._check_ins[d] for d in self._new_check_ins})
            self._new_check_ins = set()
