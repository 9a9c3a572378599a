"""The model's description on its way to a device, and where it is kept there.

For a device whose task has no `model()`. What arrives is put together on disk when it has more than
one chunk, and goes on from there after a reboot (`edge_sdk.parts`). It is kept whole under its
digest, appears whole or not at all, and is checked each time it is read.
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Final, Protocol

from edge_sdk.parts import Part, PartStore, SpoiledPartError
from wire import Manifest, Reassembly, chunk_count, limits, read_description
from wire.chunks import MemoryRoom, missing
from wire.errors import RemoteProtocolError
from wire.messages import Chunk, DescriptionOffer, DescriptionRequest, ModelOffer

# Parts are kept by the version that they are of. A description has a folder of its own.
_PART: Final = 0
_log: Final = logging.getLogger("potluck.device")


class DescriptionShelf(Protocol):
    """Where a device keeps the description of its model: one, and for a moment two."""

    def load(self, digest: bytes) -> Manifest | None:
        """The manifest of a description, or None when it is not here or damaged."""
        ...

    def save(self, digest: bytes, payload: bytes) -> None:
        """Keep a description; it is on disk when this returns.

        Raises:
            OSError: the disk is full, or gone.
        """
        ...

    def retain(self, digest: bytes) -> None:
        """Drop all others."""
        ...


class MemoryDescriptions:
    """Descriptions of an emulated device."""

    def __init__(self) -> None:
        self.payloads: dict[bytes, bytes] = {}

    def load(self, digest: bytes) -> Manifest | None:
        """The manifest of a description."""
        payload = self.payloads.get(digest)
        return None if payload is None else read_description(payload)

    def save(self, digest: bytes, payload: bytes) -> None:
        """Keep a description."""
        self.payloads[digest] = payload

    def retain(self, digest: bytes) -> None:
        """Drop all others."""
        self.payloads = {kept: p for kept, p in self.payloads.items() if kept == digest}


class FileDescriptions:
    """Descriptions of a real device, one file each.

    Args:
        directory: made when something is saved.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, digest: bytes) -> Manifest | None:
        """The manifest of a description, or None when it is not here or damaged."""
        path = self._file(digest)
        try:
            payload = path.read_bytes()
            if hashlib.sha256(payload).digest() != digest:
                raise RemoteProtocolError("its bytes are not those that were fetched")  # noqa: TRY301 - one place says so
            return read_description(payload)
        except FileNotFoundError:
            return None
        except (OSError, RemoteProtocolError) as error:
            _log.warning("%s: %s; it is fetched again", path, error)
            return None

    def save(self, digest: bytes, payload: bytes) -> None:
        """Keep a description; it is on disk when this returns."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._file(digest)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":
            # The name is in the directory, which has to reach the disk too.
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def retain(self, digest: bytes) -> None:
        """Drop all others, and what a save that was cut short has left."""
        for path in self._directory.glob("description-*"):
            if path != self._file(digest):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _file(self, digest: bytes) -> Path:
        return self._directory / f"description-{digest.hex()}.bin"


class DescriptionDownload:
    """The transfer of a description.

    Args:
        have_digest: of the one that is here, empty for none.
        parts: where to put it together; None is memory.
    """

    def __init__(self, have_digest: bytes, parts: PartStore | None = None) -> None:
        self.have_digest = have_digest
        self._parts = parts
        self._offer: DescriptionOffer | None = None
        self._reassembly: Reassembly | None = None
        self._part: Part | None = None

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self._reassembly is not None and self._reassembly.complete

    @property
    def next_chunk_bytes(self) -> int:
        """How much the next chunk has that is missing; 0 before anything is announced."""
        offer, reassembly = self._offer, self._reassembly
        if offer is None or reassembly is None:
            return 0
        first = next(missing(reassembly.received, reassembly.count), 0)
        return min(offer.chunk_bytes, offer.payload_bytes - first * offer.chunk_bytes)

    @property
    def digest(self) -> bytes:
        """Of what is under way; empty before anything is."""
        return b"" if self._offer is None else self._offer.payload_digest

    def resume(self) -> int:
        """Go on from what an earlier process has left; returns how many chunks that is.

        Raises:
            SpoiledPartError: what was left cannot be used, and is gone.
        """
        found = None if self._parts is None else self._parts.find(_PART)
        if found is None:
            return 0
        written, part = found
        offer = DescriptionOffer(
            transfer_id=written.transfer_id,
            payload_bytes=written.payload_bytes,
            payload_digest=written.payload_digest,
            chunk_bytes=written.chunk_bytes,
        )
        try:
            _check(offer)
        except RemoteProtocolError as error:
            part.release()
            raise SpoiledPartError(f"of another transfer: {error}") from error
        self._begin(offer, part, part.received)
        return 0 if self._reassembly is None else self._held

    @property
    def _held(self) -> int:
        received = b"" if self._reassembly is None else self._reassembly.received
        return sum(byte.bit_count() for byte in received)

    def request(self, chunk_bytes_max: int, bytes_max: int) -> DescriptionRequest:
        """What to send, now or again: it says which chunks have arrived.

        They are asked for in the size that the others came in, as long as the link takes it.
        """
        offer = self._offer
        if offer is None or self._reassembly is None or offer.chunk_bytes > chunk_bytes_max:
            return DescriptionRequest(chunk_bytes_max, bytes_max, self.have_digest)
        return DescriptionRequest(
            max(offer.chunk_bytes, limits.CHUNK_BYTES_MIN),
            bytes_max,
            self.have_digest,
            offer.transfer_id,
            self._reassembly.received,
        )

    def announce(self, offer: DescriptionOffer) -> bool:
        """Get ready for the chunks of an offer; False if it is of what is here already.

        Raises:
            RemoteProtocolError: it contradicts itself.
            TooLargeError: it passes a bound; nothing has been allocated.
            OSError: the disk has no room for a part of it.
        """
        _check(offer)
        if offer.payload_digest == self.have_digest:
            self.discard()
            return False
        if offer == self._offer:
            return True
        self.discard()
        part: Part | None = None
        if self._parts is not None and chunk_count(offer.payload_bytes, offer.chunk_bytes) > 1:
            part = self._parts.begin(
                ModelOffer(
                    transfer_id=offer.transfer_id,
                    version=_PART,
                    from_version=-1,
                    payload_bytes=offer.payload_bytes,
                    payload_digest=offer.payload_digest,
                    chunk_bytes=offer.chunk_bytes,
                    model_digest=offer.payload_digest,
                )
            )
        self._begin(offer, part)
        return True

    def _begin(self, offer: DescriptionOffer, part: Part | None, received: bytes = b"") -> None:
        self._reassembly = Reassembly(
            offer.payload_bytes,
            offer.chunk_bytes,
            offer.payload_digest,
            payload_bytes_max=limits.TRANSFER_BYTES_MAX,
            room=part,
            received=received,
        )
        self._offer, self._part = offer, part

    def add(self, chunk: Chunk) -> bool:
        """Keep a chunk; True when the whole payload is here.

        Raises:
            RemoteProtocolError: no such chunk, or of the wrong size.
            OSError: the disk has no room for it.
        """
        if self._offer is None or self._reassembly is None:
            return False
        if chunk.transfer_id != self._offer.transfer_id:
            return False
        self._reassembly.add(chunk.index, chunk.data)
        return self._reassembly.complete

    def payload(self) -> bytes:
        """The description.

        Raises:
            RemoteProtocolError: chunks are missing.
            DigestMismatchError: it is not what was announced.
            OSError: the disk has lost it.
        """
        if self._reassembly is None:
            raise RemoteProtocolError("nothing was announced")
        return self._reassembly.payload()

    def discard(self) -> None:
        """What has arrived is used up, or of no use."""
        if self._part is not None:
            self._part.release()
        self._offer, self._reassembly, self._part = None, None, None


def _check(offer: DescriptionOffer) -> None:
    """Raise unless an offer agrees with itself and with the bounds.

    Raises:
        RemoteProtocolError: the transfer id is another payload's.
        TooLargeError: too many bytes or chunks.
    """
    if offer.transfer_id != offer.payload_digest[:16]:
        raise RemoteProtocolError("the transfer id is not its payload's")
    # With room for nothing: an offer beyond its bounds makes no file.
    Reassembly(
        offer.payload_bytes,
        offer.chunk_bytes,
        offer.payload_digest,
        payload_bytes_max=limits.TRANSFER_BYTES_MAX,
        room=MemoryRoom(0),
    )
