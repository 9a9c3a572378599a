"""Devices that have their model from the coordinator: fetched once, whatever happens on the way."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import Rounds
from edge_sdk import Device, DeviceDriver, NoModelYetError
from edge_sdk.described import BELIEVED_EVERY_S, DescribedDriver
from edge_sdk.description import DescriptionDownload, FileDescriptions, MemoryDescriptions
from edge_sdk.journal import SqliteJournal
from edge_sdk.ladder import Means, Room
from edge_sdk.newcomer import Newcomer
from edge_sdk.parts import PartFiles
from edge_sdk.session import Phase
from edge_sdk.signals import GateClosed, GateOpened
from tests.support.described import DescribedTask, TrainerOnly
from tests.support.loopback import Loopback
from wire import Description, RemoteProtocolError, Report, frames
from wire.errors import TooLargeError
from wire.limits import PACKET_BYTES_MIN, TRANSFER_BYTES_MAX
from wire.messages import (
    Available,
    Chunk,
    ComeBackAt,
    DescriptionOffer,
    DescriptionRequest,
    Message,
    Refused,
    Revoked,
)
from wire.topics import parse

ROUNDS = Rounds(count=3, cohort=3, quorum=1.0, deadline_s=60.0)
SIZE = Description(DescribedTask().model()).payload_bytes
CHUNK = PACKET_BYTES_MIN - 1_024


class Overheard(Loopback):
    """A loopback with small packets that remembers what devices ask and what they are sent."""

    def __init__(
        self,
        directory: Path,
        *,
        count: int = 1,
        rounds: Rounds = ROUNDS,
        order: random.Random | None = None,
        lossy: Callable[[], int] = lambda: 1,
        on_disk: bool = False,
    ) -> None:
        self.heard: list[Message] = []

        def listen(topic: str, data: bytes) -> list[bytes]:
            copies = lossy()
            self.heard.append(frames.decode(frames.parse(data), parse(topic)))
            return [data] * copies

        super().__init__(
            directory,
            count=count,
            rounds=rounds,
            order=order,
            tamper=listen,
            task=DescribedTask(),
            described=True,
            parts=lambda number: PartFiles(directory / f"parts-{number}") if on_disk else None,
        )
        self.packet_bytes_max = PACKET_BYTES_MIN

    def all_of(self, kind: type[Message]) -> list[Message]:
        """Every message of a kind that was sent so far."""
        return [message for message in self.heard if isinstance(message, kind)]

    @property
    def described_bytes(self) -> int:
        """Bytes of chunks of the description that were sent, also for nothing."""
        digest = Description(self._task.model()).digest
        return sum(
            len(message.data)
            for message in self.heard
            if isinstance(message, Chunk) and message.transfer_id == digest[:16]
        )

    def say(self, number: int, message: Message) -> None:
        """What the coordinator says to a device, or somebody repeats."""
        address = parse(self.devices[number].subscriptions[0])
        data = frames.seal(message, address, self.coordinator._keys.signer)
        self.devices[number].on_frame(address.topic, data, self.now_s)

    def go_on(self) -> None:
        """One packet; or, where nothing is under way, the next timer."""
        if not self.deliver():
            self.now_s = max(self.now_s, self._next_wake_s(self.now_s))
            self.coordinator.wake(self.now_s)
            for device in self.devices:
                device.wake(self.now_s)

    def reboot(self, number: int) -> None:
        """A device's process is killed, and begins again."""
        self.devices[number].on_link_down(self.now_s)
        self.devices[number] = self.boot_device(number)
        self.wake_device(number)

    def restart(self, task: DescribedTask) -> None:
        """The coordinator is killed; another model waits behind the same federation's name."""
        self.coordinator.store.close()
        self._task = task
        self.boot_coordinator().start(self.now_s)
        self.coordinator.on_link_up(self.packet_bytes_max, self.now_s)


def reported(loopback: Loopback, what: str) -> list[str]:
    return [report.detail for _number, report in loopback.device_reports if report.what == what]


# -- it works ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_devices_without_a_model_learn_what_devices_with_one_learn(tmp_path: Path) -> None:
    described = Overheard(tmp_path / "described", count=4)
    own = Loopback(tmp_path / "own", count=4, rounds=ROUNDS, task=DescribedTask())
    for loopback in (described, own):
        loopback.start()
        loopback.play()
        assert loopback.coordinator.finished
        assert {device.released.version for device in loopback.devices} == {3}
    assert described.coordinator.models.digest == own.coordinator.models.digest
    assert described.described_bytes == 4 * SIZE
    assert described.incidents() == {}


