"""Models on their way down: a bundle for each device that asks, in chunks that its link takes.

What is sent waits in memory until the broker has taken it, so a device that asks too often has to
wait for its next try.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final

from coordinator.models import Models
from coordinator.store import Store
from wire import RemoteProtocolError, TooLargeError, limits
from wire.chunks import chunk_count, missing, split
from wire.messages import Chunk, FetchRequest, Message, ModelOffer, Refused

# A device that asks for models, or for one of them, more often than this in that time has to wait.
_FETCHES_MAX: Final = 32
_FETCHES_OF_ONE_MAX: Final = 4
_FETCHES_S: Final = 4.0


class Downloads:
    """Answers `FetchRequest`s.

    Args:
        models: what there is to send.
        store: knows the digests of older versions.
        publish: sends a message to a device.

    Attributes:
        chunk_bytes_max: what the coordinator's own link takes.
    """

    def __init__(
        self, models: Models, store: Store, publish: Callable[[Message, str], None]
    ) -> None:
        self.chunk_bytes_max = 0
        self._models = models
        self._store = store
        self._publish = publish
        self._served: dict[str, deque[tuple[float, int]]] = {}

    def on_clock_step(self) -> None:
        """Somebody has set the clock: who asked when is forgotten."""
        self._served.clear()

    def _asks_too_often(self, device: str, version: int, now_s: float) -> bool:
        """Whether to leave a request to the device's next try: what is sent waits in our memory."""
        served = self._served.setdefault(device, deque(maxlen=_FETCHES_MAX))
        recent = [number for at_s, number in served if now_s - at_s < _FETCHES_S]
        if len(recent) == _FETCHES_MAX or recent.count(version) >= _FETCHES_OF_ONE_MAX:
            return True
        served.append((now_s, version))
        return False

    def serve(self, device: str, message: FetchRequest, now_s: float) -> None:
        """Send what brings the device to the version that it wants, or say why not.

        Raises:
            RemoteProtocolError: its chunks are too small, or too many.
        """
        if message.chunk_bytes_max < limits.CHUNK_BYTES_MIN:
            raise RemoteProtocolError(
                f"chunks of {message.chunk_bytes_max} bytes, at least {limits.CHUNK_BYTES_MIN}"
            )
        if self._asks_too_often(device, message.want_version, now_s):
            return
        bundle = self._models.bundle(message.want_version, message.have_version)
        if bundle is None:
            detail = f"version {message.want_version} is not kept"
            self._publish(Refused(FetchRequest.KIND, "unknown_version", detail), device)
            return
        row = self._store.model(bundle.version)
        digest = self._models.digest if row is None else bytes(row["digest"])
        payload_digest = hashlib.sha256(bundle.payload).digest()
        offer = ModelOffer(
            transfer_id=payload_digest[:16],
            version=bundle.version,
            from_version=bundle.from_version,
            payload_bytes=len(bundle.payload),
            payload_digest=payload_digest,
            chunk_bytes=min(self.chunk_bytes_max, message.chunk_bytes_max),
            model_digest=digest,
        )
        self._publish(offer, device)
        count = chunk_count(len(bundle.payload), offer.chunk_bytes)
        if count > limits.CHUNKS_PER_TRANSFER_MAX:
            raise TooLargeError(f"{count} chunks, at most {limits.CHUNKS_PER_TRANSFER_MAX}")
        held = message.received if message.transfer_id == offer.transfer_id else b""
        for index in missing(held, count):
            data = split(bundle.payload, offer.chunk_bytes, index)
            self._publish(Chunk(offer.transfer_id, index, data), device)
