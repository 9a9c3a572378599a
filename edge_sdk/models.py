"""The models that a device has: version 0 came with the task, later ones over the wire.

Kept are the newest (deltas are applied to it, and training starts from it) and the released one
(the app uses it); beside them the personal part, and what a codec with error feedback left out of
the last update. A file appears whole or not at all; what is read is checked against its digest by
whoever asked for it.

Models are looked at where they lie (docs/adr/0032): an app, its device and every other process of
the same app share one copy in the system's page cache.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from wire import Schema, Tensors, npz
from wire.errors import RemoteProtocolError

_PERSONAL_FILE: Final = "personal.npz"
_RESIDUAL_FILE: Final = "residual.npz"


class ModelShelf(Protocol):
    """Where a driver keeps the tensors that travel, by version, and those that do not."""

    def load(self, version: int) -> Tensors | None:
        """A version's shared tensors, or None when they are not here or damaged."""
        ...

    def save(self, version: int, tensors: Tensors) -> None:
        """Keep a version's shared tensors."""
        ...

    def retain(self, versions: Iterable[int]) -> None:
        """Drop all other versions."""
        ...

    def path(self, version: int) -> Path | None:
        """The version's file, None when there is none."""
        ...

    def personal(self) -> Tensors:
        """The device's own part of the model, as far as it has been trained here."""
        ...

    def save_personal(self, tensors: Tensors) -> None:
        """Keep the device's own part."""
        ...

    def residual(self) -> Tensors:
        """What the codec left out of the last update; empty when there is nothing."""
        ...

    def save_residual(self, tensors: Tensors) -> None:
        """Keep what was left out; empty drops what was kept."""
        ...


class MemoryShelf:
    """Models of an emulated device: arrays are shared with every other device that has them."""

    def __init__(self) -> None:
        self._models: dict[int, Tensors] = {}
        self._personal: Tensors = {}
        self._residual: Tensors = {}

    def load(self, version: int) -> Tensors | None:
        """A version's shared tensors."""
        return self._models.get(version)

    def save(self, version: int, tensors: Tensors) -> None:
        """Keep a version's shared tensors."""
        self._models[version] = tensors

    def retain(self, versions: Iterable[int]) -> None:
        """Drop all other versions."""
        kept = set(versions)
        self._models = {v: tensors for v, tensors in self._models.items() if v in kept}

    def path(self, version: int) -> Path | None:  # noqa: ARG002 - there are no files here
        """None: there is no file."""
        return None

    def personal(self) -> Tensors:
        """The device's own part of the model."""
        return self._personal

    def save_personal(self, tensors: Tensors) -> None:
        """Keep the device's own part."""
        self._personal = tensors

    def residual(self) -> Tensors:
        """What the codec left out of the last update."""
        return self._residual

    def save_residual(self, tensors: Tensors) -> None:
        """Keep what was left out."""
        self._residual = tensors


class FileShelf:
    """Models of a real device, one `.npz` a version.

    Args:
        directory: made when absent.
        schema: of all tensors; what a file holds is checked against it.
    """

    def __init__(self, directory: Path, schema: Schema) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._schema = schema
        # What was checked, by file, and which file that was: it is not read again.
        self._mapped: dict[Path, tuple[tuple[int, ...], Tensors]] = {}

    def load(self, version: int) -> Tensors | None:
        """A version's shared tensors, read-only, or None when they are not here or damaged.

        Length, checksums, schema and finiteness are looked at once for each file.
        """
        path = self._file(version)
        try:
            about = path.stat()
            which = (about.st_ino, about.st_size, about.st_mtime_ns)
            known = self._mapped.get(path)
            if known is not None and known[0] == which:
                return dict(known[1])
            tensors = npz.mapped(path)
            self._schema.shared.check(tensors)
        except (OSError, ValueError, npz.NpzError, RemoteProtocolError):
            self._mapped.pop(path, None)
            return None
        self._mapped[path] = (which, tensors)
        return dict(tensors)

    def save(self, version: int, tensors: Tensors) -> None:
        """Keep a version's shared tensors; they are on disk when this returns."""
        path = self._file(version)
        self._mapped.pop(path, None)  # Windows does not replace what is mapped
        _write(path, tensors, aligned=True)

    def retain(self, versions: Iterable[int]) -> None:
        """Drop all other versions.

        On Windows a file stays as long as somebody has it mapped, and goes at a later call.
        """
        kept = {self._file(version) for version in versions}
        self._mapped = {path: known for path, known in self._mapped.items() if path in kept}
        for path in self._directory.glob("model-*"):
            # A save that was cut short leaves its temporary file; none is under way here.
            if path not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def path(self, version: int) -> Path | None:
        """The version's file, None when there is none."""
        path = self._file(version)
        return path if path.exists() else None

    def versions(self) -> list[int]:
        """Which are kept, the oldest first."""
        names = (path.stem.removeprefix("model-") for path in self._directory.glob("model-*.npz"))
        return sorted(int(name) for name in names if name.isdecimal())

    def personal(self) -> Tensors:
        """The device's own part of the model; what no longer fits the schema is left out."""
        specs = {spec.name: spec for spec in self._schema.tensors if spec.part == "personal"}
        kept = _read(self._directory / _PERSONAL_FILE)
        return {
            name: array
            for name, array in kept.items()
            if name in specs and array.shape == specs[name].shape and array.dtype == np.float32
        }

    def save_personal(self, tensors: Tensors) -> None:
        """Keep the device's own part."""
        if tensors:
            _write(self._directory / _PERSONAL_FILE, tensors)

    def residual(self) -> Tensors:
        """What the codec left out of the last update; nothing when it is of another schema."""
        kept = _read(self._directory / _RESIDUAL_FILE)
        shared = self._schema.shared
        try:
            # It has those tensors alone whose codec left something out.
            shared.check({**shared.zeros(), **kept})
        except RemoteProtocolError:
            return {}
        return kept

    def save_residual(self, tensors: Tensors) -> None:
        """Keep what was left out; empty drops what was kept."""
        path = self._directory / _RESIDUAL_FILE
        if tensors:
            _write(path, tensors)
        else:
            path.unlink(missing_ok=True)

    def _file(self, version: int) -> Path:
        return self._directory / f"model-{version}.npz"


def _read(path: Path) -> Tensors:
    """What a file of arrays holds; nothing when it is not there or not one."""
    try:
        with path.open("rb") as file:
            return npz.read(file)
    except (OSError, npz.NpzError):
        return {}


def _write(path: Path, tensors: Tensors, *, aligned: bool = False) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            npz.write(file, tensors, aligned=aligned)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        # A disk that is full is not to stay so for half a model.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # The name is in the directory, which has to reach the disk too.
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
