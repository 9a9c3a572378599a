"""A device's disk: its journal and its model files, and what a power cut leaves of them.

The journal is SQLite with synchronous=FULL: a transaction is there whole or not at all, and one
that had returned stays. A model file is written beside its place, flushed and renamed: a cut leaves
the old state, with a torn temporary file or without, or the new one. Files also rot. A disk that
says that bytes are written and loses them is not modelled: nothing is promised on such a disk.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from edge_sdk.forecast import Spells
from edge_sdk.journal import Enrolment, Kept, MemoryJournal
from edge_sdk.signals import ForgetUpdate, SealedUpdate, Spent
from fleet.disk import Fuse
from wire import Tensors

_PERSONAL: Final = "personal"
_RESIDUAL: Final = "residual"
_ALWAYS_KEPT: Final = {_PERSONAL, _RESIDUAL}


class DeviceDisk(MemoryJournal):
    """A device's journal whose writes pass a fuse, before and after each."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse

    def _write(self, write: Callable[[], Any]) -> Any:
        if self._fuse.full:
            raise OSError("no space left on device")
        self._fuse.burn()
        result = write()
        self._fuse.burn()
        return result

    def begin_boot(self) -> Kept:
        """Count a start, and say what is kept."""
        kept: Kept = self._write(super().begin_boot)
        return kept

    def enrol(self, enrolment: Enrolment) -> None:
        """Remember who this device is."""
        self._write(lambda: super(DeviceDisk, self).enrol(enrolment))

    def seal(self, sealed: SealedUpdate, payload: bytes) -> None:
        """Keep an update until it is settled."""
        self._write(lambda: super(DeviceDisk, self).seal(sealed, payload))

    def forget(self, forgotten: ForgetUpdate) -> None:
        """Drop a settled update's payload and keep a line about it."""
        self._write(lambda: super(DeviceDisk, self).forget(forgotten))

    def revoke(self, reason: str) -> None:
        """Remember that the device is out; its sealed update goes."""
        self._write(lambda: super(DeviceDisk, self).revoke(reason))

    def note_held(self, version: int) -> None:
        """Remember the newest model whose tensors are stored."""
        self._write(lambda: super(DeviceDisk, self).note_held(version))

    def note_released(self, version: int) -> None:
        """Remember the model that the app sees."""
        self._write(lambda: super(DeviceDisk, self).note_released(version))

    def spend(self, day: int, more: Spent) -> Spent:
        """Add to a day; returns that day's sum."""
        spent: Spent = self._write(lambda: super(DeviceDisk, self).spend(day, more))
        return spent

    def note_description(self, digest: bytes) -> None:
        """Remember which description is stored."""
        self._write(lambda: super(DeviceDisk, self).note_description(digest))

    def live_through(self, spells: Spells) -> None:
        """What a device has lived before its world began: not a write of this one."""
        super().note_spells(spells)

    def note_spells(self, spells: Spells) -> None:
        """Remember when the gate was open."""
        self._write(lambda: super(DeviceDisk, self).note_spells(spells))


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
