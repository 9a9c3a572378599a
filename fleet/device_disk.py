"""A device's disk: its journal and its model files, and what a power cut leaves of them.

The journal is SQLite with synchronous=FULL: a transaction is there whole or not at all, and one
that had returned stays. A model file is written beside its place, flushed and renamed: a cut leaves
the old state, with a torn temporary file or without, or the new one. Files also rot. A disk that
says that bytes are written and loses them is not modelled: nothing is promised on such a disk.
What has arrived of a download is never flushed: a process that is killed leaves it, and a power cut
takes what it likes.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from edge_sdk.forecast import Spells
from edge_sdk.journal import Enrolment, Journal, Kept, MemoryJournal
from edge_sdk.parts import PARTS_MAX, SpoiledPartError
from edge_sdk.signals import ForgetUpdate, SealedUpdate, Spent, VetoedRelease
from fleet.disk import Fuse
from wire import Tensors, chunk_count
from wire.messages import ModelOffer

T = TypeVar("T")

_PERSONAL: Final = "personal"
_RESIDUAL: Final = "residual"
_ALWAYS_KEPT: Final = {_PERSONAL, _RESIDUAL}


class DeviceDisk:
    """A device's journal whose writes pass a fuse, before and after each.

    Args:
        fuse: of its process.
        journal: in memory, or a real file.

    Attributes:
        history: every update that was ever forgotten, for checkers.
        last_veto: the last release that was found unfit, for checkers.
    """

    def __init__(self, fuse: Fuse, journal: Journal | None = None) -> None:
        self.history: list[ForgetUpdate] = []
        self.last_veto: VetoedRelease | None = None
        self._fuse = fuse
        self._journal = MemoryJournal() if journal is None else journal
        self._waits = ""

    def _write(self, write: Callable[[], T]) -> T:
        if self._fuse.full:
            raise OSError("no space left on device")
        self._fuse.burn()
        result = write()
        self._fuse.burn()
        return result

    def begin_boot(self) -> Kept:
        """Count a start, and say what is kept."""
        return self._write(self._journal.begin_boot)

    def enrol(self, enrolment: Enrolment) -> None:
        """Remember who this device is."""
        self._write(lambda: self._journal.enrol(enrolment))

    def seal(self, sealed: SealedUpdate, payload: bytes) -> None:
        """Keep an update until it is settled."""
        self._write(lambda: self._journal.seal(sealed, payload))

    def sealed_slice(self, update_id: bytes, start: int, size_bytes: int) -> bytes | None:
        """Bytes of the sealed update's payload, if it is this one; fewer at its end."""
        return self._journal.sealed_slice(update_id, start, size_bytes)

    def forget(self, forgotten: ForgetUpdate) -> None:
        """Drop a settled update's payload and keep a line about it."""

        def forget() -> None:
            self._journal.forget(forgotten)
            self.history.append(forgotten)

        self._write(forget)

    def revoke(self, reason: str) -> None:
        """Remember that the device is out; its sealed update goes."""
        self._write(lambda: self._journal.revoke(reason))

    def note_held(self, version: int) -> None:
        """Remember the newest model whose tensors are stored."""
        self._write(lambda: self._journal.note_held(version))

    def note_released(self, version: int) -> None:
        """Remember the model that the app sees."""
        self._write(lambda: self._journal.note_released(version))

    def veto(self, vetoed: VetoedRelease) -> None:
        """Remember the last release that was found unfit, and that the app does not see it."""

        def veto() -> None:
            self._journal.veto(vetoed)
            self.last_veto = vetoed

        self._write(veto)

    def spend(self, day: int, more: Spent) -> Spent:
        """Add to a day; returns that day's sum."""
        return self._write(lambda: self._journal.spend(day, more))

    def spent(self, day: int) -> Spent:
        """A day's sum so far."""
        return self._journal.spent(day)

    def note_waits(self, reason: str) -> None:
        """Remember why nothing is begun now."""
        if reason != self._waits:
            self._write(lambda: self._journal.note_waits(reason))
            self._waits = reason

    def description(self) -> bytes:
        """The digest of the description that the model is from."""
        return self._journal.description()

    def note_description(self, digest: bytes) -> None:
        """Remember which description is stored."""
        self._write(lambda: self._journal.note_description(digest))

    def spells(self) -> Spells:
        """When the gate was open."""
        return self._journal.spells()

    def live_through(self, spells: Spells) -> None:
        """What a device has lived before its world began: not a write of this one."""
        self._journal.note_spells(spells)

    def note_spells(self, spells: Spells) -> None:
        """Remember when the gate was open."""
        self._write(lambda: self._journal.note_spells(spells))


