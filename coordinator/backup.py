"""A coordinator in one file, while it runs; and a state directory from such a file.

The file is a tar archive: a manifest with the SHA-256 of everything else, the keys, the store as
SQLite's own online backup gives it, which is one moment of a database that goes on. It holds the
signing key: whoever has the file can be the coordinator.

What is restored is in the past, and its devices are not. See `coordinator.epochs`.
"""

import contextlib
import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from coordinator.epochs import Numbering, begin_epoch
from coordinator.identity import CA_FILE, CA_KEY_FILE, KEY_FILE, STORE_FILE
from coordinator.store import SCHEMA_VERSION, Store, StoreError

FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
_DIGEST: Final = "manifest.sha256"
# The key comes last: its presence says that a state directory is whole.
_PARTS: Final = (CA_KEY_FILE, CA_FILE, STORE_FILE, KEY_FILE)
_MANIFEST_BYTES_MAX: Final = 65_536
_BLOCK: Final = 1_048_576


class _Part(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True):
    format: int
    schema: int
    federation: str
    round: int
    version: int
    made_at: float
    parts: dict[str, _Part]


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """What a backup holds.

    `sha256` is of the manifest, which has the digests of all else. `epoch` is where a restored
    coordinator goes on; in a summary of a backup, where it was.
    """

    federation: str
    round: int
    version: int
    made_at: float
    sha256: str
    epoch: int


def make_backup(state_dir: Path, file: Path, now_s: float) -> BackupSummary:
    """Write a state directory to one new file, whether its coordinator runs or not.

    Raises:
        StoreError: there is no coordinator, the file exists, or it cannot be written.
    """
    if file.exists():
        raise StoreError(f"{file}: exists already; choose another file")
    if not (state_dir / KEY_FILE).exists():
        raise StoreError(f"{state_dir}: no coordinator here")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=file.parent) as directory:
            return _write(state_dir, file, Path(directory), now_s)
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror or error}") from error


def _write(state_dir: Path, file: Path, scratch: Path, now_s: float) -> BackupSummary:
    source = Store(state_dir / STORE_FILE, read_only=True)
    try:
        source.copy_to(scratch / STORE_FILE)
    finally:
        source.close()
    parts = {name: state_dir / name for name in _PARTS if name != STORE_FILE}
    parts[STORE_FILE] = scratch / STORE_FILE
    copy = Store(scratch / STORE_FILE, read_only=True)
    try:
        manifest = _Manifest(
            format=FORMAT,
            schema=SCHEMA_VERSION,
            federation=(copy.get("federation") or b"").decode(),
            round=copy.last_round(),
            version=copy.latest_version() or 0,
            made_at=now_s,
            parts={name: _Part(path.stat().st_size, _sha256(path)) for name, path in parts.items()},
        )
        epoch = Numbering.read(copy).epoch
    finally:
        copy.close()
    head = msgspec.json.encode(manifest)
    digest = hashlib.sha256(head).hexdigest()
    whole = scratch / "backup"
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        with tarfile.open(fileobj=out, mode="w") as archive:
            _add(archive, _MANIFEST, io.BytesIO(head), len(head), now_s)
            _add(archive, _DIGEST, io.BytesIO(digest.encode()), len(digest), now_s)
            for name in _PARTS:
                with parts[name].open("rb") as part:
                    _add(archive, name, part, manifest.parts[name].size, now_s)
        out.flush()
        os.fsync(out.fileno())
    _place(whole, file)
    return BackupSummary(
        manifest.federation, manifest.round, manifest.version, now_s, digest, epoch
    )


def _place(whole: Path, file: Path) -> None:
    """Give the file its name; a link fails where a rename would replace another file."""
    try:
        os.link(whole, file)
    except FileExistsError:
        raise
    except OSError:  # a stick's file system knows no links
        if file.exists():
            raise
        whole.rename(file)


