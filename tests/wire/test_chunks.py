import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import Reassembly, chunk_bytes_for, chunk_count, limits
from wire.chunks import missing, split
from wire.errors import DigestMismatchError, RemoteProtocolError, TooLargeError

PAYLOAD = bytes(range(256)) * 4
PAYLOAD_MAX = 4_096


def expecting(payload: bytes = PAYLOAD, chunk_bytes: int = 100) -> Reassembly:
    digest = hashlib.sha256(payload).digest()
    return Reassembly(len(payload), chunk_bytes, digest, payload_bytes_max=PAYLOAD_MAX)


payloads = st.binary(min_size=1, max_size=1_000)
sizes = st.integers(1, 1_100)


@given(payload=payloads, chunk_bytes=sizes, data=st.data())
def test_chunks_in_any_order_with_doubles_make_the_payload(
    payload: bytes, chunk_bytes: int, data: st.DataObject
) -> None:
    transfer = expecting(payload, chunk_bytes)
    order = data.draw(st.permutations(range(transfer.count)))
    for index in [*order, *order[:3]]:
        transfer.add(index, split(payload, chunk_bytes, index))
    assert transfer.complete
    assert transfer.payload() == payload


@given(payload=payloads, chunk_bytes=sizes)
def test_pieces_are_full_but_for_the_last_and_never_empty(payload: bytes, chunk_bytes: int) -> None:
    count = chunk_count(len(payload), chunk_bytes)
    pieces = [split(payload, chunk_bytes, index) for index in range(count)]
    assert b"".join(pieces) == payload
    assert all(len(piece) == chunk_bytes for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= chunk_bytes


@given(payload=payloads, chunk_bytes=sizes, data=st.data())
def test_a_transfer_resumed_from_the_bitmap_sends_each_chunk_once(
    payload: bytes, chunk_bytes: int, data: st.DataObject
) -> None:
    transfer = expecting(payload, chunk_bytes)
    held = data.draw(st.sets(st.integers(0, transfer.count - 1)))
    for index in held:
        transfer.add(index, split(payload, chunk_bytes, index))
    again = list(missing(transfer.received, transfer.count))
    assert again == sorted(set(range(transfer.count)) - held)
    for index in again:
        assert not transfer.complete
        transfer.add(index, split(payload, chunk_bytes, index))
    assert transfer.payload() == payload


@given(held=st.sets(st.integers(0, 39)), count=st.integers(1, 40))
def test_bit_i_is_bit_i_mod_8_of_byte_i_div_8(held: set[int], count: int) -> None:
    bitmap = bytearray(-(-count // 8))
    for index in held:
        if index < count:
            bitmap[index // 8] |= 1 << (index % 8)
    assert list(missing(bytes(bitmap), count)) == [i for i in range(count) if i not in held]


@given(bitmap=st.binary(max_size=9), count=st.integers(0, 80))
def test_any_bitmap_at_all_is_answered(bitmap: bytes, count: int) -> None:
    wanted = list(missing(bitmap, count))
    assert wanted == sorted(set(wanted))
    assert all(0 <= index < count for index in wanted)


def test_bits_that_are_not_there_are_chunks_that_are_missing() -> None:
    assert list(missing(b"", 3)) == [0, 1, 2]
    assert list(missing(b"\xff", 10)) == [8, 9]
    assert list(missing(b"\xff\xff", 10)) == []


@pytest.mark.parametrize("index", [11, 12, 65_535])
def test_a_chunk_past_the_end_is_refused(index: int) -> None:
    transfer = expecting()
    with pytest.raises(RemoteProtocolError):
        transfer.add(index, bytes(100))
    assert transfer.received == bytes(2)


@pytest.mark.parametrize(("index", "size"), [(0, 99), (0, 101), (0, 0), (10, 100), (10, 23)])
def test_a_chunk_of_another_size_is_refused(index: int, size: int) -> None:
    transfer = expecting()
    with pytest.raises(RemoteProtocolError):
        transfer.add(index, bytes(size))
    assert transfer.received == bytes(2)


def test_a_double_does_not_replace_what_is_held() -> None:
    transfer = expecting()
    for index in range(transfer.count):
        transfer.add(index, split(PAYLOAD, 100, index))
    transfer.add(3, bytes(100))
    assert transfer.payload() == PAYLOAD


def test_a_changed_chunk_is_a_digest_mismatch() -> None:
    transfer = expecting()
    for index in range(transfer.count):
        transfer.add(index, bytes(100) if index == 5 else split(PAYLOAD, 100, index))
    with pytest.raises(DigestMismatchError):
        transfer.payload()


def test_a_transfer_that_is_not_whole_is_not_handed_out() -> None:
    transfer = expecting()
    transfer.add(0, split(PAYLOAD, 100, 0))
    with pytest.raises(RemoteProtocolError, match="10 chunks are missing"):
        transfer.payload()


@pytest.mark.parametrize("size", [PAYLOAD_MAX + 1, limits.TRANSFER_BYTES_MAX, 2**60])
def test_more_than_the_receiver_holds_is_refused_before_anything_is_allocated(size: int) -> None:
    with pytest.raises(TooLargeError):
        Reassembly(size, 2**40, bytes(32), payload_bytes_max=PAYLOAD_MAX)


def test_too_many_chunks_are_refused_before_anything_is_allocated() -> None:
    most = limits.CHUNKS_PER_TRANSFER_MAX
    with pytest.raises(TooLargeError):
        Reassembly(most + 1, 1, bytes(32), payload_bytes_max=2**60)
    assert len(Reassembly(most, 1, bytes(32), payload_bytes_max=2**60).received) == most // 8


def test_an_announcement_is_the_same_transfer_only_if_all_of_it_is() -> None:
    transfer, digest = expecting(), hashlib.sha256(PAYLOAD).digest()
    assert transfer.matches(len(PAYLOAD), 100, digest)
    assert not transfer.matches(len(PAYLOAD) + 1, 100, digest)
    assert not transfer.matches(len(PAYLOAD), 101, digest)
    assert not transfer.matches(len(PAYLOAD), 100, bytes(32))


@given(st.integers(0, 2**28))
def test_a_chunk_leaves_room_for_what_stands_around_it(packet_bytes_max: int) -> None:
    size = chunk_bytes_for(packet_bytes_max)
    assert size >= 1
    at_least = max(packet_bytes_max, limits.PACKET_BYTES_MIN)
    assert size + limits.PACKET_OVERHEAD_BYTES == at_least
