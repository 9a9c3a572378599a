"""The coordinator: what every message means, who may send it, and what it is answered with.

It has no thread, no socket and no clock of its own: whoever runs it (the gateway's main loop, a
fleet's virtual world) calls `on_frame`, `on_link_up` and `wake` from one thread, and passes the
time. Rounds are the `Conductor`'s, check-ins `Attendance`'s, updates on their way in `Intake`'s.

Whatever the network sends is either handled or counted: a `RemoteProtocolError` never leaves
`on_frame`, is added to its device's count, logged once per device and reason, and the round goes
on. Counts reach the store in batches, because a flood must not become a flood of transactions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coordinator import quarantine
from coordinator.attendance import Attendance
from coordinator.changes import check_changes, remember, remembered
from coordinator.conductor import Conductor
from coordinator.config import FederationConfig
from coordinator.description import describe
from coordinator.downloads import Downloads
from coordinator.enrolment import Enrolment
from coordinator.evaluation import Evaluator
from coordinator.floods import Floods
from coordinator.headroom import Headroom, plenty
from coordinator.identity import Identity
from coordinator.inbox import Disk, Inbox
from coordinator.intake import DISK_FULL, Intake
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.pace import Pacer
from coordinator.participation import Classes
from coordinator.registry import Registry
from coordinator.releases import Releases
from coordinator.store import DiskFullError, Store
from coordinator.timers import FLUSH
from coordinator.vetoes import Vetoes
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
from wire.link import publish_packet_bytes
from wire.messages import (
    Available,
    Chunk,
    ComeBackAt,
    Declined,
    DescriptionRequest,
    EnrolRequest,
    EvaluationReport,
    Failed,
    FetchRequest,
    Gone,
    Leave,
    Message,
    Refused,
    Release,
    ReleaseVeto,
    Revoked,
    UpdateOffer,
)
from wire.topics import Address

FLUSH_EVERY_S: Final = 5.0
_NOBODY: Final = "-"


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
        models_dir: where released versions become files; None makes none.
        in_flight_bytes: how much of what was published waits for the broker; models on their way
            down wait for it.
        disk: makes the place where large updates are put together, told the size of the
            largest; None does it in memory.
        free_bytes: what is free on the disk of the state directory.

    Raises:
        ConfigChangeError: the file has changed where it may not since the last run.
        StoreError: the state directory is another model's.
        ManifestError: the model's artefact is not of its tensors.
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
        models_dir: Path | None = None,
        in_flight_bytes: Callable[[], int] = lambda: 0,
        disk: Callable[[int], Disk] | None = None,
        free_bytes: Callable[[], int] = plenty,
    ) -> None:
        self.store = store
        in_force = remembered(store)
        if in_force is not None:
            check_changes(in_force, config, spent=bool(store.privacy()), running=False)
        # A round that is open ends under the file that it was opened with.
        self._new_config = config
        if in_force is not None and store.unfinished_round() is not None:
            config = in_force
        self.config = config
        self.models = Models(manifest, store, config.downlink.codec, now_s)
        description = describe(manifest, store, observe)
        self.registry = Registry(store, models_dir)
        self.releases = Releases(self.registry, store, self._tell_everybody, observe)
        self._vetoes = Vetoes(store, observe)
        self.leases = Leases()
        rows = store.devices()
        self.classes = Classes()
        for name, row in rows.items():
            self.classes.enrol(name, row["device_class"])
        self._pacer = Pacer(seed, config.selection.check_ins_per_s_max, now_s)
        self.sent_bytes = 0
        self.received_bytes = 0
        self._headroom = Headroom(
            free_bytes,
            parameters=self.models.schema.parameters,
            updates=config.rounds.to_invite,
            observe=observe,
        )
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
            understands=lambda device: self._attendance.understands_evaluations(device),  # noqa: PLW0108
            run_over=lambda now_s: self.releases.run_over(self.models.version, now_s),
            needed_versions=self.registry.needed_versions,
            headroom=self._headroom,
            reconfigured=self._reconfigured,
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
        self._floods = Floods()
        self._enrolment = Enrolment(store, keys, crypto, config.federation.name)
        largest = self.models.payload_bytes_max
        self._inbox = Inbox(largest, None if disk is None else disk(largest))
        self._intake = Intake(
            federation=config.federation.name,
            store=store,
            rounds=self.rounds,
            inbox=self._inbox,
            leases=self.leases,
            headroom=self._headroom,
            publish=self._publish,
            observe=observe,
        )
        self._attendance = Attendance(
            store=store,
            rounds=self.rounds,
            intake=self._intake,
            models=self.models,
            leases=self.leases,
            pacer=self._pacer,
            floods=self._floods,
            headroom=self._headroom,
            enrolled=self._devices,
            last={name: int(row["last_check_in"]) for name, row in rows.items()},
            publish=self._publish,
            count_incident=self.count_incident,
            description_digest=b"" if description is None else description.digest,
        )
        self._incidents: dict[tuple[str, str], tuple[int, str]] = {}
        self._logged: set[tuple[str, str]] = set()
        self._downloads = Downloads(self.models, store, self._publish, in_flight_bytes, description)
        self._downloads.chunk_bytes_max = chunk_bytes_for(config.broker.packet_bytes_max)

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
        self.rounds.opening.reconfigure(self._new_config, now_s)
        self._flush_soon(now_s)

    def reconfigure(self, config: FederationConfig, now_s: float) -> None:
        """Take another file, which comes into force at the next round's edge.

        Raises:
            ConfigChangeError: it differs where it may not; the old one stays.
        """
        spent = bool(self.store.privacy())
        check_changes(self.config, config, spent=spent, running=True)
        self._new_config = config
        self.rounds.opening.reconfigure(config, now_s)

    def _reconfigured(self, config: FederationConfig) -> None:
        """A round's edge is here: this file is in force from now on."""
        self._pacer.rate_max = config.selection.check_ins_per_s_max
        before = remembered(self.store)
        if before == config:
            self.config = config
            return
        remember(self.store, config)
        self.config = config
        if before is not None:
            for change in check_changes(before, config, spent=False, running=False):
                self._observe(Report("config_changed", str(change)))

    def stop(self) -> None:
        """Write what is only in memory: counts. Rounds need nothing."""
        with self._headroom.or_not():
            self._flush()

    def on_link_up(self, packet_bytes_max: int, now_s: float) -> None:
        """The broker is there, and takes packets of this size."""
        chunk_bytes_max = chunk_bytes_for(packet_bytes_max)
        self._downloads.chunk_bytes_max = chunk_bytes_max
        self.rounds.on_link_up(chunk_bytes_max, now_s)
        self._attendance.recall(now_s)

    def on_link_down(self) -> None:
        """The broker is gone: what is said now reaches nobody, so no round is opened."""
        self.rounds.on_link_down()
        self._downloads.on_link_down()

    def on_clock_step(self, by_s: float, now_s: float) -> None:
        """Somebody has set the clock that `now_s` comes from."""
        self._observe(Report("clock_set", f"by {by_s:+.0f} s"))
        self.leases.on_clock_step(by_s)
        self._downloads.on_clock_step()
        self.rounds.on_clock_step(by_s, now_s)

    def wake(self, now_s: float) -> None:
        """Run every timer that is due."""
        timers = self.rounds.timers
        for timer in sorted(name for name, at_s in timers.items() if at_s <= now_s):
            if timers.get(timer, now_s + 1.0) > now_s:
                continue
            del timers[timer]
            # What finds no room is tried again by whoever owns it; nothing of it is lost.
            with self._headroom.or_not():
                if timer == FLUSH:
                    self._flush()
                else:
                    self.rounds.wake(timer, now_s)
        self._downloads.send()
        self._flush_soon(now_s)

    @property
    def has_more_to_send(self) -> bool:
        """Whether models wait for the broker to take what is before them."""
        return len(self._downloads) > 0

    def send_more(self) -> None:
        """The broker has taken something: send what waits for that."""
        self._downloads.send()

    @contextmanager
    def burst(self, now_s: Callable[[], float]) -> Iterator[None]:
        """Frames that came together: what they bring goes to disk together (see `Burst`)."""
        self._intake.burst.running = True
        try:
            yield
        finally:
            self._intake.burst.running = False
        self._attendance.write_boots()
        self._intake.burst.settle(now_s())

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
            if not isinstance(message, Chunk):
                # Only what the device has signed counts: others cannot use up its allowance.
                self._floods.check(device, now_s)
            if isinstance(message, Available):
                self._attendance.minors[device] = data[frames.MINOR_OFFSET]
            with self._headroom.or_not():
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

    # -- what an operator asks for: the rest is in `releases` and `rounds` --------------------

    def pardon(self, device: str, now_s: float) -> bool:
        """Forget what speaks against a device; one that was quarantined is asked to speak again.

        Returns:
            Whether it was quarantined.

        Raises:
            UnknownSenderError: no such device is enrolled here.
        """
        if device not in self._devices:
            raise UnknownSenderError(f"{device} is not enrolled here")
        before = quarantine.pardon(self.store, device, now_s)
        if before.quarantined_until is None:
            return False
        check_in = self._attendance.last_check_in(device)
        self._publish(ComeBackAt(check_in, 0.0, quarantine.PARDONED), device)
        return True

    def revoke(self, device: str, reason: str, now_s: float) -> bool:
        """Take a device out for good, and tell it; False when it is out already.

        Raises:
            UnknownSenderError: no such device was ever enrolled here.
        """
        if device in self._revoked:
            return False
        if device not in self._devices:
            raise UnknownSenderError(f"{device} is not enrolled here")
        self.store.revoke(device, reason)
        self._observe(Report("left", reason, device))
        self._revoked[device] = (self._devices[device], reason)
        self._intake.lost(device, reason, 0, now_s)
        self._publish(Revoked(reason), device)
        del self._devices[device]
        return True

    def _tell_everybody(self, message: Release) -> None:
        """Of a large fleet some; the others hear of it when they check in."""
        for device in self._pacer.told_at_once(list(self._devices), message.version):
            self._publish(message, device)

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
        try:
            answer, enrolled = self._enrolment.redeem(address.device, request, now_s)
        except DiskFullError:
            self._headroom.ran_out()
            answer, enrolled = Refused(EnrolRequest.KIND, DISK_FULL, "try again later"), ""
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
                self._attendance.take(device, message, now_s)
            case Declined():
                self._attendance.check_is_no_replay(device, message)
                self._intake.lost(device, message.reason, message.round, now_s)
            case Failed():
                self._failed(device, message)
                self._intake.lost(device, message.reason, message.round, now_s)
            case Gone():
                self.leases.end_since(device, message.check_in)
            case Leave():
                self.revoke(device, message.reason, now_s)
            case _:
                self._on_work(device, message, now_s)

    def _on_work(self, device: str, message: Message, now_s: float) -> None:
        """What a device says that is at work."""
        match message:
            case FetchRequest() | DescriptionRequest():
                self._downloads.serve(device, message, now_s)
            case EvaluationReport():
                self.rounds.take_report(device, message, now_s)
            case ReleaseVeto():
                self._vetoes.take(device, message, now_s)
            case UpdateOffer():
                self._intake.offer(device, message, now_s)
            case Chunk():
                self._intake.chunk(device, message, now_s)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not expected from a device")

    def _failed(self, device: str, message: Failed) -> None:
        """Say what a device says of work that the round waits for; once, then it does not wait."""
        if message.detail and device in self.rounds.round.waiting_for:
            self._observe(Report("training_failed", message.detail, device))

    # -- speaking ----------------------------------------------------------------------------

    def _publish(self, message: Message, device: str) -> None:
        self._send(message, Address(self.config.federation.name, device, "down"))

    def _send(self, message: Message, address: Address) -> None:
        data = frames.seal(message, address, self._keys.signer)
        self.sent_bytes += publish_packet_bytes(address.topic, len(data), mqtt5=True)
        self._publish_bytes(address.topic, data)

    def _flush_soon(self, now_s: float) -> None:
        """Write counts within a while; a coordinator at which nobody speaks does not wake."""
        if (self._incidents or self._attendance.is_unwritten) and FLUSH not in self.rounds.timers:
            self.rounds.timers[FLUSH] = now_s + FLUSH_EVERY_S

    def _flush(self) -> None:
        self.rounds.note_traffic()
        if self._incidents:
            self.store.add_incidents(self._incidents)
            self._incidents = {}
        self._attendance.write()
