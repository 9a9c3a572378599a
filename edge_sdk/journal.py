"""What a device must not lose: one SQLite file, synchronous=FULL, or nothing but memory.

The journal holds who the device is, the update that is sealed and not yet settled, with its
payload, a line about each settled one, and what was spent on each day. Each method that changes
something is one transaction and is on disk when it returns. `MemoryJournal` is the same without a
disk, for emulated devices.
"""

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from edge_sdk.forecast import Spells
from edge_sdk.signals import NOTHING, ForgetUpdate, SealedUpdate, Spent, VetoedRelease
from wire.errors import PotluckError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

JOURNAL_FILE: Final = "journal.sqlite"
# SQLite's SQLITE_BUSY, SQLITE_LOCKED, SQLITE_IOERR and SQLITE_FULL; the rest of a code says more.
_MAY_PASS: Final = frozenset({5, 6, 10, 13})
_PRIMARY: Final = 0xFF
HISTORY_LINES_MAX: Final = 1_000
DAYS_KEPT: Final = 64
# Of the write-ahead log, which SQLite else lets grow to 4 MB before it is folded in; one
# transaction more, a sealed payload, may stand in it.
WAL_PAGES_MAX: Final = 64
_PAGE_BYTES: Final = 4_096
# How long another process may hold the file before that is an error, in seconds.
LOCKED_S: Final = 5.0

# A new file runs the same steps as an old one; the last step's number is the schema's version.
_MIGRATIONS: Final = (
    """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE sealed (
    only INTEGER PRIMARY KEY CHECK (only = 1), record BLOB NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE history (
    sequence INTEGER PRIMARY KEY, update_id BLOB NOT NULL, round INTEGER NOT NULL,
    counted INTEGER NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE TABLE spent (day INTEGER PRIMARY KEY, bytes INTEGER NOT NULL) STRICT;
""",
    """
ALTER TABLE spent ADD COLUMN joules REAL NOT NULL DEFAULT 0.0;
ALTER TABLE spent ADD COLUMN training_s REAL NOT NULL DEFAULT 0.0;
""",
)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


class JournalError(PotluckError):
    """The journal cannot be used; the text says why and what to do."""


@contextmanager
def readable(path: Path) -> "Iterator[None]":
    """Whatever a journal that is damaged, or has no room, makes of its user: a `JournalError`."""
    import sqlite3  # noqa: PLC0415 - only a device with a disk needs it

    try:
        yield
    except JournalError:
        raise
    except (sqlite3.Error, OSError, msgspec.MsgspecError, ValueError, TypeError) as error:
        what = (
            "make room, or end whoever holds the file"
            if no_room(error)
            else "if the file is damaged, move it away and enrol again"
        )
        raise JournalError(f"{path}: {error}; {what}") from error


def no_room(error: BaseException) -> bool:
    """Whether this is a disk that is full, or a file that others keep locked: it may pass."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & _PRIMARY in _MAY_PASS
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Enrolment(msgspec.Struct, frozen=True):
    """Who this device is to its coordinator, and where that is found."""

    device: str
    federation: str
    coordinator_key: bytes
    broker: str
    ca: str
    certificate: bytes


@dataclass(frozen=True)
class Kept:
    """What a journal holds when a device starts. `boot` counts this start too."""

    boot: int
    enrolment: Enrolment | None
    sealed: SealedUpdate | None
    held_version: int
    released_version: int
    last_round: int
    revoked: bool
    veto: VetoedRelease | None = None


class Journal(Protocol):
    """What a driver asks of a journal."""

    def begin_boot(self) -> Kept:
        """Count a start, and say what is kept."""
        ...

    def enrol(self, enrolment: Enrolment) -> None:
        """Remember who this device is."""
        ...

    def seal(self, sealed: SealedUpdate, payload: bytes) -> None:
        """Keep an update until it is settled."""
        ...

    def sealed_slice(self, update_id: bytes, start: int, size_bytes: int) -> bytes | None:
        """Bytes of the sealed update's payload, if it is this one; fewer at its end."""
        ...

    def forget(self, forgotten: ForgetUpdate) -> None:
        """Drop a settled update's payload and keep a line about it."""
        ...

    def revoke(self, reason: str) -> None:
        """Remember that the device is out; its sealed update goes."""
        ...

    def note_held(self, version: int) -> None:
        """Remember the newest model whose tensors are stored."""
        ...

    def note_released(self, version: int) -> None:
        """Remember the model that the app sees."""
        ...

    def veto(self, vetoed: VetoedRelease) -> None:
        """Remember the last release that was found unfit, and that the app does not see it."""
        ...

    def spend(self, day: int, more: Spent) -> Spent:
        """Add to a day (days since 1970); returns that day's sum."""
        ...

    def spent(self, day: int) -> Spent:
        """A day's sum so far."""
        ...

    def note_waits(self, reason: str) -> None:
        """Remember why nothing is begun now, empty when something may be; for people."""
        ...

    def description(self) -> bytes:
        """The digest of the description that the model is from; empty for none."""
        ...

    def note_description(self, digest: bytes) -> None:
        """Remember which description is stored."""
        ...

    def spells(self) -> Spells:
        """When the gate was open, for forecasts."""
        ...

    def note_spells(self, spells: Spells) -> None:
        """Remember when the gate was open."""
        ...