def test_a_device_says_nothing_but_that_it_wants_a_model_before_it_has_one(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.devices[0].on_link_up(PACKET_BYTES_MIN, 0.0)
    assert loopback.heard == []  # the gate is not open
    loopback.devices[0].on_gate(GateOpened(3_600.0), 0.0)
    assert [type(message) for message in loopback.heard] == [DescriptionRequest]
    assert loopback.devices[0].released is None
    assert loopback.devices[0].driver is None


def test_a_device_that_has_its_description_does_not_fetch_it_again(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.start()
    while loopback.deliver() and loopback.devices[0].driver is None:
        pass
    asked = len(loopback.all_of(DescriptionRequest))
    for _ in range(3):
        loopback.reboot(0)
        assert loopback.devices[0].driver is not None
    assert len(loopback.all_of(DescriptionRequest)) == asked


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_lost_and_doubled_packets_cost_time_and_nothing_else(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rounds = Rounds(count=2, cohort=2, quorum=0.5, deadline_s=300.0)
    loopback = Overheard(
        tmp_path,
        count=3,
        rounds=rounds,
        order=chance,
        lossy=lambda: chance.choice((0, 1, 1, 1, 2)),
    )
    loopback.start()
    loopback.play(until_s=5_000.0)
    assert loopback.coordinator.finished
    assert loopback.coordinator.models.version == 2


# -- the way down ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["on_disk", "in_memory"])
def test_a_process_killed_after_any_packet_goes_on_from_what_has_arrived(
    tmp_path: Path, kept: str
) -> None:
    on_disk = kept == "on_disk"
    for kill_after in range(0, 36, 3):
        directory = tmp_path / str(kill_after)
        directory.mkdir()
        loopback = Overheard(directory, on_disk=on_disk)
        loopback.start()
        for _ in range(kill_after):
            loopback.deliver()
        had = len(loopback.all_of(Chunk))
        loopback._wire.clear()
        loopback.reboot(0)
        while loopback.devices[0].driver is None:
            assert loopback.deliver()
        if on_disk:
            held = max(kill_after - 2, 0) * CHUNK  # the request and the offer come first
            assert loopback.described_bytes <= had * CHUNK + SIZE - min(held, SIZE - 1) + CHUNK
        assert loopback.journals[0].description() == Description(DescribedTask().model()).digest
        assert not list(directory.glob("parts-0/*"))
        loopback.coordinator.store.close()


def test_a_part_that_power_has_torn_costs_its_bytes_and_nothing_else(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, on_disk=True)
    loopback.start()
    for _ in range(12):
        loopback.deliver()
    [part] = (tmp_path / "parts-0").iterdir()
    for torn in (part.read_bytes()[:-7], b"", bytes(3_000)):
        part.write_bytes(torn)
        loopback._wire.clear()
        loopback.reboot(0)
        assert reported(loopback, "part_spoiled")
    while loopback.devices[0].driver is None:
        assert loopback.deliver()


def test_what_was_left_of_another_description_is_thrown_away(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, on_disk=True)
    loopback.start()
    for _ in range(12):
        loopback.deliver()
    loopback._wire.clear()
    loopback.restart(DescribedTask(frozen=0.5))
    loopback.reboot(0)
    while loopback.devices[0].driver is None:
        assert loopback.deliver()
    assert loopback.devices[0].driver.manifest.tensors["table"][0] == 0.5


def test_a_closed_gate_asks_for_nothing_and_keeps_what_comes(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.start()
    for _ in range(6):
        loopback.deliver()
    loopback.devices[0].on_gate(GateClosed("metered"), loopback.now_s)
    loopback._wire = loopback._wire[:3]
    while loopback.deliver():
        pass
    asked = len(loopback.all_of(DescriptionRequest))
    loopback.now_s += 1_000.0
    loopback.devices[0].wake(loopback.now_s)
    assert len(loopback.all_of(DescriptionRequest)) == asked
    assert "metered" in reported(loopback, "description_waits")
    loopback.devices[0].on_gate(GateOpened(3_600.0), loopback.now_s)
    while loopback.devices[0].driver is None:
        assert loopback.deliver()
    lost = SIZE - 7 * CHUNK
    assert loopback.described_bytes < 2 * SIZE - lost + 20 * CHUNK
    again = loopback.all_of(DescriptionRequest)[-1]
    assert isinstance(again, DescriptionRequest)
    assert again.received[0] == 0x7F  # four before it closed, three after


def test_no_more_comes_than_the_day_has_bytes_left_and_the_rest_comes_later(
    tmp_path: Path,
) -> None:
    loopback = Overheard(tmp_path)
    left = Room(traffic_bytes=30_000)
    loopback.means = lambda: Means(left)
    loopback.start()
    while loopback.deliver():
        pass
    assert 20_000 < loopback.described_bytes <= left.traffic_bytes
    loopback.means = lambda: Means(Room(traffic_bytes=1_000.0))
    for _ in range(5):
        loopback.now_s += 1_800.0
        loopback.devices[0].wake(loopback.now_s)
    while loopback.deliver():
        pass
    assert loopback.described_bytes <= left.traffic_bytes
    assert "bytes_too_few" in reported(loopback, "description_waits")
    loopback.means = Means
    loopback.now_s += 1_800.0
    loopback.devices[0].wake(loopback.now_s)
    while loopback.devices[0].driver is None:
        assert loopback.deliver()
    assert loopback.described_bytes == SIZE


def test_a_request_that_the_day_has_no_bytes_for_is_not_sent_whatever_the_last_look_said(
    tmp_path: Path,
) -> None:
    loopback = Overheard(tmp_path)
    device: Any = loopback.devices[0]
    asked: list[tuple[int, bool]] = []

    def may_send(packet_bytes: int, last_word: bool) -> bool:  # noqa: FBT001 - a callback
        asked.append((packet_bytes, last_word))
        return len(asked) > 2

    device._now._may_send = may_send
    loopback.start()
    for _ in range(2):
        assert not loopback.all_of(DescriptionRequest)
        loopback.now_s += 1_800.0
        device.wake(loopback.now_s)
    while device.driver is None:
        assert loopback.deliver()
    assert reported(loopback, "description_waits") == ["bytes_too_few"]
    assert all(100 < size < 1_000 and not last_word for size, last_word in asked)


@pytest.mark.slow
def test_nobody_is_asked_more_often_than_every_five_minutes_for_long(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, lossy=lambda: 0)
    loopback.start()
    while loopback.now_s < 1_000.0 + 86_400.0:
        loopback.now_s = loopback.devices[0].next_wake_s
        loopback.devices[0].wake(loopback.now_s)
    assert 280 <= len(loopback.all_of(DescriptionRequest)) <= 300


def test_a_coordinator_that_is_back_is_asked_at_once(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, lossy=lambda: 0)
    loopback.start()
    for _ in range(8):
        loopback.now_s = loopback.devices[0].next_wake_s
        loopback.devices[0].wake(loopback.now_s)
    loopback.say(0, ComeBackAt(1, 0.0, "coordinator_is_back"))
    assert loopback.devices[0].next_wake_s == loopback.now_s


# -- what comes that should not ----------------------------------------------------------------


def announced(payload: bytes, chunk_bytes: int = CHUNK) -> DescriptionOffer:
    digest = hashlib.sha256(payload).digest()
    return DescriptionOffer(digest[:16], len(payload), digest, chunk_bytes)


def test_a_wrong_description_is_counted_and_asked_for_less_and_less(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, lossy=lambda: 0)
    loopback.start()
    payload = b"this describes nothing"
    pauses = []
    for _ in range(12):
        asked = len(loopback.all_of(DescriptionRequest))
        loopback.say(0, announced(payload))
        loopback.say(0, Chunk(announced(payload).transfer_id, 0, payload))
        due_s = loopback.devices[0].next_wake_s
        pauses.append(due_s - loopback.now_s)
        # A link that comes and goes makes it no faster.
        loopback.devices[0].on_link_down(loopback.now_s)
        loopback.devices[0].on_link_up(PACKET_BYTES_MIN, loopback.now_s)
        assert len(loopback.all_of(DescriptionRequest)) == asked
        loopback.now_s = due_s
        loopback.devices[0].wake(due_s)
    assert pauses == [min(30.0 * 2**n, 21_600.0) for n in range(12)]
    assert loopback.devices[0]._now.incidents["unsupported_version"] == 12
    assert loopback.devices[0].driver is None


def test_an_old_offer_cannot_throw_away_what_has_arrived(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.start()
    for _ in range(10):
        loopback.deliver()
    loopback.say(0, announced(b"of last year"))
    assert loopback.devices[0]._now.incidents["unexpected"] == 1
    while loopback.devices[0].driver is None:
        assert loopback.deliver()
    assert loopback.described_bytes == SIZE


def test_nothing_is_taken_that_was_not_asked_for(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    payload = Description(DescribedTask().model()).payload
    offer = announced(payload, len(payload))
    loopback.say(0, offer)
    loopback.say(0, Chunk(offer.transfer_id, 0, payload))
    assert loopback.devices[0].driver is None


def test_an_offer_past_its_bounds_or_against_itself_makes_no_file(tmp_path: Path) -> None:
    parts = PartFiles(tmp_path)
    good = announced(bytes(10_000))
    for wrong, error in (
        (DescriptionOffer(bytes(16), 10_000, good.payload_digest, CHUNK), RemoteProtocolError),
        (
            DescriptionOffer(good.transfer_id, TRANSFER_BYTES_MAX + 1, good.payload_digest, 8_192),
            TooLargeError,
        ),
        (DescriptionOffer(good.transfer_id, 1_000_000, good.payload_digest, 10), TooLargeError),
    ):
        with pytest.raises(error):
            DescriptionDownload(b"", parts).announce(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_out_stops_asking(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.start()
    loopback.say(0, Revoked("operator"))
    assert loopback.devices[0].revoked
    assert loopback.devices[0].next_wake_s is None
    loopback.devices[0] = loopback.boot_device(0)
    assert loopback.devices[0].revoked


def test_a_refusal_is_said_and_asked_again_later(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, lossy=lambda: 0)
    loopback.start()
    loopback.say(0, Refused(DescriptionRequest.KIND, "too_large", "no room on the wire"))
    assert reported(loopback, "refused") == ["too_large: no room on the wire"]
    assert loopback.devices[0].next_wake_s == loopback.now_s + 300.0


def test_a_disk_that_is_full_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = Overheard(tmp_path)

    def full(_self: object, _digest: bytes, _payload: bytes) -> None:
        raise OSError("no space left on device")

    loopback.start()
    with monkeypatch.context() as patched:
        patched.setattr(MemoryDescriptions, "save", full)
        while loopback.deliver():
            pass
    assert "no space left" in reported(loopback, "description_failed")[0]
    assert loopback.journals[0].description() == b""
    loopback.now_s = loopback.devices[0].next_wake_s
    loopback.devices[0].wake(loopback.now_s)
    while loopback.devices[0].driver is None:
        assert loopback.deliver()


# -- another model -----------------------------------------------------------------------------


def tables(loopback: Loopback) -> list[float]:
    """The frozen values that each device has, where it has a model."""
    return [
        device.driver.manifest.tensors["table"][0]
        for device in loopback.devices
        if device.driver is not None
    ]


@pytest.mark.slow
def test_another_file_behind_the_same_schema_reaches_every_device(tmp_path: Path) -> None:
    loopback = Overheard(
        tmp_path, count=3, rounds=Rounds(count=6, cohort=2, quorum=1.0, deadline_s=60.0)
    )
    loopback.start()
    while loopback.coordinator.models.version < 2:
        loopback.go_on()
    loopback.restart(DescribedTask(frozen=0.5, file=b"another file"))
    assert [r.what for r in loopback.reports].count("description_changed") == 1
    loopback.play()
    assert loopback.coordinator.finished
    assert tables(loopback) == [0.5, 0.5, 0.5]
    assert {device.released.version for device in loopback.devices} == {6}
    assert {device.released.artefact.data for device in loopback.devices} == {b"another file"}
    # What a device has for itself, it keeps.
    assert any(device.released.tensors["own"].any() for device in loopback.devices)
    digests = [journal.description() for journal in loopback.journals]
    assert digests == [Description(loopback._task.model()).digest] * 3
    assert all(len(kept.payloads) == 1 for kept in loopback.descriptions)


def test_the_same_model_again_is_no_change(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.restart(DescribedTask())
    assert "description_changed" not in [r.what for r in loopback.reports]


def test_devices_with_a_model_of_their_own_hear_nothing_of_it(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=1, rounds=ROUNDS, task=DescribedTask())
    loopback.coordinator.store.close()
    loopback._task = DescribedTask(frozen=0.5)
    loopback.boot_coordinator().start(loopback.now_s)
    sent: list[Message] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        sent.append(frames.decode(frames.parse(data), parse(topic)))
        return [data]

    loopback.tamper = listen
    loopback.start()
    loopback.deliver()
    assert not [message for message in sent if isinstance(message, Refused)]


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(0, 24, 2))
def test_a_sealed_update_is_delivered_before_another_model_is_fetched(
    tmp_path: Path, steps: int
) -> None:
    """The coordinator dies, with all that is under way, and comes back with another file."""
    rounds = Rounds(count=3, cohort=2, quorum=0.5, deadline_s=60.0)
    loopback = Overheard(tmp_path, count=3, rounds=rounds, order=random.Random(steps))
    loopback.start()
    sealed: set[bytes] = set()
    while not sealed or (steps := steps - 1) >= 0:
        loopback.go_on()
        drivers = [device.driver for device in loopback.devices if device.driver is not None]
        works = [driver.session.sealed for driver in drivers]
        sealed |= {update.update_id for update in works if update is not None}
    loopback._wire.clear()
    loopback.restart(DescribedTask(frozen=0.5))
    loopback.play(until_s=2_000.0)
    assert loopback.coordinator.finished
    assert tables(loopback) == [0.5, 0.5, 0.5]
    settled = {line.update_id for journal in loopback.journals for line in journal.history}
    assert sealed <= settled


def test_a_word_that_is_repeated_makes_nobody_run_in_circles(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, rounds=Rounds(count=1, cohort=1, quorum=1.0, deadline_s=60.0))
    loopback.start()
    while loopback.devices[0].driver is None:
        assert loopback.deliver()
    old = Refused(Available.KIND, "description_outdated")
    boots = loopback.journals[0].boot
    for _ in range(20):
        loopback.say(0, old)
        for _ in range(5):
            loopback.deliver()
    assert loopback.journals[0].boot <= boots + 2
    loopback.now_s += BELIEVED_EVERY_S
    loopback.play()
    assert loopback.coordinator.finished
    assert loopback.described_bytes == SIZE  # it asked, and nothing was new


def test_work_is_not_ended_by_that_word(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path, rounds=Rounds(count=1, cohort=1, quorum=1.0, deadline_s=60.0))
    loopback.start()
    while not loopback._works:
        loopback.go_on()
    driver = loopback.devices[0].driver
    loopback.say(0, Refused(Available.KIND, "description_outdated"))
    assert loopback.devices[0].driver is driver
    assert driver.session.phase is Phase.TRAINING
    loopback.play()
    assert loopback.journals[0].history[0].counted


def test_a_described_driver_can_be_called_like_a_driver() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(DeviceDriver) - public(DescribedDriver) == {"resting"}
    assert public(Newcomer) <= public(DescribedDriver) | {"found"}


# -- where it is kept --------------------------------------------------------------------------


def test_a_file_is_whole_or_not_there_and_the_only_one(tmp_path: Path) -> None:
    shelf = FileDescriptions(tmp_path / "models")
    first, second = (Description(DescribedTask(frozen=f).model()) for f in (0.25, 0.5))
    assert shelf.load(first.digest) is None
    for description in (first, second):
        shelf.save(description.digest, description.payload)
    (tmp_path / "models" / "description-torn.tmp").write_bytes(b"torn")
    shelf.retain(second.digest)
    assert shelf.load(first.digest) is None
    found = shelf.load(second.digest)
    assert found is not None
    assert found.schema == DescribedTask().model().schema
    [path] = (tmp_path / "models").iterdir()
    for damage in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"!"):
        path.write_bytes(damage)
        assert shelf.load(second.digest) is None


class WithoutModel(DescribedTask):
    def model(self) -> Any:
        """It comes from the coordinator."""
        return None


@pytest.mark.parametrize("task", [TrainerOnly(), WithoutModel()])
def test_an_app_hears_that_there_is_no_model_yet_and_then_has_version_0(
    tmp_path: Path, task: Any
) -> None:
    device = Device(task, tmp_path)
    with pytest.raises(NoModelYetError, match="no model yet"):
        _ = device.model
    journal = SqliteJournal(tmp_path)
    description = Description(DescribedTask(file=b"a file").model())
    FileDescriptions(tmp_path / "models").save(description.digest, description.payload)
    journal.note_description(description.digest)
    journal.begin_boot()
    journal.close()
    assert device.model.version == 0
    assert device.model.artefact is not None
    assert device.model.artefact.data == b"a file"
    assert device.status.description == description.digest.hex()


def test_an_app_with_a_model_of_its_own_is_asked_for_it_alone(tmp_path: Path) -> None:
    assert Device(DescribedTask(frozen=0.75), tmp_path).model.tensors["table"][0] == 0.75


def test_reports_are_few(tmp_path: Path) -> None:
    loopback = Overheard(tmp_path)
    loopback.start()
    while loopback.devices[0].driver is None:
        assert loopback.deliver()
    whats = [report.what for _number, report in loopback.device_reports]
    assert whats == ["description_wanted", "description_fetched"]
    assert isinstance(loopback.device_reports[0][1], Report)
