"""Coordinator and devices in one thread on a wire that is a list: any order, any loss, no sleep."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordinator import STORE_FILE, Coordinator, FederationConfig, Store, init_state, load_identity
from coordinator.config import Aggregation, Federation, Rounds, Uplink
from edge_sdk import DeviceDriver, DeviceInfo
from edge_sdk.described import DescribedDriver
from edge_sdk.description import MemoryDescriptions
from edge_sdk.journal import Enrolment, MemoryJournal
from edge_sdk.ladder import Means
from edge_sdk.models import MemoryShelf
from edge_sdk.newcomer import Newcomer
from edge_sdk.parts import PartStore
from edge_sdk.signals import GateOpened
from edge_sdk.work import Work
from fleet import SeededSecrets, StubCrypto
from fleet.toy import ToyTask
from wire import Manifest, Message, Report, frames
from wire.limits import PACKET_BYTES_MAX_DEFAULT
from wire.topics import Address, parse

Packet = tuple[str, bytes]
Tamper = Callable[[str, bytes], Sequence[bytes]]


def faithful(_topic: str, data: bytes) -> Sequence[bytes]:
    """The wire as one would wish it."""
    return (data,)


class Loopback:
    """A federation whose time and wire belong to the test.

    Args:
        directory: for the coordinator's real store.
        count: devices.
        rounds: the file's `[rounds]`.
        order: shuffles what is under way; None delivers in order.
        tamper: what becomes of each packet on its way: none, one or several.
        evaluator: what `task.test()` returned.
        uplink: the file's `[uplink]`.
        aggregation: the file's `[aggregation]`.
        task: the task object.
        device_model: what `task.model()` returns on devices, if that is another.
        described: whether devices have their model from the coordinator.
        parts: where a device puts a description together, by its number.
    """

    def __init__(
        self,
        directory: Path,
        *,
        count: int,
        rounds: Rounds,
        order: random.Random | None = None,
        tamper: Tamper = faithful,
        evaluator: Any = None,
        uplink: Uplink = Uplink(),  # noqa: B008 - it cannot be changed
        aggregation: Aggregation = Aggregation(),  # noqa: B008 - as above
        task: Any = ToyTask(),  # noqa: B008 - it holds nothing
        device_model: Manifest | None = None,
        described: bool = False,
        parts: Callable[[int], PartStore | None] = lambda _number: None,
    ) -> None:
        self.now_s = 1_000.0
        self.crypto = StubCrypto()
        self.reports: list[Report] = []
        self.tamper = tamper
        self.config = FederationConfig(
            federation=Federation(name="toy"),
            rounds=rounds,
            uplink=uplink,
            aggregation=aggregation,
        )
        self.directory = directory
        self.free_bytes = 2**62
        self._order = order
        self._evaluator = evaluator
        self._task = task
        self._device_model = device_model or task.model()
        self._described = described
        self._parts = parts
        self.device_reports: list[tuple[int, Report]] = []
        self.packet_bytes_max = PACKET_BYTES_MAX_DEFAULT
        self.means: Callable[[], Means] = Means
        self._wire: list[Packet] = []
        self._works: list[tuple[Any, Work]] = []
        init_state(directory / "coordinator", SeededSecrets(1, "coordinator"))
        self.coordinator = self.boot_coordinator()
        self.signers = [
            self.crypto.signer(SeededSecrets(1, f"device/{number}").token(32))
            for number in range(count)
        ]
        self.journals: list[MemoryJournal] = []
        self.descriptions = [MemoryDescriptions() for _ in range(count)]
        self._shelves = [MemoryShelf() for _ in range(count)]
        for signer in self.signers:
            name = self.coordinator.admit(signer.public_key, "unknown", self.now_s)
            key = self.coordinator.public_key
            enrolment = Enrolment(name, "toy", key, "mqtt://localhost", "", b"")
            self.journals.append(MemoryJournal(enrolment))
        self.devices: list[Any] = [self.boot_device(number) for number in range(count)]

    def boot_coordinator(self) -> Coordinator:
        """A coordinator on what is on disk, as after a crash."""
        state = self.directory / "coordinator"
        self.coordinator = Coordinator(
            config=self.config,
            manifest=self._task.model(),
            evaluator=self._evaluator,
            store=Store(state / STORE_FILE),
            keys=load_identity(state, self.crypto),
            crypto=self.crypto,
            publish=self._send,
            observe=self.reports.append,
            now_s=self.now_s,
            first_gathering=0,
            free_bytes=lambda: self.free_bytes,
        )
        return self.coordinator

    def boot_device(self, number: int) -> DeviceDriver | DescribedDriver:
        """A device on what is on its disk, as after a crash; it is nobody's yet."""
        journal, enrolment = self.journals[number], self.journals[number].enrolment
        assert enrolment is not None
        signer = self.signers[number]

        whole: list[DeviceDriver | DescribedDriver] = []

        def observe(report: Report) -> None:
            self.device_reports.append((number, report))

        def make_driver(manifest: Manifest, digest: bytes = b"") -> DeviceDriver:
            info = DeviceInfo(seed=number, manifest=manifest)
            return DeviceDriver(
                manifest=manifest,
                make_trainer=lambda: self._task.trainer(info),
                journal=journal,
                shelf=self._shelves[number],
                enrolment=enrolment,
                signer=signer,
                crypto=self.crypto,
                publish=self._send,
                start_work=lambda work: self._works.append((whole[0], work)),
                observe=observe,
                description_digest=digest,
            )

        def make_newcomer(have_digest: bytes) -> Newcomer:
            return Newcomer(
                have_digest=have_digest,
                journal=journal,
                descriptions=self.descriptions[number],
                enrolment=enrolment,
                signer=signer,
                crypto=self.crypto,
                publish=self._send,
                observe=observe,
                means=lambda: self.means(),  # noqa: PLW0108 - a test sets it later
                parts=self._parts(number),
            )

        if not self._described:
            whole.append(make_driver(self._device_model))
        else:
            whole.append(
                DescribedDriver(
                    journal=journal,
                    descriptions=self.descriptions[number],
                    make_driver=make_driver,
                    make_newcomer=make_newcomer,
                )
            )
        return whole[0]

    def _send(self, topic: str, data: bytes) -> None:
        self._wire += [(topic, kept) for kept in self.tamper(topic, data)]

    # -- what a test does --------------------------------------------------------------------

    def start(self) -> None:
        """Everybody is there, with a full battery."""
        self.coordinator.start(self.now_s)
        self.coordinator.on_link_up(self.packet_bytes_max, self.now_s)
        for number in range(len(self.devices)):
            self.wake_device(number)

    def wake_device(self, number: int) -> None:
        """Link and gate of a device that has just started."""
        self.devices[number].on_gate(GateOpened(3_600.0), self.now_s)
        self.devices[number].on_link_up(self.packet_bytes_max, self.now_s)

    def deliver(self) -> bool:
        """One packet, or one piece of training; False when nothing is under way."""
        if self._works and (not self._wire or (self._order and self._order.random() < 0.3)):
            at = self._order.randrange(len(self._works)) if self._order else 0
            driver, work = self._works.pop(at)
            driver.work_done(work, work.run(), self.now_s)
            return True
        if not self._wire:
            return False
        at = self._order.randrange(len(self._wire)) if self._order else 0
        topic, data = self._wire.pop(at)
        if topic.endswith("/up"):
            self.coordinator.on_frame(topic, data, self.now_s)
            return True
        for device in self.devices:
            if topic in device.subscriptions:
                device.on_frame(topic, data, self.now_s)
        return True

    def play(self, *, until_s: float = 600.0) -> None:
        """Deliver everything, then let time pass to the next timer, until every round is closed."""
        end_s = self.now_s + until_s
        while self.now_s < end_s:
            while self.deliver():
                pass
            over = self.coordinator.finished
            if not over:
                self.now_s = max(self.now_s, self._next_wake_s(end_s))
            self.coordinator.wake(self.now_s)
            for device in self.devices:
                device.wake(self.now_s)
            if over and not self.deliver():
                return

    def _next_wake_s(self, end_s: float) -> float:
        due = [device.next_wake_s for device in self.devices]
        due.append(self.coordinator.next_wake_s)
        return min((at_s for at_s in due if at_s is not None), default=end_s)

    def inject(self, number: int, data: bytes) -> None:
        """Bytes on a device's uplink topic, from whomever."""
        self.coordinator.on_frame(self.address(number).topic, data, self.now_s)

    def speak(self, number: int, message: Message) -> None:
        """A message that a device has signed, whatever its own driver thinks."""
        self.inject(number, frames.seal(message, self.address(number), self.signers[number]))

    def address(self, number: int) -> Address:
        """A device's uplink."""
        return parse(self.devices[number].subscriptions[0].replace("/down", "/up"))

    def incidents(self) -> dict[tuple[str, str], int]:
        """Typed errors so far: (device, reason) -> how often."""
        self.coordinator.stop()
        return {
            (row["device"], row["reason"]): row["count"]
            for row in self.coordinator.store.incidents()
        }