@dataclass
class MemoryJournal:
    """A journal without a disk: an emulated device's, which crashes only when told to."""

    enrolment: Enrolment | None = None
    boot: int = 0
    history: list[ForgetUpdate] = field(default_factory=list)
    waits: str = ""
    _sealed: tuple[SealedUpdate, bytes] | None = None
    _held_version: int = 0
    _released_version: int = 0
    _last_round: int = 0
    _revoked: bool = False
    last_veto: VetoedRelease | None = None
    _spent: dict[int, Spent] = field(default_factory=dict)
    _spells: Spells = field(default_factory=Spells)
    _description: bytes = b""

    def begin_boot(self) -> Kept:
        """Count a start, and say what is kept."""
        self.boot += 1
        return Kept(
            boot=self.boot,
            enrolment=self.enrolment,
            sealed=None if self._sealed is None else self._sealed[0],
            held_version=self._held_version,
            released_version=self._released_version,
            last_round=self._last_round,
            revoked=self._revoked,
            veto=self.last_veto,
        )

    def enrol(self, enrolment: Enrolment) -> None:
        """Remember who this device is."""
        self.enrolment = enrolment

    def seal(self, sealed: SealedUpdate, payload: bytes) -> None:
        """Keep an update until it is settled."""
        self._sealed = (sealed, payload)
        self._last_round = sealed.round

    def sealed_slice(self, update_id: bytes, start: int, size_bytes: int) -> bytes | None:
        """Bytes of the sealed update's payload, if it is this one; fewer at its end."""
        if self._sealed is None or self._sealed[0].update_id != update_id:
            return None
        return self._sealed[1][start : start + size_bytes]

    def forget(self, forgotten: ForgetUpdate) -> None:
        """Drop a settled update's payload and keep a line about it."""
        self._sealed = None
        self.history.append(forgotten)

    def revoke(self, reason: str) -> None:  # noqa: ARG002 - the file's journal keeps it for people
        """Remember that the device is out; its sealed update goes."""
        self._sealed = None
        self._revoked = True

    def note_held(self, version: int) -> None:
        """Remember the newest model whose tensors are stored."""
        self._held_version = version

    def note_released(self, version: int) -> None:
        """Remember the model that the app sees."""
        self._released_version = version

    def veto(self, vetoed: VetoedRelease) -> None:
        """Remember the last release that was found unfit, and that the app does not see it."""
        self.last_veto = vetoed
        self._released_version = vetoed.kept_version

    def spend(self, day: int, more: Spent) -> Spent:
        """Add to a day (days since 1970); returns that day's sum."""
        self._spent[day] = self._spent.get(day, NOTHING) + more
        return self._spent[day]

    def spent(self, day: int) -> Spent:
        """A day's sum so far."""
        return self._spent.get(day, NOTHING)

    def note_waits(self, reason: str) -> None:
        """Remember why nothing is begun now."""
        self.waits = reason

    def description(self) -> bytes:
        """The digest of the description that the model is from."""
        return self._description

    def note_description(self, digest: bytes) -> None:
        """Remember which description is stored."""
        self._description = digest

    def spells(self) -> Spells:
        """When the gate was open."""
        return self._spells

    def note_spells(self, spells: Spells) -> None:
        """Remember when the gate was open."""
        self._spells = spells


