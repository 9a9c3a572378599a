"""The registry: versions, the aliases that point at them, and files that anybody can read.

An alias is a name that means one version at a time. `stable` is what apps use; `candidate` is a
version that somebody means to release, and devices are not told of it. What an alias meant is never
erased: `promote` and `rollback` each add a line with who did it and when. A rollback goes back to
what the alias meant before the promotion that it undoes, so that a second one goes further back.

Whoever moves an alias may be another process than the coordinator that runs (see docs/adr/0020):
the move is one SQLite transaction, and the coordinator hears of it by looking.

A released version is also a file, `models/sha256/<model digest>.npz`: the shared tensors by name.
Its name is the digest that devices check, and it is checked again whenever the file is read.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from coordinator.models import SCHEMA, tensors_from_bytes, tensors_to_bytes
from coordinator.store import ReleaseRow, Store, VersionRow
from wire import Schema, Tensors, npz, tensors_digest
from wire.errors import PotluckError, RemoteProtocolError

Alias: TypeAlias = Literal["stable", "candidate"]
Actor: TypeAlias = Literal["run_over", "operator", "http"]

STABLE: Final = "stable"
CANDIDATE: Final = "candidate"
ALIASES: Final = (STABLE, CANDIDATE)
RUN_OVER: Final = "run_over"
MODELS_DIR: Final = "models"
# How far back an alias can be rolled: each step costs the store a model in whole.
RELEASES_KEPT: Final = 5


class RegistryError(PotluckError):
    """An alias cannot be moved so, or a version cannot be had; the text says what can."""


class UnknownVersionError(RegistryError):
    """There is no version of that number."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a request to move an alias: its last line, and whether that is a new one."""

    release: ReleaseRow
    changed: bool


def standing(history: Iterable[ReleaseRow]) -> list[int]:
    """What an alias would go back to, the oldest first, and what it means now as the last.

    A promotion is put on top; a rollback takes the top away.
    """
    stack: list[int] = []
    for release in history:
        if release.action == "rollback":
            del stack[-1:]
        if not stack or stack[-1] != release.version:
            stack.append(release.version)
    return stack


