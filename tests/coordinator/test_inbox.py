import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.inbox import Inbox
from coordinator.signals import UpdateStored
from coordinator.spill import Spill
from wire import DigestMismatchError, RemoteProtocolError, TooLargeError, chunk_count, limits
from wire.chunks import Room
from wire.messages import Chunk

CHUNK = 16


def stored(
    name: str, payload: bytes, device: str = "d1", *, size: int | None = None
) -> UpdateStored:
    return UpdateStored(
        update_id=name.encode().ljust(16, b"-"),
        device=device,
        round=1,
        base_version=0,
        num_examples=1,
        weight=1,
        payload_bytes=len(payload) if size is None else size,
        payload_digest=hashlib.sha256(payload).digest(),
        metrics={},
        receipted_at_s=0.0,
    )


def chunks(update: UpdateStored, payload: bytes) -> list[Chunk]:
    return [
        Chunk(update.update_id, index, payload[index * CHUNK : (index + 1) * CHUNK])
        for index in range(chunk_count(len(payload), CHUNK))
    ]


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_doubled_make_the_update_once(
    payload: bytes, chance: random.Random
) -> None:
    inbox, update = Inbox(1_000), stored("u", payload)
    inbox.announce("d1", update, CHUNK)
    pieces = chunks(update, payload)
    pieces += chance.choices(pieces, k=3)
    chance.shuffle(pieces)
    done = [whole for whole in (inbox.add("d1", piece) for piece in pieces) if whole]
    assert done == [(update, payload)]


def test_an_announcement_is_answered_with_what_is_held() -> None:
    inbox, payload = Inbox(1_000), bytes(range(100))
    update = stored("u", payload)
    assert inbox.announce("d1", update, CHUNK) == b"\x00"
    inbox.add("d1", chunks(update, payload)[2])
    assert inbox.announce("d1", update, CHUNK) == b"\x04"


@pytest.mark.parametrize("changed", ["size", "digest", "chunk"])
def test_a_transfer_announced_anew_as_something_else_starts_again(changed: str) -> None:
    inbox, payload = Inbox(1_000), bytes(range(100))
    inbox.announce("d1", stored("u", payload), CHUNK)
    inbox.add("d1", chunks(stored("u", payload), payload)[2])
    other = {"size": payload[:-1], "digest": payload[::-1], "chunk": payload}[changed]
    received = inbox.announce("d1", stored("u", other), CHUNK + (changed == "chunk"))
    assert not any(received)


def test_a_chunk_of_another_devices_transfer_is_refused_and_spoils_nothing() -> None:
    inbox, payload = Inbox(1_000), bytes(range(100))
    update = stored("u", payload)
    inbox.announce("d1", update, CHUNK)
    first, *rest = chunks(update, payload)
    with pytest.raises(RemoteProtocolError, match="another device"):
        inbox.add("d2", Chunk(first.transfer_id, 0, b"x" * CHUNK))
    inbox.add("d1", first)
    assert [inbox.add("d1", piece) for piece in rest][-1] == (update, payload)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(b"u".ljust(16, b"-"), 7, b"x" * CHUNK),
        Chunk(b"u".ljust(16, b"-"), 65_535, b"x" * CHUNK),
        Chunk(b"u".ljust(16, b"-"), 0, b"x" * (CHUNK - 1)),
        Chunk(b"u".ljust(16, b"-"), 0, b"x" * (CHUNK + 1)),
        Chunk(b"u".ljust(16, b"-"), 6, b"x" * CHUNK),
    ],
)
def test_a_chunk_that_does_not_fit_the_announcement_is_refused(chunk: Chunk) -> None:
    inbox, payload = Inbox(1_000), bytes(100)
    inbox.announce("d1", stored("u", payload), CHUNK)
    with pytest.raises(RemoteProtocolError):
        inbox.add("d1", chunk)
    assert not any(inbox.announce("d1", stored("u", payload), CHUNK))


def test_a_whole_that_is_not_what_was_announced_is_dropped_and_can_be_sent_again() -> None:
    inbox, payload = Inbox(1_000), bytes(range(40))
    update = stored("u", payload)
    inbox.announce("d1", update, CHUNK)
    inbox.add("d1", Chunk(update.update_id, 0, b"x" * CHUNK))
    _, *rest = chunks(update, payload)
    inbox.add("d1", rest[0])
    with pytest.raises(DigestMismatchError):
        inbox.add("d1", rest[1])
    assert inbox.announce("d1", update, CHUNK) == b"\x00"
    assert [inbox.add("d1", piece) for piece in chunks(update, payload)][-1] == (update, payload)


