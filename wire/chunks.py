"""Transfers in pieces under the broker's packet limit, in any order, resumed from a bitmap.

A transfer is announced with its whole size and digest, so that both are known before a byte is
kept. Every chunk but the last has `chunk_bytes`. The bitmap has bit i of byte i // 8, lowest bit
first, set when chunk i is held.
"""

import hashlib
from collections.abc import Iterator
from typing import Protocol

from wire import limits
from wire.errors import DigestMismatchError, RemoteProtocolError, TooLargeError


def chunk_bytes_for(packet_bytes_max: int) -> int:
    """How much data a chunk carries when whole packets may have `packet_bytes_max` bytes."""
    return max(packet_bytes_max, limits.PACKET_BYTES_MIN) - limits.PACKET_OVERHEAD_BYTES


def chunk_count(payload_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a payload has."""
    return -(-payload_bytes // chunk_bytes)


def split(payload: bytes, chunk_bytes: int, index: int) -> bytes:
    """Chunk `index` of a payload."""
    return payload[index * chunk_bytes : (index + 1) * chunk_bytes]


def missing(received: bytes, count: int) -> Iterator[int]:
    """The chunks that a bitmap lacks, in order; bits past the bitmap's end count as absent."""
    for index in range(count):
        byte = index >> 3
        if byte >= len(received) or not received[byte] >> (index & 7) & 1:
            yield index


def held(received: bytes, count: int) -> Iterator[int]:
    """The chunks that a bitmap has, in order; what it says of others means nothing."""
    for index in range(min(count, 8 * len(received))):
        if received[index >> 3] >> (index & 7) & 1:
            yield index


class Room(Protocol):
    """Where a transfer's bytes are kept until all of them are here."""

    def put(self, start: int, data: bytes) -> None:
        """Keep bytes from `start` on."""
        ...

    def whole(self) -> bytes:
        """All of them."""
        ...

    def release(self) -> None:
        """They are not needed any more; may be said twice."""
        ...


class MemoryRoom:
    """Room in memory.

    Args:
        size_bytes: of the whole.
    """

    def __init__(self, size_bytes: int) -> None:
        self._buffer = bytearray(size_bytes)

    def put(self, start: int, data: bytes) -> None:
        """Keep bytes from `start` on."""
        self._buffer[start : start + len(data)] = data

    def whole(self) -> bytes:
        """All of them."""
        return bytes(self._buffer)

    def release(self) -> None:
        """They go with this object."""


class Reassembly:
    """One incoming transfer: chunks in any order, doubles ignored, the digest checked at the end.

    Args:
        payload_bytes: whole size, as announced.
        chunk_bytes: size of every chunk but the last.
        payload_digest: SHA-256 of the whole, 32 bytes.
        payload_bytes_max: what the receiver is ready to hold.
        room: where to keep it; memory, when nobody says.
        received: the bitmap of the chunks that the room holds already.

    Raises:
        TooLargeError: the announcement passes a bound; nothing has been allocated.
    """

    def __init__(
        self,
        payload_bytes: int,
        chunk_bytes: int,
        payload_digest: bytes,
        *,
        payload_bytes_max: int,
        room: Room | None = None,
        received: bytes = b"",
    ) -> None:
        if payload_bytes > payload_bytes_max:
            raise TooLargeError(f"a payload of {payload_bytes} bytes, at most {payload_bytes_max}")
        self.count = chunk_count(payload_bytes, chunk_bytes)
        if self.count > limits.CHUNKS_PER_TRANSFER_MAX:
            raise TooLargeError(f"{self.count} chunks, at most {limits.CHUNKS_PER_TRANSFER_MAX}")
        self.payload_bytes = payload_bytes
        self.chunk_bytes = chunk_bytes
        self.payload_digest = payload_digest
        self._room = MemoryRoom(payload_bytes) if room is None else room
        self._bitmap = bytearray(-(-self.count // 8))
        for index in held(received, self.count):
            self._bitmap[index >> 3] |= 1 << (index & 7)
        self._held = sum(byte.bit_count() for byte in self._bitmap)

    @property
    def received(self) -> bytes:
        """The bitmap of chunks held."""
        return bytes(self._bitmap)

    @property
    def complete(self) -> bool:
        """Whether every chunk is held."""
        return self._held == self.count

    def matches(self, payload_bytes: int, chunk_bytes: int, payload_digest: bytes) -> bool:
        """Whether an announcement is of this very transfer."""
        return (payload_bytes, chunk_bytes, payload_digest) == (
            self.payload_bytes,
            self.chunk_bytes,
            self.payload_digest,
        )

    def add(self, index: int, data: bytes) -> None:
        """Keep a chunk; one that is held already is ignored.

        Raises:
            RemoteProtocolError: no such chunk, or not of the announced size.
        """
        start = index * self.chunk_bytes
        if index >= self.count:
            raise RemoteProtocolError(f"chunk {index} of {self.count}")
        if len(data) != min(self.chunk_bytes, self.payload_bytes - start):
            raise RemoteProtocolError(f"chunk {index} has {len(data)} bytes")
        if self._bitmap[index >> 3] >> (index & 7) & 1:
            return
        self._room.put(start, data)
        self._bitmap[index >> 3] |= 1 << (index & 7)
        self._held += 1

    def payload(self) -> bytes:
        """The whole payload.

        Raises:
            RemoteProtocolError: chunks are missing.
            DigestMismatchError: it is not what was announced; the transfer must start again.
        """
        if not self.complete:
            raise RemoteProtocolError(f"{self.count - self._held} chunks are missing")
        payload = self._room.whole()
        if hashlib.sha256(payload).digest() != self.payload_digest:
            raise DigestMismatchError("the payload is not the one that was announced")
        return payload
