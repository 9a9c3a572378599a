"""Models on their way down: a bundle for each device that asks, in chunks that its link takes.

Or the description of the model, for a device that has none of its own.

A round invites many devices at once, and each may ask for a whole model in the same second. What is
published waits in this process until the broker has taken it, so chunks are published only while
less than a window of bytes waits; the other requests wait, first come, first served, as the few
numbers that they are. A device's next try finds its place kept, and one that asks too often has to
wait for it.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from coordinator.models import Download, Models
from coordinator.store import Store
from wire import Description, RemoteProtocolError, TooLargeError, limits
from wire.chunks import chunk_count, missing, split
from wire.messages import (
    Chunk,
    DescriptionOffer,
    DescriptionRequest,
    FetchRequest,
    Message,
    ModelOffer,
    Refused,
)

# A device that asks for models, or for one of them, more often than this in that time has to wait.
_FETCHES_MAX: Final = 32
_FETCHES_OF_ONE_MAX: Final = 4
_FETCHES_S: Final = 4.0
# What may wait for the broker: some windows of chunks, so that the link never runs dry.
WINDOW_BYTES: Final = 4_194_304
# A device fetches the model that it trains, and the one that was released.
_WAITING_PER_DEVICE_MAX: Final = 2
# Where a version stands, the description.
_DESCRIPTION: Final = -1


def _nothing() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request that waits, with the transfer that it was offered and the chunks that it has."""

    have_version: int
    chunk_bytes: int
    transfer_id: bytes
    received: bytes
    bytes_max: int = limits.TRANSFER_BYTES_MAX


@dataclass(slots=True)
class _Sending:
    """The transfer under way; there is one at a time."""

    device: str
    payload: bytes
    wanted: _Wanted
    left: Iterator[int]


def _within(wanted: _Wanted, left: Iterator[int], payload_bytes: int) -> Iterator[int]:
    """The chunks, from the first on, that have no more bytes together than the device is for."""
    bytes_left = wanted.bytes_max
    for index in left:
        bytes_left -= min(wanted.chunk_bytes, payload_bytes - index * wanted.chunk_bytes)
        if bytes_left < 0:
            return
        yield index


