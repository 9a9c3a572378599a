"""One emulated device: the SDK's own driver, a link that somebody else runs, and a profile.

The same over a real broker (`fleet.loop`) and in virtual time (`fleet.world`). What training and
bytes would cost the device in energy is added up from its profile.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from device_profiles import (
    DeviceProfile,
    training_energy_j,
    training_seconds,
    transfer_energy_j,
    transfer_seconds,
)
from edge_sdk import DeviceDriver, DeviceInfo, Model
from edge_sdk.description import DescriptionShelf, MemoryDescriptions
from edge_sdk.journal import Enrolment, Journal
from edge_sdk.ladder import Means
from edge_sdk.models import ModelShelf
from edge_sdk.newcomer import Newcomer
from edge_sdk.parts import PartStore
from edge_sdk.release_check import ReleaseCheck
from edge_sdk.signals import GateClosed, GateOpened, Trained
from edge_sdk.work import TrainingWork, Work, WorkDone, round_of
from fleet.attacks import ATTACKS, spoil
from fleet.described import WorldDriver
from fleet.faults import Fault
from wire import Crypto, Manifest, Plan, Report, Signer, Tensors, Traffic, frames, topics
from wire.messages import Leave

LEASE_WINDOW_S: Final = 86_400.0
_GARBAGE_BYTES: Final = 64


@dataclass
class Counts:
    """What a device did, as far as it knows itself."""

    invited: int = 0
    trained: int = 0
    counted: int = 0
    not_counted: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    payload_bytes: int = 0
    training_j: float = 0.0
    run_is_over: bool = False
    # Seconds that a round has taken of the device, training and transfer, by round.
    round_s: dict[int, float] = field(default_factory=dict)


class Link(Protocol):
    """What a device needs of a link: `MqttLink`, or one in virtual time."""

    @property
    def traffic(self) -> Traffic:
        """Bytes of whole packets so far."""
        ...

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1."""
        ...

    def room(self, most: int) -> int:
        """How many more publications it can use now, if so many may be under way at once."""
        ...

    def drop(self) -> None:
        """Break the connection without a word."""
        ...


LinkT = TypeVar("LinkT", bound=Link)


