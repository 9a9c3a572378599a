"""A model on its way down that is cut, resumed, spoiled, and has no room."""

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import quantization
from coordinator.models import Models
from coordinator.store import Store
from edge_sdk.download import Download, Downloads
from edge_sdk.parts import PartFile, PartFiles, SpoiledPartError
from wire import Manifest, RemoteProtocolError, chunk_count
from wire.chunks import held, split
from wire.messages import Chunk, ModelOffer

CHUNK = 4_096
VALUES = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    store = Store(tmp_path_factory.mktemp("coordinator") / "store.sqlite3")
    yield Models(Manifest({"w": VALUES}), store, "auto", 0.0)
    store.close()


class Sender:
    """A coordinator that offers one model in chunks."""

    def __init__(self, models: Models, chunk_bytes: int = CHUNK) -> None:
        bundle = models.bundle(0, -1)
        assert bundle is not None
        self.payload = bundle.payload
        self.offer = ModelOffer(
            bundle.digest[:16],
            0,
            bundle.from_version,
            len(bundle.payload),
            bundle.digest,
            chunk_bytes,
            models.digest,
        )
        self.count = chunk_count(len(self.payload), chunk_bytes)

    def chunk(self, index: int) -> Chunk:
        data = split(self.payload, self.offer.chunk_bytes, index)
        return Chunk(self.offer.transfer_id, index, data)


def download(models: Models, parts: PartFiles | None) -> Download:
    return Download(0, models.digest, -1, models.schema, parts)


def half(models: Models, parts: PartFiles) -> tuple[Sender, Download]:
    sender, down = Sender(models), download(models, parts)
    down.announce(sender.offer)
    for index in range(0, sender.count, 2):
        down.add(sender.chunk(index))
    return sender, down


def test_a_new_process_asks_for_the_other_half_and_has_the_model(
    tmp_path: Path, models: Models
) -> None:
    sender, _ = half(models, PartFiles(tmp_path))
    again = download(models, PartFiles(tmp_path))
    assert again.resume() == -(-sender.count // 2)
    request = again.request(131_072)
    assert (request.transfer_id, request.chunk_bytes_max) == (sender.offer.transfer_id, CHUNK)
    assert list(held(request.received, sender.count)) == list(range(0, sender.count, 2))
    again.announce(sender.offer)
    arrived = [again.add(sender.chunk(index)) for index in range(1, sender.count, 2)]
    assert arrived[-1]
    assert not any(arrived[:-1])
    np.testing.assert_array_equal(again.tensors({})["w"], models.served["w"])
    again.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_smaller_packets_begins_anew(tmp_path: Path, models: Models) -> None:
    """A bitmap counts in chunks of one size; half a chunk is none."""
    _, _ = half(models, PartFiles(tmp_path))
    again = download(models, PartFiles(tmp_path))
    again.resume()
    request = again.request(3_072)
    assert (request.transfer_id, request.received, request.chunk_bytes_max) == (b"", b"", 3_072)
    smaller = Sender(models, 3_072)
    again.announce(smaller.offer)
    assert list(held(again.request(3_072).received, smaller.count)) == []


def test_another_payload_of_the_same_version_begins_anew(tmp_path: Path, models: Models) -> None:
    """What the coordinator would send now is not what it sent then: other deltas are kept."""
    _, _ = half(models, PartFiles(tmp_path))
    again = download(models, PartFiles(tmp_path))
    again.resume()
    other = Sender(models)
    digest = hashlib.sha256(other.payload[::-1]).digest()
    again.announce(ModelOffer(digest[:16], 0, -1, len(other.payload), digest, CHUNK, models.digest))
    assert not any(again.request(CHUNK).received)


def test_a_part_of_another_federation_s_model_is_dropped(tmp_path: Path, models: Models) -> None:
    half(models, PartFiles(tmp_path))
    stranger = Download(0, b"x" * 32, -1, models.schema, PartFiles(tmp_path))
    with pytest.raises(SpoiledPartError, match="another transfer"):
        stranger.resume()
    assert list(tmp_path.iterdir()) == []
    assert stranger.request(CHUNK).received == b""


def test_an_offer_beyond_its_bounds_makes_no_file(tmp_path: Path, models: Models) -> None:
    offer = Sender(models).offer
    bound = 2 * quantization.payload_bytes_max(models.schema)
    huge = ModelOffer(offer.transfer_id, 0, -1, bound, offer.payload_digest, CHUNK, models.digest)
    down = download(models, PartFiles(tmp_path))
    with pytest.raises(RemoteProtocolError, match="at most"):
        down.announce(huge)
    assert list(tmp_path.iterdir()) == []


def test_one_chunk_makes_no_file(tmp_path: Path, models: Models) -> None:
    sender = Sender(models, 1_000_000)
    down = download(models, PartFiles(tmp_path))
    down.announce(sender.offer)
    assert list(tmp_path.iterdir()) == []
    assert down.add(sender.chunk(0))
    np.testing.assert_array_equal(down.tensors({})["w"], models.served["w"])


def test_a_full_disk_ends_the_download_with_its_reason_and_gives_its_room_back(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: Counter[str] = Counter()
    downloads = Downloads(
        models.schema, PartFiles(tmp_path), lambda report: noted.update([report.what])
    )
    down = downloads.want(0, models.digest, lambda: -1)
    sender = Sender(models)
    assert list(downloads.take(sender.offer)) == []
    assert list(downloads.take(sender.chunk(0))) == []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartFile, "put", full)
    assert list(downloads.take(sender.chunk(1))) == [(down, "disk_failed")]
    assert noted == {"disk_failed": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_spoiled_part_is_counted_and_the_download_begins(tmp_path: Path, models: Models) -> None:
    noted: Counter[str] = Counter()
    half(models, PartFiles(tmp_path))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    downloads = Downloads(
        models.schema, PartFiles(tmp_path), lambda report: noted.update([report.what])
    )
    down = downloads.want(0, models.digest, lambda: -1)
    assert noted == {"part_spoiled": 1}
    assert down.request(CHUNK).received == b""


@pytest.mark.slow
def test_chunks_of_a_download_are_not_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal(500_000).astype(np.float32)
    store = Store(tmp_path / "store.sqlite3")
    large = Models(Manifest({"w": values}), store, "auto", 0.0)
    sender = Sender(large, 131_072)
    down = download(large, PartFiles(tmp_path / "models"))
    down.announce(sender.offer)
    tracemalloc.start()
    for index in range(sender.count - 1):
        down.add(sender.chunk(index))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sender.payload) > 4 * 131_072
    assert peak_bytes < 3 * 131_072
    store.close()
