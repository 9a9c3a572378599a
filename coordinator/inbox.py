"""Updates on their way in: bounded memory, announced before they are kept, gone after a restart.

A cohort uploads at once, and an update may be as large as the model: a few are put together in
memory, the others on disk, where there is one. A restart forgets what is half here on purpose: the
device offers again, is told that nothing is held, and sends again. What is whole is in the store,
and only that is receipted.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from coordinator.signals import UpdateStored
from wire import Reassembly, RemoteProtocolError, TooLargeError, limits
from wire.chunks import MemoryRoom, Room, chunk_count
from wire.messages import Chunk

# What transfers hold in memory where there is a disk for the rest.
MEMORY_BYTES_MAX: Final = 16_777_216


class Disk(Protocol):
    """Where transfers wait that memory has no room for."""

    def slot(self, size_bytes: int) -> Room:
        """Room for one of them; OSError when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class _Partial:
    """A transfer of which something is missing."""

    update: UpdateStored
    reassembly: Reassembly
    room: Room
    in_memory: bool


class Inbox:
    """Incoming transfers, by update id.

    Args:
        payload_bytes_max: the largest update that the schema can mean.
        disk: where to keep what passes `memory_bytes_max`; None keeps all of it in memory.
        memory_bytes_max: how much to keep in memory when there is a disk.
    """

    def __init__(
        self,
        payload_bytes_max: int,
        disk: Disk | None = None,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
    ) -> None:
        self._payload_bytes_max = payload_bytes_max
        self._disk = disk
        self._memory_bytes_max = memory_bytes_max
        # The transfer stands first from which nothing has come for longest.
        self._partials: OrderedDict[bytes, _Partial] = OrderedDict()

    def __len__(self) -> int:
        return len(self._partials)

    @property
    def held_bytes(self) -> int:
        """What transfers have room for, in memory and on disk."""
        return sum(partial.update.payload_bytes for partial in self._partials.values())

    @property
    def memory_bytes(self) -> int:
        """What transfers hold in memory."""
        return sum(p.update.payload_bytes for p in self._partials.values() if p.in_memory)

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
        few at once, all of them for `limits.PARTIAL_BYTES_MAX`: the one makes room from which
        nothing has come for longest.

        Raises:
            TooLargeError: see `why_too_large`; nothing has been allocated.
        """
        refusal = self.why_too_large(update.payload_bytes, chunk_bytes)
        if refusal is not None:
            raise refusal
        held = self._partials.get(update.update_id)
        announced = (update.payload_bytes, chunk_bytes, update.payload_digest)
        if held is not None and held.reassembly.matches(*announced):
            return held.reassembly.received
        self._drop(update.update_id)
        own = [key for key, other in self._partials.items() if other.update.device == device]
        for key in own[: len(own) + 1 - limits.PARTIALS_PER_DEVICE_MAX]:
            self._drop(key)
        for key in list(self._partials):
            if self.held_bytes + update.payload_bytes <= limits.PARTIAL_BYTES_MAX:
                break
            self._drop(key)
        room, in_memory = self._room(update.payload_bytes)
        reassembly = Reassembly(*announced, payload_bytes_max=self._payload_bytes_max, room=room)
        self._partials[update.update_id] = _Partial(update, reassembly, room, in_memory)
        return reassembly.received

    def _room(self, payload_bytes: int) -> tuple[Room, bool]:
        """In memory while there is some, else on disk; the first is in memory whatever its size."""
        held_bytes = self.memory_bytes
        full = held_bytes > 0 and held_bytes + payload_bytes > self._memory_bytes_max
        if full and self._disk is not None:
            try:
                return self._disk.slot(payload_bytes), False
            except OSError:
                # No disk: the oldest in memory makes room, as if all memory were taken.
                for key in [key for key, p in self._partials.items() if p.in_memory]:
                    if self.memory_bytes + payload_bytes <= self._memory_bytes_max:
                        break
                    self._drop(key)
        return MemoryRoom(payload_bytes), True

    def _drop(self, update_id: bytes) -> None:
        partial = self._partials.pop(update_id, None)
        if partial is not None:
            partial.room.release()

    def add(self, device: str, chunk: Chunk) -> tuple[UpdateStored, bytes] | None:
        """Keep a chunk; the update and its payload when that was the last one.

        A chunk of a transfer that is not here is dropped without a word: a restart or a settlement
        may have passed it on its way. The device's next offer finds out. So it is with a transfer
        that the disk has no room for.

        Raises:
            RemoteProtocolError: another device's transfer, or no such chunk.
            DigestMismatchError: the whole is not what was announced; it is dropped.
        """
        held = self._partials.get(chunk.transfer_id)
        if held is None:
            return None
        if held.update.device != device:
            raise RemoteProtocolError("the transfer is another device's")
        self._partials.move_to_end(chunk.transfer_id)
        try:
            held.reassembly.add(chunk.index, chunk.data)
            if not held.reassembly.complete:
                return None
            payload = held.reassembly.payload()
        except OSError:
            self._drop(chunk.transfer_id)
            return None
        except RemoteProtocolError:
            if held.reassembly.complete:
                self._drop(chunk.transfer_id)
            raise
        self._drop(chunk.transfer_id)
        return held.update, payload