def _add(archive: tarfile.TarFile, name: str, data: IO[bytes], size: int, now_s: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(now_s)
    archive.addfile(member, data)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def restore_backup(
    file: Path, state_dir: Path, now_s: float, epoch: int | None = None
) -> BackupSummary:
    """Make a state directory from a backup; rounds and versions go on far above what may have been.

    Args:
        file: made by `make_backup`.
        state_dir: new or empty; what does not work out leaves nothing in it.
        now_s: unix seconds.
        epoch: instead of one by the clock, when the same backup is restored again within an hour.

    Raises:
        StoreError: the file is no whole backup, or of a newer potluck; the directory is not empty.
    """
    if state_dir.exists() and (not state_dir.is_dir() or any(state_dir.iterdir())):
        raise StoreError(f"{state_dir}: is not empty; restore into a new directory")
    made = not state_dir.exists()
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{state_dir}: {error.strerror or error}") from error
    try:
        return _read(file, state_dir, now_s, epoch)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for path in state_dir.iterdir():
                path.unlink()
            if made:
                state_dir.rmdir()
        if isinstance(error, tarfile.TarError | OSError | EOFError | sqlite3.Error):
            raise StoreError(f"{file}: cannot be restored: {error}") from error
        raise


def _read(file: Path, state_dir: Path, now_s: float, epoch: int | None) -> BackupSummary:
    with tarfile.open(file, mode="r:") as archive:
        head = _small(archive, _MANIFEST, _MANIFEST_BYTES_MAX)
        digest = hashlib.sha256(head).hexdigest()
        if _small(archive, _DIGEST, len(digest)).decode("ascii", "replace") != digest:
            raise StoreError(f"{file}: is damaged: its manifest is not what it was")
        try:
            manifest = msgspec.json.decode(head, type=_Manifest)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{file}: is no backup of a coordinator: {error}") from error
        if manifest.format > FORMAT or manifest.schema > SCHEMA_VERSION:
            raise StoreError(f"{file}: written by a newer potluck (schema {manifest.schema})")
        if set(manifest.parts) != set(_PARTS):
            raise StoreError(f"{file}: is no backup of a coordinator: parts are missing")
        for name in _PARTS[:-1]:
            _extract(archive, name, manifest.parts[name], state_dir, file)
        _check_database(state_dir / STORE_FILE, file)
        # As any start does: it brings the tables up to date.
        store = Store(state_dir / STORE_FILE)
        try:
            numbering = begin_epoch(store, now_s, epoch)
        finally:
            store.close()
        _extract(archive, KEY_FILE, manifest.parts[KEY_FILE], state_dir, file)
    return BackupSummary(
        manifest.federation,
        manifest.round,
        manifest.version,
        manifest.made_at,
        digest,
        numbering.epoch,
    )


def _member(archive: tarfile.TarFile, name: str) -> tuple[tarfile.TarInfo, IO[bytes]]:
    try:
        member = archive.getmember(name)
    except KeyError as error:
        raise tarfile.TarError(f"there is no {name} in it") from error
    data = archive.extractfile(member) if member.isreg() else None
    if data is None:
        raise tarfile.TarError(f"{name} is not a file")
    return member, data


def _small(archive: tarfile.TarFile, name: str, bytes_max: int) -> bytes:
    member, data = _member(archive, name)
    if member.size > bytes_max:
        raise tarfile.TarError(f"{name} has {member.size} bytes, at most {bytes_max}")
    return data.read()


def _extract(archive: tarfile.TarFile, name: str, part: _Part, state_dir: Path, file: Path) -> None:
    member, data = _member(archive, name)
    digest = hashlib.sha256()
    descriptor = os.open(state_dir / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        while block := data.read(_BLOCK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if member.size != part.size or digest.hexdigest() != part.sha256:
        raise StoreError(f"{file}: is damaged: {name} is not what it was; nothing was restored")


def _check_database(path: Path, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreError(f"{file}: its store is damaged: {verdict}; nothing was restored")
