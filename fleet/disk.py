"""Disks that fail: power that goes between any two effects, and space that runs out.

Here are the fuse that blows and the coordinator's disk; a device's is in `fleet.device_disk`.

A `Fuse` is asked before and after each thing that a process does to the world: a write that
becomes durable, a message that leaves. When it blows, `PowerCutError` goes through the process as
kill -9 would: nothing after that point happens, and nothing before it is undone but a transaction
that had not been committed.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from coordinator.headroom import plenty
from coordinator.store import DiskFullError, Store

_SPOOLS: Final = "INSERT OR REPLACE INTO spool"
_WRITES: Final = ("INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE", "ALTER")


class PowerCutError(BaseException):
    """The process ends here. No `except Exception` may take it for an error."""


class Fuse:
    """Counts effects, and blows after a number of them.

    Attributes:
        effects: how many there have been.
        blows_at: the effect before which power goes, None for never.
        full: whether writes fail for lack of space.
    """

    def __init__(self) -> None:
        self.effects = 0
        self.blows_at: int | None = None
        self.full = False

    def burn(self) -> None:
        """An effect is about to happen, or has just happened.

        Raises:
            PowerCutError: this was the one.
        """
        self.effects += 1
        if self.blows_at is not None and self.effects >= self.blows_at:
            self.blows_at = None
            raise PowerCutError


class _Connection:
    """A SQLite connection whose writes pass a fuse; only what `Store` uses."""

    def __init__(self, disk: "CoordinatorDisk", fuse: Fuse) -> None:
        self._disk = disk
        self._inner = disk.database
        self._fuse = fuse

    @property
    def in_transaction(self) -> bool:
        """As sqlite3's."""
        return self._inner.in_transaction

    @property
    def row_factory(self) -> Any:
        """As sqlite3's."""
        return self._inner.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._inner.row_factory = factory

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """As sqlite3's; a write that is not inside a transaction is durable when this returns."""
        if sql.startswith(_SPOOLS):
            self._disk.payloads.setdefault(*parameters)
        if not sql.lstrip().startswith(_WRITES):
            self._disk.changes += sql == "ROLLBACK"
            return self._inner.execute(sql, parameters)
        if self._fuse.full and not sql.startswith(("CREATE", "ALTER")):
            raise DiskFullError("the disk is full")
        durable = sql == "COMMIT" or not self._inner.in_transaction
        if durable:
            self._fuse.burn()
        self._disk.changes += sql != "COMMIT"
        cursor = self._inner.execute(sql, parameters)
        if durable:
            self._fuse.burn()
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any]) -> sqlite3.Cursor:
        """As sqlite3's; `Store` writes tokens and counts with it, never the ledger."""
        if self._fuse.full:
            raise DiskFullError("the disk is full")
        return self._inner.executemany(sql, parameters)

    def executescript(self, sql: str) -> sqlite3.Cursor:
        """As sqlite3's; `Store` gives back pages with it, which changes nothing that is kept."""
        return self._inner.executescript(sql)

    def close(self) -> None:
        """Nothing: the disk outlives the process."""


class CoordinatorDisk:
    """The coordinator's disk: one SQLite database, in memory, that outlives its process.

    Attributes:
        payloads: a copy of every payload that was ever spooled, for whoever checks the sums.
        changes: grows whenever the ledger, the rounds or the models may have changed.
    """

    def __init__(self, fuse: Fuse) -> None:
        self.payloads: dict[bytes, bytes] = {}
        self.changes = 0
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.row_factory = sqlite3.Row
        self._fuse = fuse

    def open(self) -> Store:
        """The store, as a process finds it that has just started."""
        self.lose_uncommitted()
        connection: Any = _Connection(self, self._fuse)
        return Store(Path(":memory:"), connect=lambda: connection)

    def lose_uncommitted(self) -> None:
        """What a power cut does to an open transaction."""
        if self.database.in_transaction:
            self.changes += 1
            self.database.execute("ROLLBACK")

    def free_bytes(self) -> int:
        """Nothing when it is full, else plenty."""
        return 0 if self._fuse.full else plenty()

    def close(self) -> None:
        """The world is over."""
        self.database.close()
