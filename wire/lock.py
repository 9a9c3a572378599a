"""One process for one state directory, let go by the system however that process ends."""

from pathlib import Path
from typing import Final

from wire.errors import PotluckError

LOCK_FILE: Final = "running.lock"


class AlreadyRunningError(PotluckError):
    """Another process uses the state directory; the text says which directory."""


class InstanceLock:
    """Held from construction to `release`, or to the end of the process.

    SQLite's own file lock serves: it is the same on every system, and kill -9 frees it.

    Args:
        state_dir: an existing directory.

    Raises:
        AlreadyRunningError: another process holds it.
    """

    def __init__(self, state_dir: Path) -> None:
        import sqlite3  # noqa: PLC0415 - a device that only reads its status needs no lock

        self._db = sqlite3.connect(
            state_dir / LOCK_FILE, isolation_level=None, timeout=0.0, check_same_thread=False
        )
        try:
            self._db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._db.close()
            if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise PotluckError(
                    f"{state_dir}: the disk is full; make room, then start again"
                ) from error
            if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise PotluckError(f"{state_dir}: {error}") from error
            raise AlreadyRunningError(
                f"{state_dir}: another process is running here; stop it, or use another directory"
            ) from error

    def release(self) -> None:
        """Let the next process in."""
        self._db.close()
