"""The description on the coordinator's side: who gets it, how much of it, and who is outdated."""

from pathlib import Path

import numpy as np
import pytest

from coordinator import downloads as module
from coordinator.config import Rounds
from coordinator.description import describe
from coordinator.downloads import Downloads
from coordinator.models import Models
from coordinator.store import Store
from tests.support.described import DescribedTask
from tests.support.loopback import Loopback
from tests.wire.make_descriptions import artefact_of, plain_manifest
from wire import (
    Description,
    Manifest,
    ManifestError,
    RemoteProtocolError,
    Report,
    chunk_count,
    frames,
    limits,
)
from wire.messages import (
    Available,
    Chunk,
    DescriptionOffer,
    DescriptionRequest,
    Message,
    Refused,
)
from wire.topics import Address, parse

CHUNK = 4_096
LARGEST = limits.TRANSFER_BYTES_MAX
OTHER = bytes(range(32))


class Desk:
    """Downloads without a broker: what is published stays here, and may count as not taken."""

    def __init__(self, directory: Path, *, described: bool = True) -> None:
        manifest = DescribedTask().model()
        store = Store(directory / "store.sqlite3")
        self.description = Description(manifest)
        self.sent: list[tuple[str, Message]] = []
        self.in_flight_bytes = 0
        self.downloads = Downloads(
            Models(manifest, store, "auto", 0.0),
            store,
            lambda message, device: self.sent.append((device, message)),
            lambda: self.in_flight_bytes,
            self.description if described else None,
        )
        self.downloads.chunk_bytes_max = CHUNK

    def ask(self, request: DescriptionRequest, *, device: str = "d", now_s: float = 0.0) -> None:
        self.downloads.serve(device, request, now_s)

    def chunks(self) -> list[Chunk]:
        return [message for _device, message in self.sent if isinstance(message, Chunk)]


