"""The file itself: opening, bringing it up to date, transactions, a drawer of keys and values."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from coordinator.store._schema import MIGRATIONS, SCHEMA_VERSION
from wire.errors import PotluckError

# A quota and a limit on the size of files come as a write that failed, not as a full disk.
_NO_ROOM: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
)


class StoreError(PotluckError):
    """The state directory cannot be used; the text says why and what to do."""


class DiskFullError(StoreError):
    """There is no room to write; nothing was changed, and the same may be tried again later."""


class _Connection(sqlite3.Connection):
    """A connection that tells a full disk from whatever else may go wrong."""

    path: Path

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As sqlite3's.

        Raises:
            DiskFullError: there is no room to write.
        """
        try:
            return super().execute(sql, parameters)
        except sqlite3.OperationalError as error:
            raise _told_apart(error, self.path) from error

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        """As `execute`."""
        try:
            return super().executemany(sql, parameters)
        except sqlite3.OperationalError as error:
            raise _told_apart(error, self.path) from error


def _told_apart(error: sqlite3.OperationalError, path: Path) -> Exception:
    if getattr(error, "sqlite_errorcode", None) in _NO_ROOM:
        return DiskFullError(f"{path}: the disk is full; make room, then start again")
    return error


class Database:
    """One SQLite file. One thread of one process writes; anybody may read.

    Args:
        path: the SQLite file; made when absent.
        read_only: look, beside a running coordinator; nothing is made.
        connect: opens the database instead of `path`, for worlds whose disks fail on purpose.

    Raises:
        StoreError: it is not a store, or was written by a newer potluck.
        DiskFullError: it has to be made or brought up to date, and there is no room.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        connect: Callable[[], sqlite3.Connection] | None = None,
    ) -> None:
        self.path = path
        try:
            if read_only:
                uri = f"{path.resolve().as_uri()}?mode=ro"
                self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            else:
                self._db = _connect(path) if connect is None else connect()
                # Only a new file can be told so; what is deleted later gives its pages back.
                self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys=ON")
            try:
                self._open_schema(read_only=read_only, is_file=connect is None)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}; is it a coordinator's state?") from error

    def _open_schema(self, *, read_only: bool, is_file: bool) -> None:
        """Bring the file to this version of its tables, one step after the other.

        A new file takes the same steps, so that there is one way to what the tables are. A file
        that held something is copied first, beside itself.
        """
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(f"{self.path}: written by a newer potluck (schema {version})")
        if version == SCHEMA_VERSION:
            return
        if read_only and version == 0:
            raise StoreError(f"{self.path}: no coordinator has run here yet")
        if read_only:
            raise StoreError(
                f"{self.path}: written by an older potluck (schema {version}); its coordinator"
                " brings it up to date when it starts"
            )
        if version > 0 and is_file:
            self._keep_copy(version)
        with self.transaction():
            # Another process may have been quicker.
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            for migration in MIGRATIONS[version:]:
                for statement in migration.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _keep_copy(self, version: int) -> None:
        """Copy the file as an older potluck left it; of an older copy than that nothing stays."""
        copy = self.path.with_name(f"{self.path.name}.v{version}.bak")
        _copy(self._db, copy)
        for older in self.path.parent.glob(f"{self.path.name}.v*.bak"):
            if older != copy:
                older.unlink(missing_ok=True)

    def _in_transaction(self) -> bool:
        return self._db.in_transaction

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; one that begins inside another is part of it."""
        if self._in_transaction():
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._in_transaction():  # a COMMIT that fails for lack of space leaves it open
                self._db.execute("ROLLBACK")
            raise

    def _one(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, parameters).fetchone()
        return row

    # -- room --------------------------------------------------------------------------------

    def copy_to(self, copy: Path) -> None:
        """Copy the database as it is at this moment, while others go on writing it.

        Raises:
            DiskFullError: there is no room for it.
            OSError: it cannot be written for another reason.
        """
        _copy(self._db, copy)

    def give_back_pages(self, pages_max: int) -> None:
        """Shorten the file by at most so many free pages, if it was made to be shortened."""
        # A step of it frees one page; `execute` takes a single step.
        self._db.executescript(f"PRAGMA incremental_vacuum({int(pages_max)})")

    # -- meta --------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """A value of the key-value table."""
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else bytes(row["value"])

    def put(self, key: str, value: bytes) -> None:
        """Set a value of the key-value table."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def drop(self, key: str) -> None:
        """Forget a value of the key-value table; one that is not there is no error."""
        self._db.execute("DELETE FROM meta WHERE key = ?", (key,))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10.0, factory=_Connection)
    connection.path = path
    return connection


def _copy(source: sqlite3.Connection, copy: Path) -> None:
    """A database that may be in use, whole or not at all; only its owner can read the copy."""
    temporary = copy.with_name(f".{copy.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as target:
            source.backup(target)
            # One file, that is whole without a log beside it.
            target.execute("PRAGMA journal_mode=DELETE")
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(copy)
    except sqlite3.OperationalError as error:
        raise _told_apart(error, copy) from error
    finally:
        temporary.unlink(missing_ok=True)
