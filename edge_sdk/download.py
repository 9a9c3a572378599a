"""Models on their way down: announced, in chunks, checked, and turned into tensors.

What a device does not hold it asks for with what it does hold, and what comes is a chain of deltas
or a whole model. Nothing is allocated before an announcement that the schema allows. What has more
than one chunk is put together on disk, and goes on from there after a reboot: see `edge_sdk.parts`.
"""

from collections.abc import Callable, Iterator

import quantization
from edge_sdk.parts import PartStore, SpoiledPartError
from edge_sdk.reasons import Reason
from wire import Reassembly, Report, Schema, Tensors, chunk_count, limits, tensors_digest
from wire.chunks import MemoryRoom, Room
from wire.errors import DigestMismatchError, RemoteProtocolError
from wire.messages import Chunk, FetchRequest, ModelOffer


class Download:
    """The transfer of one version.

    Args:
        version: the one that is wanted.
        digest: its model digest, as the coordinator promised it; 32 bytes.
        have_version: what deltas may start from, -1 for nothing.
        schema: of the tensors that travel.
        parts: where to put it together; None is memory.
    """

    def __init__(
        self,
        version: int,
        digest: bytes,
        have_version: int,
        schema: Schema,
        parts: PartStore | None = None,
    ) -> None:
        self.version = version
        self.digest = digest
        self.have_version = have_version
        self._schema = schema
        self._parts = parts
        self._offer: ModelOffer | None = None
        self._reassembly: Reassembly | None = None
        self._room: Room | None = None

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self._reassembly is not None and self._reassembly.complete

    def resume(self) -> int:
        """Go on from what an earlier process, or try, has left; returns how many chunks that is.

        Raises:
            SpoiledPartError: what was left cannot be used, and is gone.
        """
        found = None if self._parts is None else self._parts.find(self.version)
        if found is None:
            return 0
        offer, part = found
        try:
            self._check(offer)
            received = part.received
            self._reassembly = self._make_reassembly(offer, part, received)
        except RemoteProtocolError as error:
            part.release()
            raise SpoiledPartError(f"of another transfer: {error}") from error
        self._offer, self._room = offer, part
        return sum(byte.bit_count() for byte in self._reassembly.received)

    def request(self, chunk_bytes_max: int) -> FetchRequest:
        """What to send, now or again: it says which chunks have arrived.

        They are asked for in the size that the others came in, as long as the link takes it.
        """
        offer = self._offer
        if offer is None or self._reassembly is None or offer.chunk_bytes > chunk_bytes_max:
            return FetchRequest(self.version, self.have_version, chunk_bytes_max)
        return FetchRequest(
            self.version,
            self.have_version,
            max(offer.chunk_bytes, limits.CHUNK_BYTES_MIN),
            offer.transfer_id,
            self._reassembly.received,
        )

    def announce(self, offer: ModelOffer) -> None:
        """Get ready for the chunks of an offer; one that is not what was asked for is an error.

        Raises:
            RemoteProtocolError: another version, digest or starting point.
            TooLargeError: more bytes than the schema can mean.
            OSError: the disk has no room for a part of it.
        """
        self._check(offer)
        if self._offer is not None and self._reassembly is not None:
            same = self._reassembly.matches(
                offer.payload_bytes, offer.chunk_bytes, offer.payload_digest
            )
            if same and self._offer.transfer_id == offer.transfer_id:
                return
        count = chunk_count(offer.payload_bytes, offer.chunk_bytes)
        room: Room | None = None
        if self._parts is not None and count > 1:
            # With room for nothing: an offer beyond its bounds makes no file.
            self._make_reassembly(offer, MemoryRoom(0))
            self.discard()
            room = self._parts.begin(offer)
        self._reassembly = self._make_reassembly(offer, room)
        self._offer, self._room = offer, room

    def _check(self, offer: ModelOffer) -> None:
        if (offer.version, offer.model_digest) != (self.version, self.digest):
            raise RemoteProtocolError(f"version {offer.version} was not asked for")
        if offer.from_version not in (-1, self.have_version):
            raise RemoteProtocolError(f"a delta from version {offer.from_version} is of no use")
        if offer.transfer_id != offer.payload_digest[:16]:
            raise RemoteProtocolError("the transfer id is not its payload's")

    def _make_reassembly(
        self, offer: ModelOffer, room: Room | None, received: bytes = b""
    ) -> Reassembly:
        steps = 1 if offer.from_version < 0 else limits.DELTAS_PER_BUNDLE_MAX
        bound = steps * (quantization.payload_bytes_max(self._schema) + 16) + 16
        return Reassembly(
            offer.payload_bytes,
            offer.chunk_bytes,
            offer.payload_digest,
            payload_bytes_max=min(bound, limits.TRANSFER_BYTES_MAX),
            room=room,
            received=received,
        )

    def discard(self) -> None:
        """What has arrived is used up, or of no use."""
        if self._room is not None:
            self._room.release()
        self._offer, self._reassembly, self._room = None, None, None

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

    def tensors(self, held: Tensors) -> Tensors:
        """The model, once whole: `held` is that of `have_version`.

        Raises:
            DigestMismatchError: the bytes or the model are not what was promised.
            RemoteProtocolError: the payload is malformed.
            OSError: the disk has lost it.
        """
        if self._offer is None or self._reassembly is None:
            raise RemoteProtocolError("nothing was announced")
        bundle = quantization.unpack_bundle(self._reassembly.payload())
        if bundle.from_version not in (-1, self.have_version):
            raise RemoteProtocolError(f"a delta from version {bundle.from_version} is of no use")
        if bundle.steps[-1].version != self.version:
            raise RemoteProtocolError(f"the bundle ends at version {bundle.steps[-1].version}")
        tensors = quantization.apply_bundle(bundle, self._schema, held)
        if bytes.fromhex(tensors_digest(self._schema, tensors)) != self.digest:
            raise DigestMismatchError("the model is not the one that was promised")
        return tensors