class SqliteJournal:
    """The journal of a real device.

    Args:
        state_dir: the directory of the file, made when absent.
        read_only: for `potluck device status`, beside a running device.

    Raises:
        JournalError: not a journal, damaged, written by a newer potluck, or not to be written.
    """

    def __init__(self, state_dir: Path, *, read_only: bool = False) -> None:
        import sqlite3  # noqa: PLC0415 - only a device with a disk needs it

        self.path = state_dir / JOURNAL_FILE
        with readable(self.path):
            if read_only:
                if not self.path.exists():
                    raise JournalError(f"{state_dir}: no device has run here yet")
                self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
            else:
                state_dir.mkdir(parents=True, exist_ok=True)
                # Made before SQLite opens it, so that the key inside is its owner's alone.
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
                self._db = sqlite3.connect(
                    self.path, isolation_level=None, check_same_thread=False, timeout=LOCKED_S
                )
            self._db.row_factory = sqlite3.Row
            try:
                if not read_only:
                    self._db.execute("PRAGMA journal_mode=WAL")
                    self._db.execute("PRAGMA synchronous=FULL")
                    self._db.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES_MAX}")
                    self._db.execute(f"PRAGMA journal_size_limit={WAL_PAGES_MAX * _PAGE_BYTES}")
                self._open_schema(read_only=read_only)
            except BaseException:
                self._db.close()
                raise

    def _open_schema(self, *, read_only: bool) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise JournalError(f"{self.path}: written by a newer potluck (schema {version})")
        if version == 0 and read_only:
            raise JournalError(f"{self.path}: no device has run here yet")
        if read_only or version == SCHEMA_VERSION:
            return
        with self._transaction():
            for statement in "".join(_MIGRATIONS[version:]).split(";\n"):
                if statement.strip():
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> "Iterator[sqlite3.Connection]":
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a COMMIT that fails for lack of space leaves it open
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _fact(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row["value"])

    def _number(self, name: str) -> int:
        value = self._fact(name)
        return 0 if value is None else int.from_bytes(value, "little", signed=True)

    def _put(self, name: str, value: bytes | int) -> None:
        stored = value.to_bytes(8, "little", signed=True) if isinstance(value, int) else value
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, stored))

    # -- who the device is -------------------------------------------------------------------

    def identity_key(self, fresh: bytes) -> bytes:
        """The device's Ed25519 seed (32 bytes): the one that is kept, or `fresh`, kept from now."""
        with self._transaction():
            kept = self._fact("identity_key")
            if kept is None:
                self._put("identity_key", fresh)
                kept = fresh
        return kept

    def enrol(self, enrolment: Enrolment) -> None:
        """Remember who this device is."""
        self._put("enrolment", msgspec.msgpack.encode(enrolment))

    @property
    def enrolment(self) -> Enrolment | None:
        """Who this device is, None before it is enrolled."""
        value = self._fact("enrolment")
        return None if value is None else msgspec.msgpack.decode(value, type=Enrolment)

    @property
    def revoked(self) -> str | None:
        """Why the device is out of the federation, None while it is in."""
        value = self._fact("revoked")
        return None if value is None else value.decode()

    @property
    def opted_out(self) -> bool:
        """Whether the owner wants nothing to be sent."""
        return self._number("opted_out") == 1

    def set_opted_out(self, *, opted_out: bool) -> bool:
        """Remember whether the owner wants nothing to be sent; False when that is no news."""
        with self._transaction():
            if self.opted_out == opted_out:
                return False
            self._put("opted_out", int(opted_out))
        return True

    @property
    def leave_asked(self) -> bool:
        """Whether the owner wants the device out of the federation."""
        return self._number("leave_asked") == 1

    def ask_to_leave(self) -> None:
        """Remember that the owner wants the device out."""
        self._put("leave_asked", 1)

    # -- the session -------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget who the device is, its key and its models; what it did stays in the history."""
        with self._transaction() as db:
            db.execute("DELETE FROM sealed")
            db.execute("DELETE FROM facts WHERE name != 'boot'")

    def begin_boot(self) -> Kept:
        """Count a start, and say what is kept."""
        with self._transaction():
            boot = self._number("boot") + 1
            self._put("boot", boot)
        return self.kept(boot)

    def kept(self, boot: int | None = None) -> Kept:
        """What is kept, without counting a start."""
        row = self._db.execute("SELECT record FROM sealed").fetchone()
        return Kept(
            boot=self._number("boot") if boot is None else boot,
            enrolment=self.enrolment,
            sealed=None
            if row is None
            else msgspec.msgpack.decode(row["record"], type=SealedUpdate),
            held_version=self._number("held_version"),
            released_version=self._number("released_version"),
            last_round=self._number("last_round"),
            revoked=self.revoked is not None,
            veto=self._last_veto(),
        )

    def seal(self, sealed: SealedUpdate, payload: bytes) -> None:
        """Keep an update until it is settled."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO sealed VALUES (1, ?, ?)",
                (msgspec.msgpack.encode(sealed), payload),
            )
            self._put("last_round", sealed.round)

    def sealed_slice(self, update_id: bytes, start: int, size_bytes: int) -> bytes | None:
        """Bytes of the sealed update's payload, if it is this one; fewer at its end.

        Only they are read. The handle is not kept: it would hold back the checkpoints of the
        write-ahead log for as long as an upload takes.
        """
        row = self._db.execute("SELECT record FROM sealed").fetchone()
        if row is None:
            return None
        sealed = msgspec.msgpack.decode(row["record"], type=SealedUpdate)
        if sealed.update_id != update_id:
            return None
        with self._db.blobopen("sealed", "payload", 1, readonly=True) as blob:
            blob.seek(min(start, len(blob)))
            return blob.read(size_bytes)

    def forget(self, forgotten: ForgetUpdate) -> None:
        """Drop a settled update's payload and keep a line about it, for the last 1,000."""
        with self._transaction() as db:
            db.execute("DELETE FROM sealed")
            db.execute(
                "INSERT INTO history (update_id, round, counted, reason) VALUES (?, ?, ?, ?)",
                (forgotten.update_id, forgotten.round, int(forgotten.counted), forgotten.reason),
            )
            db.execute(
                "DELETE FROM history WHERE sequence <= (SELECT MAX(sequence) FROM history) - ?",
                (HISTORY_LINES_MAX,),
            )

    def revoke(self, reason: str) -> None:
        """Remember that the device is out; its sealed update goes."""
        with self._transaction() as db:
            db.execute("DELETE FROM sealed")
            self._put("revoked", reason.encode())

    def note_held(self, version: int) -> None:
        """Remember the newest model whose tensors are stored."""
        self._put("held_version", version)

    def note_released(self, version: int) -> None:
        """Remember the model that the app sees."""
        self._put("released_version", version)

    def veto(self, vetoed: VetoedRelease) -> None:
        """Remember the last release that was found unfit, and that the app does not see it.

        What it sees is written too: a version may have been in use, lost to a damaged disk, and
        found unfit when it came again.
        """
        with self._transaction():
            self._put("veto", msgspec.msgpack.encode(vetoed))
            self._put("released_version", vetoed.kept_version)

    def _last_veto(self) -> VetoedRelease | None:
        value = self._fact("veto")
        return None if value is None else msgspec.msgpack.decode(value, type=VetoedRelease)

    def spend(self, day: int, more: Spent) -> Spent:
        """Add to a day (days since 1970); returns that day's sum.

        The 64 days next to it are kept: also the old ones when a clock is wrong by a year.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO spent (day, bytes, joules, training_s) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (day) DO UPDATE SET bytes = bytes + excluded.bytes,"
                " joules = joules + excluded.joules,"
                " training_s = training_s + excluded.training_s",
                (day, more.traffic_bytes, more.joules, more.training_s),
            )
            db.execute(
                "DELETE FROM spent WHERE day NOT IN"
                " (SELECT day FROM spent ORDER BY ABS(day - ?) LIMIT ?)",
                (day, DAYS_KEPT),
            )
            return self.spent(day)

    def spent(self, day: int) -> Spent:
        """A day's sum so far."""
        row: Any = self._db.execute("SELECT * FROM spent WHERE day = ?", (day,)).fetchone()
        return NOTHING if row is None else _spent_in(row)

    def note_waits(self, reason: str) -> None:
        """Remember why nothing is begun now, empty when something may be; for people."""
        if self.waits != reason:
            self._put("waits", reason.encode())

    @property
    def waits(self) -> str:
        """Why nothing was begun when the rules were last looked at."""
        return (self._fact("waits") or b"").decode()

    def description(self) -> bytes:
        """The digest of the description that the model is from; empty for none."""
        return self._fact("description") or b""

    def note_description(self, digest: bytes) -> None:
        """Remember which description is stored."""
        self._put("description", digest)

    def spells(self) -> Spells:
        """When the gate was open; none when what is kept cannot be read."""
        value = self._fact("spells")
        try:
            return Spells() if value is None else msgspec.msgpack.decode(value, type=Spells)
        except msgspec.DecodeError:
            return Spells()

    def note_spells(self, spells: Spells) -> None:
        """Remember when the gate was open: some 2 KB, replaced each time."""
        self._put("spells", msgspec.msgpack.encode(spells))

    def history(self) -> list[ForgetUpdate]:
        """Settled updates, the oldest first."""
        rows = self._db.execute("SELECT * FROM history ORDER BY sequence")
        return [
            ForgetUpdate(bytes(r["update_id"]), r["round"], bool(r["counted"]), r["reason"])
            for r in rows
        ]

    def spent_by_day(self) -> dict[int, Spent]:
        """Sums by day (days since 1970)."""
        return {
            r["day"]: _spent_in(r) for r in self._db.execute("SELECT * FROM spent ORDER BY day")
        }


def _spent_in(row: Any) -> Spent:
    """A day's line; whoever only reads may find one of before there were joules."""
    if "joules" not in row.keys():  # noqa: SIM118 - a Row, whose `in` looks at values
        return Spent(int(row["bytes"]))
    return Spent(int(row["bytes"]), float(row["joules"]), float(row["training_s"]))
