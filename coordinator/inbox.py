"""Updates on their way in: bounded memory, announced before they are kept, gone after a restart.

A restart forgets what is half here on purpose: the device offers again, is told that nothing is
held, and sends again. What is whole is in the store, and only that is receipted.
"""

from coordinator.signals import UpdateStored
from wire import Reassembly, RemoteProtocolError, TooLargeError, limits
from wire.chunks import chunk_count
from wire.messages import Chunk


class Inbox:
    """Incoming transfers, by update id.

    Args:
        payload_bytes_max: the largest update that the schema can mean.
    """

    def __init__(self, payload_bytes_max: int) -> None:
        self._payload_bytes_max = payload_bytes_max
        self._partials: dict[bytes, tuple[UpdateStored, Reassembly]] = {}

    def __len__(self) -> int:
        return len(self._partials)

    def why_too_large(self, payload_bytes: int, chunk_bytes: int) -> TooLargeError | None:
        """Why an announced transfer is refused, or None."""
        if payload_bytes > self._payload_bytes_max:
            return TooLargeError(
                f"an update of {payload_bytes} bytes, at most {self._payload_bytes_max}"
            )
        if chunk_count(payload_bytes, chunk_bytes) > limits.CHUNKS_PER_TRANSFER_MAX:
            return TooLargeError(f"chunks of {chunk_bytes} bytes are too many")
        return None

    def announce(self, device: str, update: UpdateStored, chunk_bytes: int) -> bytes:
        """Expect an update's chunks; returns the bitmap of those held already.

        Announced anew with another size or digest, a transfer starts again. A device has room for
        few at once, all of them for `limits.PARTIAL_BYTES_MAX`: the oldest makes room.
        """
        held = self._partials.get(update.update_id)
        announced = (update.payload_bytes, chunk_bytes, update.payload_digest)
        if held is not None and held[1].matches(*announced):
            return held[1].received
        self._partials.pop(update.update_id, None)
        own = [key for key, (other, _) in self._partials.items() if other.device == device]
        for key in own[: len(own) + 1 - limits.PARTIALS_PER_DEVICE_MAX]:
            del self._partials[key]
        total = sum(other.payload_bytes for other, _ in self._partials.values())
        for key in list(self._partials):
            if total + update.payload_bytes <= limits.PARTIAL_BYTES_MAX:
                break
            total -= self._partials.pop(key)[0].payload_bytes
        reassembly = Reassembly(*announced, payload_bytes_max=self._payload_bytes_max)
        self._partials[update.update_id] = (update, reassembly)
        return reassembly.received

    def add(self, device: str, chunk: Chunk) -> tuple[UpdateStored, bytes] | None:
        """Keep a chunk; the update and its payload when that was the last one.

        A chunk of a transfer that is not here is dropped without a word: a restart or a settlement
        may have passed it on its way. The device's next offer finds out.

        Raises:
            RemoteProtocolError: another device's transfer, or no such chunk.
            DigestMismatchError: the whole is not what was announced; it is dropped.
        """
        held = self._partials.get(chunk.transfer_id)
        if held is None:
            return None
        update, reassembly = held
        if update.device != device:
            raise RemoteProtocolError("the transfer is another device's")
        reassembly.add(chunk.index, chunk.data)
        if not reassembly.complete:
            return None
        del self._partials[chunk.transfer_id]
        return update, reassembly.payload()
