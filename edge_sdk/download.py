"""One model on its way down: announced, in chunks, checked, and turned into tensors.

What a device does not hold it asks for with what it does hold, and what comes is a chain of deltas
or a whole model. Nothing is allocated before an announcement that the schema allows.
"""

import quantization
from wire import Reassembly, Schema, Tensors, limits, tensors_digest
from wire.errors import DigestMismatchError, RemoteProtocolError
from wire.messages import Chunk, FetchRequest, ModelOffer


class Download:
    """The transfer of one version.

    Args:
        version: the one that is wanted.
        digest: its model digest, as the coordinator promised it; 32 bytes.
        have_version: what deltas may start from, -1 for nothing.
        schema: of the tensors that travel.
    """

    def __init__(self, version: int, digest: bytes, have_version: int, schema: Schema) -> None:
        self.version = version
        self.digest = digest
        self.have_version = have_version
        self._schema = schema
        self._offer: ModelOffer | None = None
        self._reassembly: Reassembly | None = None

    def request(self, chunk_bytes_max: int) -> FetchRequest:
        """What to send, now or again: it says which chunks have arrived."""
        if self._offer is None or self._reassembly is None:
            return FetchRequest(self.version, self.have_version, chunk_bytes_max)
        return FetchRequest(
            self.version,
            self.have_version,
            chunk_bytes_max,
            self._offer.transfer_id,
            self._reassembly.received,
        )

    def announce(self, offer: ModelOffer) -> None:
        """Get ready for the chunks of an offer; one that is not what was asked for is an error.

        Raises:
            RemoteProtocolError: another version, digest or starting point.
            TooLargeError: more bytes than the schema can mean.
        """
        if (offer.version, offer.model_digest) != (self.version, self.digest):
            raise RemoteProtocolError(f"version {offer.version} was not asked for")
        if offer.from_version not in (-1, self.have_version):
            raise RemoteProtocolError(f"a delta from version {offer.from_version} is of no use")
        if offer.transfer_id != offer.payload_digest[:16]:
            raise RemoteProtocolError("the transfer id is not its payload's")
        if self._offer is not None and self._reassembly is not None:
            same = self._reassembly.matches(
                offer.payload_bytes, offer.chunk_bytes, offer.payload_digest
            )
            if same and self._offer.transfer_id == offer.transfer_id:
                return
        steps = 1 if offer.from_version < 0 else limits.DELTAS_PER_BUNDLE_MAX
        bound = steps * (quantization.payload_bytes_max(self._schema) + 16) + 16
        self._reassembly = Reassembly(
            offer.payload_bytes,
            offer.chunk_bytes,
            offer.payload_digest,
            payload_bytes_max=min(bound, limits.TRANSFER_BYTES_MAX),
        )
        self._offer = offer

    def add(self, chunk: Chunk) -> bool:
        """Keep a chunk; True when the whole payload is here.

        Raises:
            RemoteProtocolError: no such chunk, or of the wrong size.
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


def digest_of(schema: Schema, tensors: Tensors) -> bytes:
    """A model's digest: 32 bytes."""
    return bytes.fromhex(tensors_digest(schema, tensors))