class Registry:
    """Versions and aliases of one state directory.

    Args:
        store: read only will do for whatever does not move an alias.
        directory: where files of models are; None where there are none (virtual worlds).
    """

    def __init__(self, store: Store, directory: Path | None = None) -> None:
        self._store = store
        self._directory = None if directory is None else directory / "sha256"

    # -- looking -----------------------------------------------------------------------------

    def aliases(self) -> dict[str, int]:
        """What each alias means now; one that was never promoted is not there."""
        rows = {alias: self._store.released(alias) for alias in ALIASES}
        return {alias: int(row["version"]) for alias, row in rows.items() if row is not None}

    def history(self, alias: str) -> list[ReleaseRow]:
        """Every move of an alias, in order."""
        return [release for release in self._store.releases() if release.alias == alias]

    def vetoes(self) -> dict[int, dict[str, int]]:
        """Version to reason to count: devices whose own check was against it."""
        return self._store.vetoes_by_version()

    def versions(self) -> list[VersionRow]:
        """Every version, in order."""
        return self._store.versions()

    def version(self, version: int) -> VersionRow:
        """A version's row.

        Raises:
            UnknownVersionError: there is none.
        """
        row = self._store.version(version)
        if row is None:
            latest = self._store.latest_version()
            there = "there is none yet" if latest is None else f"the latest is {latest}"
            raise UnknownVersionError(f"version {version}: no such version; {there}")
        return row

    def promotable(self) -> list[int]:
        """Versions that an alias can be pointed at: their tensors are in the store or in a file."""
        return [row.version for row in self._store.versions() if self.is_kept(row)]

    def is_kept(self, row: VersionRow) -> bool:
        """Whether a version's tensors are in the store or in a file."""
        return row.whole or self._file(row.digest) is not None

    def needed_versions(self, releases_kept: int = RELEASES_KEPT) -> frozenset[int]:
        """Versions whose whole tensors must stay.

        The latest, from which training goes on; what each alias means; the `releases_kept` versions
        that it can be rolled back to; and what it meant last, so that a rollback can be taken back.
        """
        latest = self._store.latest_version()
        needed = set() if latest is None else {latest}
        for alias in ALIASES:
            history = self.history(alias)
            needed.update(standing(history)[-1 - releases_kept :])
            needed.update(release.version for release in history[-2:])
        return frozenset(needed)

    # -- moving an alias ---------------------------------------------------------------------

    def promote(
        self, version: int, alias: str = STABLE, *, actor: Actor = "operator", now_s: float
    ) -> Moved:
        """Point an alias at a version; one that it means already is left alone.

        Raises:
            RegistryError: there is no such version, or its tensors are kept no more.
        """
        digest = self._make_whole(version)
        with self._store.transaction():
            now = self._last(alias)
            if now is not None and now.version == version:
                return Moved(now, changed=False)
            if version not in self._store.whole_versions():
                raise self._not_kept(version)
            self._store.release(alias, version, digest, now_s, actor=actor)
            return Moved(self._must_be(self._last(alias)), changed=True)

    def rollback(self, alias: str = STABLE, *, actor: Actor = "operator", now_s: float) -> Moved:
        """Point an alias at what it meant before.

        Raises:
            RegistryError: it meant nothing before, or that version's tensors are kept no more.
        """
        before = self._before(alias)
        digest = self._make_whole(before)
        with self._store.transaction():
            if self._before(alias) != before:
                raise RegistryError(f"{alias} was moved by somebody else just now; look, and retry")
            if before not in self._store.whole_versions():
                raise self._not_kept(before)
            self._store.release(alias, before, digest, now_s, actor=actor, action="rollback")
            return Moved(self._must_be(self._last(alias)), changed=True)

    def _before(self, alias: str) -> int:
        stack = standing(self.history(alias))
        if not stack:
            raise RegistryError(f"{alias}: nothing was ever promoted to it")
        if len(stack) == 1:
            raise RegistryError(f"{alias}: version {stack[0]} is the first; nothing was before it")
        return stack[-2]

    def _last(self, alias: str) -> ReleaseRow | None:
        row = self._store.released(alias)
        return None if row is None else ReleaseRow(**row)

    @staticmethod
    def _must_be(release: ReleaseRow | None) -> ReleaseRow:
        if release is None:
            raise RegistryError("a release that was just written is not there")
        return release

    def _make_whole(self, version: int) -> bytes:
        """See to it that a version's tensors are in the store and in a file; its digest."""
        row = self.version(version)
        if not row.whole:
            tensors = self._read(row)
            if tensors is None:
                raise self._not_kept(version)
            self._store.restore_tensors(version, tensors_to_bytes(self._schema(), tensors))
        # A disk that is full costs the file, which `export` makes later, and not the release.
        with contextlib.suppress(OSError, RegistryError):
            self.export(version)
        return row.digest

    def _not_kept(self, version: int) -> RegistryError:
        kept = ", ".join(map(str, self.promotable()))
        return RegistryError(
            f"version {version}: its tensors are no longer kept; these versions' are: {kept}"
        )

    # -- files -------------------------------------------------------------------------------

    def export(self, version: int) -> Path:
        """A version's file, checked; made if it is not there or damaged.

        Raises:
            RegistryError: no such version, it is not kept, or there is no place for files.
            OSError: it cannot be written.
        """
        row = self.version(version)
        if self._directory is None:
            raise RegistryError("there is no directory for files of models here")
        path = self._directory / f"{row.digest.hex()}.npz"
        if self._read(row) is None:
            kept = self._store.tensors(version)
            if kept is None:
                raise self._not_kept(version)
            tensors = tensors_from_bytes(self._schema(), kept[0])
            _write(path, npz.to_bytes(tensors))
        return path

    def tensors(self, version: int) -> Tensors:
        """A version's shared tensors, from the store or from its file.

        Raises:
            RegistryError: no such version, or it is not kept.
        """
        row = self.version(version)
        kept = self._store.tensors(version)
        if kept is not None:
            return tensors_from_bytes(self._schema(), kept[0])
        tensors = self._read(row)
        if tensors is None:
            raise self._not_kept(version)
        return tensors

    def _file(self, digest: bytes) -> Path | None:
        if self._directory is None:
            return None
        path = self._directory / f"{digest.hex()}.npz"
        return path if path.exists() else None

    def _read(self, row: VersionRow) -> Tensors | None:
        """What a version's file holds; None when it is not there or not what its name says."""
        path = self._file(row.digest)
        if path is None:
            return None
        schema = self._schema()
        try:
            with path.open("rb") as file:
                tensors = npz.read(file)
            schema.check(tensors)
        except (OSError, npz.NpzError, RemoteProtocolError):
            return None
        return tensors if tensors_digest(schema, tensors) == row.digest.hex() else None

    def _schema(self) -> Schema:
        known = self._store.get(SCHEMA)
        if known is None:
            raise RegistryError(
                f"{self._store.path}: the model's tensors have no names yet; run"
                " `potluck coordinator run` once"
            )
        return msgspec.msgpack.decode(known, type=Schema)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, on disk when this returns; several processes may do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