def test_all_of_it_comes_in_chunks_of_the_smaller_link(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ask(DescriptionRequest(100_000, LARGEST))
    offer = desk.sent[0][1]
    assert isinstance(offer, DescriptionOffer)
    assert offer.chunk_bytes == CHUNK
    assert offer.payload_digest == desk.description.digest
    assert b"".join(chunk.data for chunk in desk.chunks()) == desk.description.payload
    assert len(desk.downloads) == 0


def test_whoever_has_it_is_told_so_and_sent_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ask(DescriptionRequest(CHUNK, LARGEST, desk.description.digest))
    assert [type(message) for _device, message in desk.sent] == [DescriptionOffer]
    assert len(desk.downloads) == 0


def test_no_more_is_sent_than_the_device_is_ready_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ask(DescriptionRequest(CHUNK, 3 * CHUNK - 1))
    assert [chunk.index for chunk in desk.chunks()] == [0, 1]
    transfer = desk.description.digest[:16]
    desk.ask(DescriptionRequest(CHUNK, 2 * CHUNK, b"", transfer, b"\x03"), now_s=10.0)
    assert [chunk.index for chunk in desk.chunks()] == [0, 1, 2, 3]
    desk.ask(DescriptionRequest(CHUNK, 1, b"", transfer, b"\x0f"), now_s=20.0)
    assert len(desk.chunks()) == 4
    # The last chunk is a short one.
    count = chunk_count(desk.description.payload_bytes, CHUNK)
    bits = (1 << (count - 1)) - 1
    all_but_the_last = bits.to_bytes(-(-count // 8), "little")
    last = desk.description.payload_bytes % CHUNK
    desk.ask(DescriptionRequest(CHUNK, last, b"", transfer, all_but_the_last), now_s=30.0)
    assert [chunk.index for chunk in desk.chunks()][4:] == [count - 1]


def test_a_bitmap_of_another_transfer_counts_for_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ask(DescriptionRequest(CHUNK, LARGEST, OTHER, OTHER[:16], b"\xff\xff"))
    assert len(desk.chunks()) == chunk_count(desk.description.payload_bytes, CHUNK)


def test_many_devices_wait_for_the_broker_and_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_BYTES", 4 * CHUNK)
    desk = Desk(tmp_path)
    desk.in_flight_bytes = 4 * CHUNK
    for number in range(20):
        desk.ask(DescriptionRequest(CHUNK, LARGEST), device=f"d{number}")
    assert desk.chunks() == []
    assert len(desk.downloads) == 20
    desk.in_flight_bytes = 0
    desk.downloads.send()
    count = chunk_count(desk.description.payload_bytes, CHUNK)
    assert len(desk.chunks()) == 20 * count
    served = [device for device, message in desk.sent if isinstance(message, Chunk)]
    assert served == [f"d{number}" for number in range(20) for _ in range(count)]


def test_a_device_that_asks_all_the_time_is_left_to_its_next_try(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for _ in range(100):
        desk.ask(DescriptionRequest(CHUNK, LARGEST))
    offers = [message for _device, message in desk.sent if isinstance(message, DescriptionOffer)]
    assert len(offers) == 4


def test_chunks_that_are_too_small_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError):
        Desk(tmp_path).ask(DescriptionRequest(limits.CHUNK_BYTES_MIN - 1, LARGEST))


def test_without_one_to_give_the_answer_says_why(tmp_path: Path) -> None:
    desk = Desk(tmp_path, described=False)
    desk.ask(DescriptionRequest(CHUNK, LARGEST))
    [(_device, refusal)] = desk.sent
    assert isinstance(refusal, Refused)
    assert (refusal.kind, refusal.reason) == (DescriptionRequest.KIND, "too_large")


# -- at the start ------------------------------------------------------------------------------


def test_a_model_that_is_too_large_to_be_sent_is_said_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TRANSFER_BYTES_MAX", 1_000)
    reports: list[Report] = []
    store = Store(tmp_path / "store.sqlite3")
    assert describe(DescribedTask().model(), store, reports.append) is None
    assert [report.what for report in reports] == ["description_too_large"]


def test_what_changes_between_two_runs_is_said_once(tmp_path: Path) -> None:
    reports: list[Report] = []
    store = Store(tmp_path / "store.sqlite3")
    for frozen in (0.25, 0.25, 0.5, 0.5):
        describe(DescribedTask(frozen=frozen).model(), store, reports.append)
    assert [report.what for report in reports] == ["description_changed"]


def test_an_artefact_of_other_tensors_is_an_error_at_the_start(tmp_path: Path) -> None:
    class Wrong(DescribedTask):
        def model(self) -> Manifest:
            other = artefact_of(Manifest({"w": np.zeros(3, np.float32)}))
            return plain_manifest(artefact=other)

    with pytest.raises(ManifestError, match="the artefact's parameters"):
        Loopback(tmp_path, count=0, rounds=Rounds(), task=Wrong())


# -- who is outdated ---------------------------------------------------------------------------


def listening(directory: Path) -> tuple[Loopback, list[tuple[str, Message]]]:
    """Two devices whose own drivers say nothing, and all that the coordinator says."""
    rounds = Rounds(count=2, cohort=1, quorum=1.0, deadline_s=600.0)
    loopback = Loopback(directory, count=2, rounds=rounds, task=DescribedTask())
    sent: list[tuple[str, Message]] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        sent.append((parse(topic).device, frames.decode(frames.parse(data), parse(topic))))
        return []

    loopback.tamper = listen
    loopback.coordinator.start(loopback.now_s)
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    return loopback, sent


def check_in(number: int, digest: bytes, *, schema: bytes = b"") -> Available:
    known = bytes.fromhex(DescribedTask().model().schema.digest)
    return Available(number, 3_600.0, 0, 0, schema or known, description_digest=digest)


@pytest.mark.parametrize("schema", [b"", OTHER])
def test_another_description_is_outdated_whatever_the_schema(tmp_path: Path, schema: bytes) -> None:
    loopback, sent = listening(tmp_path)
    loopback.speak(0, check_in(1, OTHER, schema=schema))
    assert [message for _device, message in sent] == [
        Refused(Available.KIND, "description_outdated")
    ]
    assert loopback.incidents() == {}


@pytest.mark.parametrize("digest", ["ours", "none"])
def test_ours_and_none_are_taken(tmp_path: Path, digest: str) -> None:
    loopback, sent = listening(tmp_path)
    ours = Description(DescribedTask().model()).digest
    loopback.speak(0, check_in(1, ours if digest == "ours" else b""))
    assert not [message for _device, message in sent if isinstance(message, Refused)]


def test_a_round_does_not_wait_for_a_device_that_is_outdated(tmp_path: Path) -> None:
    loopback, _sent = listening(tmp_path)
    for number in (0, 1):
        loopback.speak(number, check_in(1, b""))
    for _ in range(5):
        loopback.now_s += 10.0
        loopback.coordinator.wake(loopback.now_s)
    waited = set(loopback.coordinator.rounds.round.waiting_for)
    assert waited
    for number in (0, 1):
        loopback.speak(number, check_in(2, OTHER))
    assert not set(loopback.coordinator.rounds.round.waiting_for) & waited


def test_a_repeated_check_in_tells_nobody_anything(tmp_path: Path) -> None:
    loopback, sent = listening(tmp_path)
    for _ in range(3):
        loopback.speak(0, check_in(1, OTHER))
    assert len(sent) == 1


def test_a_stranger_gets_no_description(tmp_path: Path) -> None:
    loopback, sent = listening(tmp_path)
    address = Address("toy", "00112233aabbccdd", "up")
    request = DescriptionRequest(CHUNK, LARGEST)
    data = frames.seal(request, address, loopback.signers[0])
    loopback.coordinator.on_frame(address.topic, data, loopback.now_s)
    assert sent == []
    assert loopback.incidents() == {("-", "unknown_sender"): 1}