class EmulatedDevice(Generic[LinkT]):
    """A device of a fleet; all its methods are called on one thread.

    Args:
        info: its number, seed and profile.
        profile: what it is like.
        task: whose `trainer(info)` it uses.
        manifest: of the task.
        enrolment: who it is.
        signer: its key.
        crypto: the signature scheme.
        journal: what survives a crash.
        shelf: where its models are.
        check_in_s: how long its check-ins hold.
        make_link: makes the device's link; its callbacks are the device's `on_...` methods.
        start_work: the fleet's; gets the device and the work.
        clock: monotonic seconds.
        fault: what goes wrong with it, if anything.
        parts: where its downloads are put together; None is memory.
        check_release: its app's own check of a release.
    """

    def __init__(
        self,
        *,
        info: DeviceInfo,
        profile: DeviceProfile,
        task: Any,
        manifest: Manifest,
        enrolment: Enrolment,
        signer: Signer,
        crypto: Crypto,
        journal: Journal,
        shelf: ModelShelf,
        check_in_s: float,
        make_link: "Callable[[EmulatedDevice[LinkT]], LinkT]",
        start_work: "Callable[[EmulatedDevice[LinkT], Work], None]",
        clock: Callable[[], float],
        fault: Fault | None,
        parts: PartStore | None = None,
        check_release: ReleaseCheck | None = None,
    ) -> None:
        self.info = dataclasses.replace(info, manifest=manifest)
        self.profile = profile
        self.name = enrolment.device
        self.counts = Counts()
        self.gone = False
        self.away_until_s: float | None = None
        self.gate_opens_at_s: float | None = None
        self._manifest = manifest
        self._signer = signer
        self._clock = clock
        self._fault = fault
        self._check_release = check_release
        self._struck = False
        # The round that it works for, and the bytes that had passed when it was invited.
        self._working: tuple[int, int, int] | None = None
        self._task = task
        self._enrolment = enrolment
        self._crypto = crypto
        self._journal = journal
        self._shelf = shelf
        self._parts = parts
        self.means: Callable[[], Means] = Means
        self.may_send: Callable[[int, bool], bool] = lambda _bytes, _last_word: True
        self.descriptions: DescriptionShelf | None = None
        self._check_in_s = check_in_s
        self._start_work = start_work
        self.boot()
        self.link = make_link(self)

    def boot(self) -> None:
        """Start, or start again after a crash, from what the journal holds."""
        if self.descriptions is None:
            self.driver: DeviceDriver | WorldDriver = self._make_driver(self._manifest)
            return
        self.driver = WorldDriver(
            manifest=self._manifest,
            journal=self._journal,
            descriptions=self.descriptions,
            make_driver=self._make_driver,
            make_newcomer=self._make_newcomer,
        )

    def _make_newcomer(self, have_digest: bytes) -> Newcomer:
        return Newcomer(
            have_digest=have_digest,
            journal=self._journal,
            descriptions=self.descriptions or MemoryDescriptions(),
            enrolment=self._enrolment,
            signer=self._signer,
            crypto=self._crypto,
            publish=self._publish,
            observe=self._observe,
            means=lambda: self.means(),  # noqa: PLW0108 - a fleet sets it later
            may_send=lambda size, last_word: self.may_send(size, last_word),  # noqa: PLW0108 - as above
        )

    def _make_driver(self, manifest: Manifest, description_digest: bytes = b"") -> DeviceDriver:
        info = dataclasses.replace(self.info, manifest=manifest)
        return DeviceDriver(
            manifest=manifest,
            make_trainer=lambda: self._task.trainer(info),
            journal=self._journal,
            shelf=self._shelf,
            enrolment=self._enrolment,
            signer=self._signer,
            crypto=self._crypto,
            publish=self._publish,
            start_work=lambda work: self._start_work(self, work),
            observe=self._observe,
            device_class=self.profile.name,
            means=lambda: self.means(),  # noqa: PLW0108 - a fleet sets it later
            parts=self._parts,
            room=lambda most: self.link.room(most),  # noqa: PLW0108 - there is none yet
            may_send=lambda size, last_word: self.may_send(size, last_word),  # noqa: PLW0108 - as above
            check_release=self._check_release,
            description_digest=description_digest,
        )

    # -- link --------------------------------------------------------------------------------

    def on_message(self, topic: str, data: bytes) -> None:
        """A publication has come."""
        self.driver.on_frame(topic, data, self._clock())

    def on_link_up(self, packet_bytes_max: int) -> None:
        """The broker is there."""
        self.driver.on_link_up(packet_bytes_max, self._clock())

    def on_link_down(self, _reason: str = "") -> None:
        """The broker is gone."""
        self.driver.on_link_down(self._clock())

    def send_more(self) -> None:
        """The broker has taken something: go on with an upload that waits for that."""
        if self.driver.has_more_to_send:
            self.driver.send_more(self._clock())

    def will(self) -> tuple[str, bytes]:
        """The last will for a connection that is about to be made."""
        return self.driver.will()

    # -- gate --------------------------------------------------------------------------------

    def open_gate(self) -> None:
        """At its charger, on a network that costs nothing: a live fleet measures the wire.

        Days and batteries are the virtual world's, where time can pass.
        """
        self.gate_opens_at_s = None
        gate = GateOpened(LEASE_WINDOW_S, check_in_s=self._check_in_s)
        self.driver.on_gate(gate, self._clock())

    # -- work --------------------------------------------------------------------------------

    def work_done(self, work: Work, event: WorkDone) -> None:
        """Training is over; what a faulty device makes of it comes here."""
        if isinstance(event, Trained) and isinstance(work, TrainingWork) and not work.stopped:
            self.counts.trained += 1
            event = self._meddle(work, event)
            self.counts.payload_bytes += len(work.payload)
        self.driver.work_done(work, event, self._clock())

    def count_training(self, work: Work) -> None:
        """Add up what a training has cost, where no battery does."""
        flops = self._manifest.step_flops * work.examples_seen
        self.counts.training_j += training_energy_j(self.profile, flops)
        self.note_training(round_of(work), training_seconds(self.profile, flops))

    def note_training(self, round_number: int, seconds: float) -> None:
        """A training has taken so long, whether it came to an end or not."""
        if round_number == 0:
            return  # a check of a release is no round's
        spent = self.counts.round_s
        spent[round_number] = spent.get(round_number, 0.0) + seconds

    def _begin_round(self, round_number: int) -> None:
        """Invited: what passes from here on is for this round."""
        self._end_round()
        traffic = self.link.traffic
        self._working = (round_number, traffic.sent_bytes, traffic.received_bytes)

    def _end_round(self) -> None:
        """Settled, given up, or something new: add what the bytes took at the profile's rates."""
        if self._working is None:
            return
        (number, sent, received), self._working = self._working, None
        traffic = self.link.traffic
        sent, received = traffic.sent_bytes - sent, traffic.received_bytes - received
        self.note_training(number, transfer_seconds(self.profile, sent, received))

    def _meddle(self, work: TrainingWork, event: Trained) -> Trained:
        """What a device that means harm makes of its update; anybody else's stays as it is."""
        fault = self._fault
        if fault is None or event.sealed.round < fault.round:
            return event
        if fault.kind == "garbage":
            return self._spoil(work, event)
        if fault.kind not in ATTACKS:
            return event
        work.payload, examples = spoil(
            fault.kind,
            work.payload,
            event.sealed.num_examples,
            self._manifest.schema.shared,
            codec=work.order.codec,
            amount=fault.amount,
        )
        forged = msgspec.structs.replace(
            event.sealed,
            payload_bytes=len(work.payload),
            payload_digest=hashlib.sha256(work.payload).digest(),
            num_examples=examples,
        )
        return Trained(forged)

    def _spoil(self, work: TrainingWork, event: Trained) -> Trained:
        """An update that is signed, whole and wrong: one byte of its payload is another."""
        at = len(work.payload) // 2
        spoilt = bytearray(work.payload)
        spoilt[at] ^= 0xFF
        work.payload = bytes(spoilt)
        digest = hashlib.sha256(work.payload).digest()
        return Trained(msgspec.structs.replace(event.sealed, payload_digest=digest))

    def evaluate(self, version: int, shared: Tensors) -> dict[str, float]:
        """What the device's hold-out says of a version, named as in an update's metrics.

        Its own part of the model is as it has been trained here.
        """
        tensors = self._manifest.complete(shared, self._shelf.personal())
        model = Model(version, tensors, artefact=self._manifest.artefact)
        result = self._task.trainer(self.info).evaluate(model, Plan(), stop=lambda: False)
        if not result.num_examples:
            return {}
        about = {f"base_{name}": value for name, value in result.metrics.items()}
        return about | {"base_loss": result.loss, "base_examples": result.num_examples}

    @property
    def energy_j(self) -> float:
        """What taking part has cost so far, by the profile: training, bytes, radio tails."""
        return self.counts.training_j + self.radio_j

    @property
    def radio_j(self) -> float:
        """What its bytes have cost, and the tails of its radio."""
        traffic = self.link.traffic
        return transfer_energy_j(
            self.profile,
            traffic.sent_bytes,
            traffic.received_bytes,
            sessions=self.counts.invited,
        )

    # -- what it says of itself --------------------------------------------------------------

    def _observe(self, report: Report) -> None:
        counts = self.counts
        match report.what:
            case "invited":
                counts.invited += 1
                self._begin_round(int(report.detail.split()[1]))
            case "settled":
                self._end_round()
                if report.detail == "counted":
                    counts.counted += 1
                else:
                    counts.not_counted[report.detail] += 1
            case "come_back":
                counts.run_is_over = report.detail == "run_over"
            case "discarded" | "declined":
                self._end_round()
                counts.declined[report.detail] += 1

    def strike(self, round_number: int) -> None:
        """Called when the device has begun to train: what is to go wrong goes wrong now."""
        fault = self._fault
        if fault is None or round_number < fault.round:
            return
        if fault.kind == "garbage":
            self._send_garbage()
            return
        if self._struck or fault.kind in ATTACKS:
            return
        self._struck = True
        if fault.kind == "low_battery":
            self.gate_opens_at_s = self._clock() + fault.for_s
            self.driver.on_gate(GateClosed("battery_low"), self._clock())
            return
        self.gone = fault.kind == "vanish"
        self.away_until_s = self._clock() + fault.for_s
        self.link.drop()

    def _send_garbage(self) -> None:
        """Noise, a frame cut short, and a frame that another key has signed."""
        topic, frame = self.driver.will()
        address = topics.parse(topic)
        forged = bytearray(frames.seal(Leave(), address, self._signer))
        forged[frames.HEADER_BYTES - 1] ^= 0x01
        for garbage in (os.urandom(_GARBAGE_BYTES), frame[:-1], bytes(forged)):
            self.link.publish(topic, garbage)

    def _publish(self, topic: str, payload: bytes) -> None:
        self.link.publish(topic, payload)