class Downloads:
    """All models that are on their way to one device, by version.

    Args:
        schema: of the tensors that travel.
        parts: where they are put together; None is memory, and a reboot loses them.
        note: told what is worth counting.
    """

    def __init__(
        self, schema: Schema, parts: PartStore | None, note: Callable[[Report], None]
    ) -> None:
        self._schema = schema
        self._parts = parts
        self._note = note
        self._downloads: dict[int, Download] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._downloads))

    def want(self, version: int, digest: bytes, have: Callable[[], int]) -> Download:
        """The download of a version; one that begins goes on where an earlier one ended.

        Args:
            version: what is wanted.
            digest: its model digest.
            have: what deltas may start from; asked when it begins.
        """
        download = self._downloads.get(version)
        if download is None or download.digest != digest:
            download = Download(version, digest, have(), self._schema, self._parts)
            self._downloads[version] = download
            try:
                chunks = download.resume()
            except SpoiledPartError as error:
                self._note(Report("part_spoiled", str(error)))
            else:
                if chunks:
                    here = f"version {version}: {chunks} chunks are here"
                    self._note(Report("part_resumed", here))
        return download

    def from_nothing(self, version: int, digest: bytes) -> Download:
        """The download of a whole model: what is held may be what is wrong."""
        download = Download(version, digest, -1, self._schema, self._parts)
        self._downloads[version] = download
        return download

    def take(self, message: ModelOffer | Chunk) -> Iterator[tuple[Download, str]]:
        """Give a message to whom it is for.

        Yields:
            Each download that it is whole with, and "", or that it ended, and the reason.

        Raises:
            RemoteProtocolError: it is not what it should be.
        """
        for download in tuple(self._downloads.values()):
            try:
                if isinstance(message, Chunk):
                    if download.add(message):
                        yield download, ""
                elif message.version == download.version:
                    download.announce(message)
            except OSError as error:
                download.discard()
                self._note(Report("disk_failed", f"version {download.version}: {error}"))
                yield download, Reason.DISK_FAILED

    def drop(self, version: int) -> None:
        """Nothing more is wanted of a version now; what has arrived is kept."""
        self._downloads.pop(version, None)

    def drop_others(self, version: int | None) -> None:
        """Nothing more is wanted of any other version now."""
        self._downloads = {v: d for v, d in self._downloads.items() if v == version}

    def done(self, download: Download) -> None:
        """The model is on the shelf: its part, and older ones, are of no more use."""
        self.drop(download.version)
        download.discard()
        if self._parts is not None:
            self._parts.retain(self._downloads)


def digest_of(schema: Schema, tensors: Tensors) -> bytes:
    """A model's digest: 32 bytes."""
    return bytes.fromhex(tensors_digest(schema, tensors))
