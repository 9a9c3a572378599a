"""Half of an update on disk instead of in memory: slots in one file that has no name.

Nothing of it is meant to last: a process that ends, however it ends, leaves nothing behind.
"""

import errno
import tempfile
from pathlib import Path
from typing import IO


class Spill:
    """A file of slots of one size; those given back are used again.

    Args:
        directory: on whose disk.
        slot_bytes: the most that one slot has to hold; what is not written takes no room.
    """

    def __init__(self, directory: Path, slot_bytes: int) -> None:
        self._directory = directory
        self._slot_bytes = slot_bytes
        self._file: IO[bytes] | None = None
        self._free: list[int] = []
        self._slots = 0

    def __len__(self) -> int:
        """How many slots are in use."""
        return self._slots - len(self._free)

    def slot(self, size_bytes: int) -> "Slot":
        """Room for a payload.

        Raises:
            OSError: no file can be made there.
        """
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - lives as long as this
        if not self._free:
            self._free.append(self._slots)
            self._slots += 1
        return Slot(self, self._free.pop(), size_bytes)

    def write(self, number: int, start: int, data: bytes) -> None:
        """Keep bytes of a slot."""
        if self._file is not None:
            self._file.seek(number * self._slot_bytes + start)
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "the disk took a part of a chunk")

    def read(self, number: int, size_bytes: int) -> bytes:
        """The first bytes of a slot; zeros where nothing was written."""
        if self._file is None:
            return bytes(size_bytes)
        self._file.seek(number * self._slot_bytes)
        return self._file.read(size_bytes).ljust(size_bytes, b"\0")

    def release(self, number: int) -> None:
        """A slot is not needed any more; with the last one the disk has its room back."""
        self._free.append(number)
        if len(self) == 0:
            self.close()

    def close(self) -> None:
        """Let go of the file, and of what it holds."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._free, self._slots = [], 0


class Slot:
    """What a `wire.Reassembly` keeps its bytes in."""

    def __init__(self, spill: Spill, number: int, size_bytes: int) -> None:
        self._spill = spill
        self._number = number
        self._size_bytes = size_bytes
        self._released = False

    def put(self, start: int, data: bytes) -> None:
        """Keep bytes.

        Raises:
            OSError: the disk is full, or gone.
        """
        self._spill.write(self._number, start, data)

    def whole(self) -> bytes:
        """All of it."""
        return self._spill.read(self._number, self._size_bytes)

    def release(self) -> None:
        """Give the room back, once."""
        if not self._released:
            self._released = True
            self._spill.release(self._number)