class Downloads:
    """Answers `FetchRequest`s and `DescriptionRequest`s.

    Args:
        models: what there is to send.
        store: knows the digests of older versions.
        publish: sends a message to a device.
        in_flight_bytes: how much of what was published the broker has not taken yet; where
            nobody says, everything is sent at once.
        description: of the model; None where it is too large to be sent.

    Attributes:
        chunk_bytes_max: what the coordinator's own link takes.
    """

    def __init__(
        self,
        models: Models,
        store: Store,
        publish: Callable[[Message, str], None],
        in_flight_bytes: Callable[[], int] = _nothing,
        description: Description | None = None,
    ) -> None:
        self.chunk_bytes_max = 0
        self._models = models
        self._store = store
        self._publish = publish
        self._in_flight_bytes = in_flight_bytes
        self._description = description
        self._served: dict[str, deque[tuple[float, int]]] = {}
        self._waiting: OrderedDict[tuple[str, int], _Wanted] = OrderedDict()
        self._sending: tuple[tuple[str, int], _Sending] | None = None

    def __len__(self) -> int:
        """How many requests are not answered in full."""
        return len(self._waiting) + (self._sending is not None)

    def on_clock_step(self) -> None:
        """Somebody has set the clock: who asked when is forgotten."""
        self._served.clear()

    def on_link_down(self) -> None:
        """What is published now reaches nobody: devices ask again when it does."""
        self._waiting.clear()
        self._sending = None

    def _asks_too_often(self, device: str, version: int, now_s: float) -> bool:
        """Whether to leave a request to the device's next try: each costs us an offer at least."""
        served = self._served.setdefault(device, deque(maxlen=_FETCHES_MAX))
        recent = [number for at_s, number in served if now_s - at_s < _FETCHES_S]
        if len(recent) == _FETCHES_MAX or recent.count(version) >= _FETCHES_OF_ONE_MAX:
            return True
        served.append((now_s, version))
        return False

    def serve(self, device: str, message: FetchRequest | DescriptionRequest, now_s: float) -> None:
        """Offer what brings the device to the version that it wants, and send it when it is due.

        Raises:
            RemoteProtocolError: its chunks are too small, or too many.
        """
        if message.chunk_bytes_max < limits.CHUNK_BYTES_MIN:
            raise RemoteProtocolError(
                f"chunks of {message.chunk_bytes_max} bytes, at least {limits.CHUNK_BYTES_MIN}"
            )
        version, have = _DESCRIPTION, -1
        if isinstance(message, FetchRequest):
            version, have = message.want_version, message.have_version
        if self._asks_too_often(device, version, now_s):
            return
        bundle = self._bundle(device, version, have)
        if bundle is None:
            return
        offer = self._offer(bundle, min(self.chunk_bytes_max, message.chunk_bytes_max))
        self._publish(offer, device)
        count = chunk_count(len(bundle.payload), offer.chunk_bytes)
        if count > limits.CHUNKS_PER_TRANSFER_MAX:
            raise TooLargeError(f"{count} chunks, at most {limits.CHUNKS_PER_TRANSFER_MAX}")
        bytes_max = limits.TRANSFER_BYTES_MAX
        if isinstance(message, DescriptionRequest):
            bytes_max = 0 if message.have_digest == bundle.digest else message.bytes_max
        resumed = message.transfer_id == offer.transfer_id
        wanted = _Wanted(
            have_version=have,
            chunk_bytes=offer.chunk_bytes,
            transfer_id=offer.transfer_id,
            received=message.received[: -(-count // 8)] if resumed else b"",
            bytes_max=bytes_max,
        )
        self._queue((device, version), wanted)
        self.send()

    def _bundle(self, device: str, version: int, have: int) -> Download | None:
        if version == _DESCRIPTION:
            return self._described(device)
        bundle = self._models.bundle(version, have)
        if bundle is None:
            detail = f"version {version} is not kept"
            self._publish(Refused(FetchRequest.KIND, "unknown_version", detail), device)
        return bundle

    def _described(self, device: str) -> Download | None:
        if self._description is None:
            detail = "the model is too large to be sent whole"
            self._publish(Refused(DescriptionRequest.KIND, TooLargeError.reason, detail), device)
            return None
        found = self._description
        return Download(_DESCRIPTION, -1, found.payload, found.digest)

    def _offer(self, bundle: Download, chunk_bytes: int) -> ModelOffer | DescriptionOffer:
        transfer_id, size = bundle.digest[:16], len(bundle.payload)
        if bundle.version == _DESCRIPTION:
            return DescriptionOffer(transfer_id, size, bundle.digest, chunk_bytes)
        row = self._store.model(bundle.version)
        return ModelOffer(
            transfer_id=transfer_id,
            version=bundle.version,
            from_version=bundle.from_version,
            payload_bytes=size,
            payload_digest=bundle.digest,
            chunk_bytes=chunk_bytes,
            model_digest=self._models.digest if row is None else bytes(row["digest"]),
        )

    def _queue(self, key: tuple[str, int], wanted: _Wanted) -> None:
        """Wait in line; who asks again keeps the place, and what is under way starts anew."""
        if self._sending is not None and self._sending[0] == key:
            self._sending = None
            self._waiting[key] = wanted
            self._waiting.move_to_end(key, last=False)
            return
        others = [other for other in self._waiting if other[0] == key[0] and other != key]
        for other in others[: len(others) + 1 - _WAITING_PER_DEVICE_MAX]:
            del self._waiting[other]
        self._waiting[key] = wanted

    def send(self) -> None:
        """Publish chunks while the broker keeps up; to be called again when it has taken some."""
        while len(self) and self._in_flight_bytes() < WINDOW_BYTES:
            sending = self._sending[1] if self._sending is not None else self._next()
            if sending is None:
                continue
            index = next(sending.left, None)
            if index is None:
                self._sending = None
                continue
            data = split(sending.payload, sending.wanted.chunk_bytes, index)
            self._publish(Chunk(sending.wanted.transfer_id, index, data), sending.device)

    def _next(self) -> _Sending | None:
        """Begin with whoever has waited longest; None when that one's version is gone."""
        key, wanted = self._waiting.popitem(last=False)
        device, version = key
        bundle = self._bundle(device, version, wanted.have_version)
        if bundle is None:
            return None
        if bundle.digest[:16] != wanted.transfer_id:
            # Deltas that the offer was made of are not kept any more.
            offer = self._offer(bundle, wanted.chunk_bytes)
            wanted = replace(wanted, transfer_id=offer.transfer_id, received=b"")
            self._publish(offer, device)
        count = chunk_count(len(bundle.payload), wanted.chunk_bytes)
        left = _within(wanted, missing(wanted.received, count), len(bundle.payload))
        sending = _Sending(device, bundle.payload, wanted, left)
        self._sending = (key, sending)
        return sending