def test_a_chunk_of_a_transfer_that_is_not_here_is_dropped_without_a_word() -> None:
    assert Inbox(1_000).add("d1", Chunk(bytes(16), 0, b"x")) is None


def test_a_restart_forgets_what_is_half_here() -> None:
    payload = bytes(100)
    update = stored("u", payload)
    before, after = Inbox(1_000), Inbox(1_000)
    before.announce("d1", update, CHUNK)
    before.add("d1", chunks(update, payload)[0])
    assert not any(after.announce("d1", update, CHUNK))


def test_what_is_too_large_is_refused_before_anything_is_held() -> None:
    inbox = Inbox(1_000)
    assert inbox.why_too_large(1_000, CHUNK) is None
    assert isinstance(inbox.why_too_large(1_001, CHUNK), TooLargeError)
    with pytest.raises(TooLargeError):
        inbox.announce("d1", stored("u", b"", size=2**60), CHUNK)
    many = Inbox(limits.TRANSFER_BYTES_MAX)
    assert isinstance(many.why_too_large(limits.CHUNKS_PER_TRANSFER_MAX + 1, 1), TooLargeError)
    assert many.why_too_large(limits.CHUNKS_PER_TRANSFER_MAX, 1) is None


def held(inbox: Inbox) -> set[str]:
    return {key.decode().rstrip("-") for key in inbox._partials}


def test_a_device_has_room_for_few_transfers_and_takes_none_of_anothers() -> None:
    inbox, payload = Inbox(1_000), bytes(100)
    inbox.announce("d2", stored("other", payload, "d2"), CHUNK)
    for name in ("a", "b", "c", "e"):
        inbox.announce("d1", stored(name, payload), CHUNK)
    assert held(inbox) == {"other", "c", "e"}


def test_all_transfers_together_are_bounded_and_the_oldest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PARTIAL_BYTES_MAX", 250)
    inbox, payload = Inbox(1_000), bytes(100)
    for number in range(5):
        inbox.announce(f"d{number}", stored(f"u{number}", payload, f"d{number}"), CHUNK)
        assert inbox.held_bytes <= 250
    assert held(inbox) == {"u3", "u4"}


def test_what_memory_has_no_room_for_waits_on_disk_and_comes_back_whole(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 100)
    inbox = Inbox(100, spill, memory_bytes_max=150)
    payloads = {f"u{number}": bytes([number]) * 100 for number in range(5)}
    updates = {name: stored(name, data, device=name) for name, data in payloads.items()}
    for name, update in updates.items():
        inbox.announce(name, update, CHUNK)
    assert inbox.memory_bytes == 100
    assert len(spill) == 4
    # A chunk of each in turn, so that their bytes are interleaved on the disk.
    done = {}
    for index in range(chunk_count(100, CHUNK)):
        for name, update in updates.items():
            whole = inbox.add(name, chunks(update, payloads[name])[index])
            if whole is not None:
                done[name] = whole[1]
    assert done == payloads
    assert len(inbox) == len(spill) == 0
    assert list(tmp_path.iterdir()) == [], "the file has no name"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 100)), max_size=60))
def test_whatever_is_announced_memory_and_disk_hold_no_more_than_their_bounds(
    tmp_path_factory: pytest.TempPathFactory, announced: list[tuple[int, int]]
) -> None:
    spill = Spill(tmp_path_factory.mktemp("spill"), 100)
    inbox = Inbox(100, spill, memory_bytes_max=250)
    for number, size in announced:
        update = stored(f"u{number}", bytes(size), device=f"d{number % 7}")
        inbox.announce(f"d{number % 7}", update, CHUNK)
        assert inbox.memory_bytes <= 250
        assert len(inbox) <= 7 * limits.PARTIALS_PER_DEVICE_MAX
        assert len(spill) <= len(inbox)
    spill.close()


class FullDisk:
    """A disk that takes nothing."""

    def slot(self, _size_bytes: int) -> Room:
        raise OSError(28, "no space left on device")


def test_a_full_disk_makes_the_oldest_in_memory_give_way() -> None:
    inbox, payload = Inbox(100, FullDisk(), memory_bytes_max=150), bytes(range(100))
    first, second = stored("a", payload, "d1"), stored("b", payload, "d2")
    inbox.announce("d1", first, CHUNK)
    inbox.announce("d2", second, CHUNK)
    assert inbox.memory_bytes == 100
    assert inbox.add("d1", chunks(first, payload)[0]) is None
    done = [inbox.add("d2", piece) for piece in chunks(second, payload)]
    assert done[-1] == (second, payload)
