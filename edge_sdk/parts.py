"""Half of a model on disk: what has arrived of a download, kept over a reboot.

One file for each version that is under way. It opens with the coordinator's offer, then has a
checksum for each chunk, then the chunks. A chunk is written first and its checksum after it; what
counts is that a chunk is taken for held only if its bytes give its checksum. So no order of writes
is asked of the disk, nothing is flushed while chunks arrive (a flash cell wears out by writes, and
each flush is some), and whatever a power cut leaves is some chunks that hold and some that are
fetched again. The digest of the whole is compared at the end all the same.

A download of one chunk has no part: half a chunk is not kept.
"""

import contextlib
import errno
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from wire import PotluckError, chunk_count, limits
from wire.chunks import Room
from wire.messages import ModelOffer

# The model that is trained, and the one that was released.
PARTS_MAX: Final = 2
_MAGIC: Final = b"potluck part 1\n\0"
_HEADER: Final = struct.Struct("<16sII")  # magic, bytes of the offer, its CRC-32
_OFFER_BYTES_MAX: Final = 1_024
_CHECK: Final = struct.Struct("<I")


class SpoiledPartError(PotluckError):
    """A file that is no part of a download, or is not whole; it has been deleted."""


class Part(Room, Protocol):
    """Room for a payload, which remembers which chunks it holds."""

    @property
    def received(self) -> bytes:
        """The bitmap of the chunks that it holds, each checked."""
        ...


class PartStore(Protocol):
    """Where the parts of a device's downloads are."""

    def begin(self, offer: ModelOffer) -> Part:
        """Room for an offer's payload, instead of what there was of that version.

        Raises:
            OSError: there is none.
        """
        ...

    def find(self, version: int) -> tuple[ModelOffer, Part] | None:
        """What is here of a version, and the offer that it is of.

        Raises:
            SpoiledPartError: nothing that can be used.
        """
        ...

    def retain(self, versions: Iterable[int]) -> None:
        """Drop the parts of all other versions."""
        ...


class PartFiles:
    """Parts as files beside the models.

    Args:
        directory: made when absent.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def begin(self, offer: ModelOffer) -> "PartFile":
        """Room for an offer's payload: a file with holes, whose bytes take room as they come.

        Where there are too many, the lowest version's makes room.

        Raises:
            OSError: the disk is full, or gone.
        """
        others = {_version_of(path): path for path in self._files()}
        others.pop(offer.version, None)
        for version in sorted(others)[: max(len(others) + 1 - PARTS_MAX, 0)]:
            others[version].unlink(missing_ok=True)
        written = msgspec.msgpack.encode(offer)
        part = PartFile(self._file(offer.version), offer, _HEADER.size + len(written))
        try:
            with part.path.open("wb") as file:
                file.write(_HEADER.pack(_MAGIC, len(written), zlib.crc32(written)) + written)
                file.truncate(part.size_bytes)
        except OSError:
            part.release()
            raise
        return part

    def find(self, version: int) -> "tuple[ModelOffer, PartFile] | None":
        """What is here of a version.

        Raises:
            SpoiledPartError: torn, cut short, or not one of ours; it has been deleted.
        """
        path = self._file(version)
        try:
            offer, part = _open(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise SpoiledPartError(f"{path}: {error}") from error
        return offer, part

    def retain(self, versions: Iterable[int]) -> None:
        """Drop the parts of all other versions."""
        kept = {self._file(version) for version in versions}
        for path in self._files():
            if path not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _files(self) -> list[Path]:
        return list(self._directory.glob("part-*"))

    def _file(self, version: int) -> Path:
        return self._directory / f"part-{version}.bin"


class PartFile:
    """One part's file; open only while it is read or written.

    Args:
        path: of the file.
        offer: what it is a part of.
        checks_at: where its checksums begin.
    """

    def __init__(self, path: Path, offer: ModelOffer, checks_at: int) -> None:
        self.path = path
        self._offer = offer
        self._checks_at = checks_at
        self._count = chunk_count(offer.payload_bytes, offer.chunk_bytes)
        self._bytes_at = checks_at + _CHECK.size * self._count

    @property
    def size_bytes(self) -> int:
        """Of the whole file, holes included."""
        return self._bytes_at + self._offer.payload_bytes

    def put(self, start: int, data: bytes) -> None:
        """Keep a chunk.

        Raises:
            OSError: the disk is full, or gone.
        """
        index = start // self._offer.chunk_bytes
        with self.path.open("r+b", buffering=0) as file:
            for at, written in (
                (self._bytes_at + start, data),
                (self._checks_at + _CHECK.size * index, _check(index, data)),
            ):
                file.seek(at)
                if file.write(written) != len(written):
                    raise OSError(errno.ENOSPC, "the disk took a part of a chunk")

    @property
    def received(self) -> bytes:
        """The bitmap of the chunks whose bytes give their checksum; reads them all."""
        bitmap = bytearray(-(-self._count // 8))
        absent = bytes(_CHECK.size)
        try:
            with self.path.open("rb") as file:
                file.seek(self._checks_at)
                checks = file.read(_CHECK.size * self._count)
                for index in range(self._count):
                    check = checks[_CHECK.size * index : _CHECK.size * (index + 1)]
                    if check == absent:
                        continue
                    file.seek(self._bytes_at + index * self._offer.chunk_bytes)
                    if check == _check(index, file.read(self._size_of(index))):
                        bitmap[index >> 3] |= 1 << (index & 7)
        except OSError:
            return b""
        return bytes(bitmap)

    def _size_of(self, index: int) -> int:
        left = self._offer.payload_bytes - index * self._offer.chunk_bytes
        return min(self._offer.chunk_bytes, left)

    def whole(self) -> bytes:
        """All bytes.

        Raises:
            OSError: the file is gone.
        """
        with self.path.open("rb") as file:
            file.seek(self._bytes_at)
            return file.read(self._offer.payload_bytes)

    def release(self) -> None:
        """Delete it."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _version_of(path: Path) -> int:
    """What version a file is of, by its name; -1 for a name of somebody else's."""
    number = path.stem.removeprefix("part-")
    return int(number) if number.isdecimal() else -1


def _check(index: int, data: bytes) -> bytes:
    """A chunk's checksum; never that of a hole in the file, which is absent."""
    return _CHECK.pack(zlib.crc32(data, index + 1) or 1)


def _open(path: Path) -> tuple[ModelOffer, PartFile]:
    """Read the beginning of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a part, or is cut short.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) != _HEADER.size:
            raise ValueError("cut short")
        magic, size, check = _HEADER.unpack(header)
        if magic != _MAGIC or size > _OFFER_BYTES_MAX:
            raise ValueError("not a part of a download")
        written = file.read(size)
        if len(written) != size or zlib.crc32(written) != check:
            raise ValueError("its offer is damaged")
        file.seek(0, 2)
        end = file.tell()
    try:
        offer = msgspec.msgpack.decode(written, type=ModelOffer)
    except msgspec.DecodeError as error:
        raise ValueError(f"its offer says nothing: {error}") from error
    if chunk_count(offer.payload_bytes, offer.chunk_bytes) > limits.CHUNKS_PER_TRANSFER_MAX:
        raise ValueError("too many chunks")
    part = PartFile(path, offer, _HEADER.size + size)
    if end != part.size_bytes:
        raise ValueError("cut short")
    return offer, part