class DiskShelf:
    """A device's model files, as `edge_sdk.models.FileShelf` keeps them.

    Attributes:
        files: what is in each by its name; None is a damaged one.
        torn: the names whose saves were cut short: each has left a temporary file.
    """

    def __init__(self, fuse: Fuse) -> None:
        self.files: dict[str, Tensors | None] = {}
        self.torn: set[str] = set()
        self._fuse = fuse

    def load(self, version: int) -> Tensors | None:
        """A version's shared tensors, or None when they are not here or damaged."""
        return self.files.get(str(version))

    def save(self, version: int, tensors: Tensors) -> None:
        """Keep a version's shared tensors."""
        self._write(str(version), tensors)

    def _write(self, name: str, tensors: Tensors) -> None:
        self._fuse.burn()
        self.torn.add(name)
        if self._fuse.full:
            raise OSError("no space left on device")
        self._fuse.burn()
        self.files[name] = tensors
        self.torn.discard(name)
        self._fuse.burn()

    def retain(self, versions: Iterable[int]) -> None:
        """Drop all other versions, and what is left of saves that were cut short."""
        kept = {str(version) for version in versions} | _ALWAYS_KEPT
        if self.torn or not kept >= self.files.keys():
            self._fuse.burn()
        self.torn &= _ALWAYS_KEPT
        self.files = {name: held for name, held in self.files.items() if name in kept}

    def path(self, version: int) -> Path | None:  # noqa: ARG002 - no app looks at these files
        """None: there is no file that anybody could open."""
        return None

    def personal(self) -> Tensors:
        """The device's own part of the model, as far as it can be read."""
        return self.files.get(_PERSONAL) or {}

    def save_personal(self, tensors: Tensors) -> None:
        """Keep the device's own part."""
        if tensors:
            self._write(_PERSONAL, tensors)

    def residual(self) -> Tensors:
        """What the codec left out of the last update, as far as it can be read."""
        return self.files.get(_RESIDUAL) or {}

    def save_residual(self, tensors: Tensors) -> None:
        """Keep what was left out; empty drops what was kept."""
        if tensors:
            self._write(_RESIDUAL, tensors)
        elif _RESIDUAL in self.files:
            self._fuse.burn()
            del self.files[_RESIDUAL]

    def damage(self) -> None:
        """Every file rots."""
        self.files = dict.fromkeys(self.files)


class DiskPart:
    """Half of a model on a device's disk, as `edge_sdk.parts.PartFile` keeps it.

    Attributes:
        chunks: whose bytes give their checksums.
        whole_offer: whether it begins with one; else it cannot be used.
    """

    def __init__(self, offer: ModelOffer, store: "DiskParts") -> None:
        self.offer = offer
        self.chunks: dict[int, bytes] = {}
        self.whole_offer = False
        self._store = store

    def put(self, start: int, data: bytes) -> None:
        """Keep a chunk: its bytes, then its checksum."""
        self._store.write(lambda: None)
        self._store.write(lambda: self.chunks.update({start // self.offer.chunk_bytes: data}))

    @property
    def received(self) -> bytes:
        """The bitmap of the chunks that hold."""
        bitmap = bytearray(-(-chunk_count(self.offer.payload_bytes, self.offer.chunk_bytes) // 8))
        for index in self.chunks:
            bitmap[index >> 3] |= 1 << (index & 7)
        return bytes(bitmap)

    def whole(self) -> bytes:
        """All of them; it is read when all are there."""
        return b"".join(self.chunks[index] for index in sorted(self.chunks))

    def release(self) -> None:
        """Delete it."""
        self._store.delete(self)


class DiskParts:
    """What has arrived of a device's downloads, as `edge_sdk.parts.PartFiles` keeps it.

    Attributes:
        parts: by version.
        resumed: how many chunks were found again, by those that looked.
    """

    def __init__(self, fuse: Fuse) -> None:
        self.parts: dict[int, DiskPart] = {}
        self.resumed = 0
        self._fuse = fuse

    def write(self, write: Callable[[], Any]) -> None:
        """Do it, if there is room and power."""
        if self._fuse.full:
            raise OSError("no space left on device")
        self._fuse.burn()
        write()

    def begin(self, offer: ModelOffer) -> DiskPart:
        """Room for an offer's payload, instead of what there was of that version."""
        self.parts.pop(offer.version, None)
        for version in sorted(self.parts)[: max(len(self.parts) + 1 - PARTS_MAX, 0)]:
            del self.parts[version]
        part = self.parts[offer.version] = DiskPart(offer, self)
        try:
            self.write(lambda: None)
        except OSError:
            del self.parts[offer.version]
            raise
        part.whole_offer = True
        return part

    def find(self, version: int) -> tuple[ModelOffer, DiskPart] | None:
        """What is here of a version."""
        part = self.parts.get(version)
        if part is None:
            return None
        if not part.whole_offer:
            del self.parts[version]
            raise SpoiledPartError(f"version {version}: cut short")
        self.resumed += len(part.chunks)
        return part.offer, part

    def retain(self, versions: Iterable[int]) -> None:
        """Drop the parts of all other versions."""
        kept = set(versions)
        if not kept >= self.parts.keys():
            self._fuse.burn()
        self.parts = {version: part for version, part in self.parts.items() if version in kept}

    def delete(self, part: DiskPart) -> None:
        """Delete one, if it is still there."""
        if self.parts.get(part.offer.version) is part:
            del self.parts[part.offer.version]

    def lose_unwritten(self) -> None:
        """Power is cut: of what the system had not yet written, every other chunk is gone."""
        for part in self.parts.values():
            for index in sorted(part.chunks)[self._fuse.effects % 2 :: 2]:
                del part.chunks[index]

    def damage(self) -> None:
        """Every file rots."""
        for part in self.parts.values():
            part.chunks.clear()
