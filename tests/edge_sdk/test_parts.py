"""Half of a download on disk: what is taken for held was written, whatever became of the file."""

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.parts import PARTS_MAX, PartFiles, SpoiledPartError
from wire.chunks import chunk_count, held, split
from wire.messages import ModelOffer

CHUNK = 100
PAYLOAD = random.Random(1).randbytes(1_050)
COUNT = chunk_count(len(PAYLOAD), CHUNK)
DIGEST = hashlib.sha256(PAYLOAD).digest()


def offer_of(version: int = 3) -> ModelOffer:
    return ModelOffer(DIGEST[:16], version, -1, len(PAYLOAD), DIGEST, CHUNK, b"m" * 32)


def put(part: object, *indices: int) -> None:
    for index in indices:
        part.put(index * CHUNK, split(PAYLOAD, CHUNK, index))  # type: ignore[attr-defined]


def has(directory: Path, version: int = 3) -> list[int]:
    found = PartFiles(directory).find(version)
    return [] if found is None else list(held(found[1].received, COUNT))


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    put(PartFiles(tmp_path).begin(offer_of()), 0, 4, 10)
    found = PartFiles(tmp_path).find(3)
    assert found is not None
    offer, part = found
    assert offer == offer_of()
    assert list(held(part.received, COUNT)) == [0, 4, 10]
    put(part, *range(COUNT))
    assert part.whole() == PAYLOAD


def test_a_part_of_another_version_is_not_found(tmp_path: Path) -> None:
    PartFiles(tmp_path).begin(offer_of())
    assert PartFiles(tmp_path).find(4) is None


def test_a_chunk_whose_bytes_were_not_written_is_not_held(tmp_path: Path) -> None:
    """Its checksum reached the disk, its bytes did not: a power cut may do that."""
    part = PartFiles(tmp_path).begin(offer_of())
    put(part, *range(COUNT))
    with part.path.open("r+b") as file:
        file.seek(part.size_bytes - len(PAYLOAD) + 2 * CHUNK)
        file.write(bytes(CHUNK))
    assert has(tmp_path) == [index for index in range(COUNT) if index != 2]


def test_bytes_of_one_chunk_in_the_place_of_another_are_not_held(tmp_path: Path) -> None:
    part = PartFiles(tmp_path).begin(offer_of())
    put(part, 0, 1)
    checks_at = part.size_bytes - len(PAYLOAD) - 4 * COUNT
    data = bytearray(part.path.read_bytes())
    bytes_at = checks_at + 4 * COUNT
    data[checks_at + 4 : checks_at + 8] = data[checks_at : checks_at + 4]
    data[bytes_at + CHUNK : bytes_at + 2 * CHUNK] = data[bytes_at : bytes_at + CHUNK]
    part.path.write_bytes(data)
    assert has(tmp_path) == [0]


@pytest.mark.slow
@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_a_file_that_was_changed_gives_right_chunks_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    directory, chance = tmp_path_factory.mktemp("parts"), random.Random(seed)
    part = PartFiles(directory).begin(offer_of())
    put(part, *chance.sample(range(COUNT), chance.randrange(COUNT + 1)))
    data = bytearray(part.path.read_bytes())
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    size = chance.choice((len(data), chance.randrange(len(data)), len(data) + 7))
    part.path.write_bytes(bytes(data[:size]).ljust(size, b"\0"))
    try:
        found = PartFiles(directory).find(3)
    except SpoiledPartError:
        assert not part.path.exists()
        return
    assert found is not None
    offer, part = found
    assert offer == offer_of()
    whole = part.whole()
    for index in held(part.received, COUNT):
        assert split(whole, CHUNK, index) == split(PAYLOAD, CHUNK, index)


@pytest.mark.parametrize("content", [b"", b"x" * 10, b"\0" * 5_000, os.urandom(300)])
def test_a_foreign_file_is_deleted_and_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "part-3.bin"
    path.write_bytes(content)
    with pytest.raises(SpoiledPartError, match=r"part-3\.bin"):
        PartFiles(tmp_path).find(3)
    assert not path.exists()


def test_no_more_than_two_are_kept_and_the_lowest_version_goes(tmp_path: Path) -> None:
    parts = PartFiles(tmp_path)
    for version in (9, 5, 7):
        parts.begin(offer_of(version))
    assert [parts.find(version) is None for version in (5, 9, 7)] == [True, False, False]
    assert len(list(tmp_path.iterdir())) == PARTS_MAX
    parts.retain({7})
    assert [path.name for path in tmp_path.iterdir()] == ["part-7.bin"]


def test_an_offer_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    parts = PartFiles(tmp_path)
    put(parts.begin(offer_of()), 0, 1)
    parts.begin(offer_of())
    assert has(tmp_path) == []


def test_bytes_take_room_when_they_come(tmp_path: Path) -> None:
    big = ModelOffer(DIGEST[:16], 3, -1, 100_000_000, DIGEST, 131_072, b"m" * 32)
    part = PartFiles(tmp_path).begin(big)
    assert part.path.stat().st_size > 100_000_000
    assert part.path.stat().st_blocks * 512 < 1_000_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full")
def test_a_full_disk_is_an_os_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartFiles(tmp_path).begin(offer_of())
    monkeypatch.setattr(part, "path", Path("/dev/full"))
    with pytest.raises(OSError, match="No space"):
        put(part, 0)
