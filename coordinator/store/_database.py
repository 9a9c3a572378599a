"""The file itself: opening, bringing it up to date, transactions, a drawer of keys and values."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coordinator.store._schema import MIGRATIONS, SCHEMA_VERSION
from wire.errors import PotluckError


class StoreError(PotluckError):
    """The state directory cannot be used; the text says why and what to do."""


class Database:
    """One SQLite file. One thread of one process writes; anybody may read.

    Args:
        path: the SQLite file; made when absent.
        read_only: look, beside a running coordinator; nothing is made.
        connect: opens the database instead of `path`, for worlds whose disks fail on purpose.

    Raises:
        StoreError: it is not a store, or was written by a newer potluck.
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
                self._db = (
                    sqlite3.connect(path, isolation_level=None, timeout=10.0)
                    if connect is None
                    else connect()
                )
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys=ON")
            try:
                self._open_schema(read_only=read_only)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}; is it a coordinator's state?") from error

    def _open_schema(self, *, read_only: bool) -> None:
        """Bring the file to this version of its tables, one step after the other.

        A new file takes the same steps, so that there is one way to what the tables are.
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
        with self.transaction():
            for migration in MIGRATIONS[version:]:
                for statement in migration.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

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
