"""The file behind an example store: one SQLite database that does not grow and forgets for good.

Every row is an example: its fields' bytes one after the other, in an order and in lengths that the
store has fixed. `mark` is 63 bits of a keyed hash, of the example's bytes or of its group; below a
threshold it is held out. `run` and `lived_s` say when it came by the clock of `_ages`: seconds into
the run of a process, which `runs` places in time.

- What is deleted is overwritten with zeros (`secure_delete`). The log still has it, until the log
  is written back and cut to nothing: `scrub`. So do pages from which SQLite has moved rows to their
  neighbours, as it does when others are deleted: such a page keeps a copy in its unused room, until
  it is free itself. Where rows go one after the other from the oldest on it soon is; after any
  other delete, `rewrite`.
- Free pages are given back to the file system (`auto_vacuum` by increments), and the file cannot
  pass `bytes_max`: SQLite itself refuses (`max_page_count`).
- `synchronous` is NORMAL: a commit waits for no disk. What a process has committed survives its
  death; a power cut may take the last commits, and never damages what was there before.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from edge_sdk._ages import look

SCHEMA_VERSION: Final = 1
PAGE_BYTES: Final = 4_096
# A transaction is about this long, so that the log beside the file stays a few of these.
BATCH_BYTES: Final = 1 << 20
BUSY_S: Final = 5.0
# Below this there is no room for the tables themselves and some examples.
FILE_BYTES_MIN: Final = 32 * PAGE_BYTES
_LOG_PAGES: Final = 256
_CACHE_KIB: Final = 512
# What a row has beside its bytes: header, run, two times, a mark, and the row's own cell.
_ROW_BYTES: Final = 44

_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT;
CREATE TABLE runs (run INTEGER PRIMARY KEY AUTOINCREMENT, began_s REAL NOT NULL) STRICT;
CREATE TABLE examples (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, lived_s REAL NOT NULL,
    at_s REAL NOT NULL, mark INTEGER NOT NULL, data BLOB NOT NULL
) STRICT;
"""
_REWRITE: Final = """
CREATE TABLE rewritten (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, lived_s REAL NOT NULL,
    at_s REAL NOT NULL, mark INTEGER NOT NULL, data BLOB NOT NULL
) STRICT;
INSERT INTO rewritten SELECT * FROM examples ORDER BY id;
UPDATE sqlite_sequence SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'examples')
    WHERE name = 'rewritten';
INSERT INTO sqlite_sequence SELECT 'rewritten', seq FROM sqlite_sequence WHERE name = 'examples'
    AND NOT EXISTS (SELECT 1 FROM rewritten);
DROP TABLE examples;
ALTER TABLE rewritten RENAME TO examples;
"""


class Row(NamedTuple):
    """An example on its way into the file. `lived_s` is the boot clock since the process began."""

    lived_s: float
    at_s: float
    mark: int
    data: bytes


class LayoutError(Exception):
    """The file has examples of other fields than the app says."""


def rows_in(file_bytes: int, example_bytes: int) -> int:
    """How many examples of this size fit a file of that size, by SQLite's format (section 1.6)."""
    usable = PAGE_BYTES
    payload = example_bytes + _ROW_BYTES
    local, overflow_pages = payload, 0
    if payload > usable - 35:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (payload - least) % (usable - 4)
        local = local if local <= usable - 35 else least
        overflow_pages = -((local - payload) // (usable - 4))
    a_page = max((usable - 8) // (local + 14), 1)
    row_bytes = PAGE_BYTES / a_page + PAGE_BYTES * overflow_pages
    # A hundredth is for inner pages and pointers; the rest for tables, and a half-filled page.
    return int((file_bytes - 12 * PAGE_BYTES) / (row_bytes * 1.01))


class ExampleFile:
    """An open file. One thread at a time, whichever.

    Args:
        path: of the file, made when absent, its owner's alone.
        layout: text that names the fields; another one than the file's is refused.
        example_bytes: length of an example's bytes.
        examples_max: most examples.
        bytes_max: most bytes of the file, the log beside it aside.
        age_s_max: oldest that an example may become, 0 for no bound.
        holdout: fraction to hold out, and the secret for marks: those of the file, if it has them.
        key: as above.
        wall: unix seconds by the wall clock.
        running: seconds since the process began, by a clock that nobody sets.

    Raises:
        LayoutError: the file is for other fields.
        sqlite3.Error, OSError: it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        layout: str,
        example_bytes: int,
        examples_max: int,
        bytes_max: int,
        age_s_max: float,
        holdout: float,
        key: bytes,
        wall: Callable[[], float],
        running: Callable[[], float],
    ) -> None:
        self.path = path
        self._examples_max = min(examples_max, rows_in(bytes_max, example_bytes))
        self._pages_max = bytes_max // PAGE_BYTES
        self.batch = max(min(BATCH_BYTES // (example_bytes + _ROW_BYTES), self._examples_max), 1)
        self._age_s_max = age_s_max
        self._wall = wall
        self._running = running
        self._looked_s = running()
        self._run = 0
        self._freed = False
        self._moved = False
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
        )
        try:
            self._prepare()
            self._open_schema(layout, holdout, key)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # The first two are fixed by the first page that is written.
        for pragma in (
            f"page_size={PAGE_BYTES}",
            "auto_vacuum=INCREMENTAL",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "secure_delete=ON",
            "temp_store=MEMORY",
            f"cache_size=-{_CACHE_KIB}",
            f"wal_autocheckpoint={_LOG_PAGES}",
            f"journal_size_limit={BATCH_BYTES}",
            f"max_page_count={self._pages_max}",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()

    def _open_schema(self, layout: str, holdout: float, key: bytes) -> None:
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise LayoutError(f"written by a newer potluck (schema {version})")
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";\n")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                self._put(layout=layout, holdout=holdout, key=key, examples=0)
                self._put(believed_s=self._wall(), doubted_s=0.0)
            kept = str(self.fact("layout"))
            if kept != layout:
                raise LayoutError(f"has examples of {kept}, and this app's are {layout}")
            # At least so late: what passed before, the wall clock says (`_look`).
            began_s = float(self.fact("believed_s"))
            self._run = int(
                db.execute("INSERT INTO runs (began_s) VALUES (?)", (began_s,)).lastrowid or 0
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def fact(self, name: str) -> Any:
        """What the file says of itself."""
        (value,) = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return value

    def _put(self, **facts: Any) -> None:
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    @property
    def freed(self) -> bool:
        """Whether old examples were dropped whose traces are still in the log."""
        return self._freed

    # -- what is kept ------------------------------------------------------------------------

    def write(self, rows: Sequence[Row]) -> None:
        """Add at most `batch` examples, the newest last, and drop the oldest that are too many.

        One transaction: a reader never sees more than is allowed.
        """
        try:
            self._write(rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._at_its_bound():
                raise
            # Pages that were left half empty: make room, and once more.
            with self._transaction():
                self._delete_oldest(max(len(rows), self._examples_max // 10))
            self._write(rows)

    def _write(self, rows: Sequence[Row]) -> None:
        with self._transaction() as db:
            self._look()
            self._delete_oldest(int(self.fact("examples")) + len(rows) - self._examples_max)
            db.executemany(
                "INSERT INTO examples (run, lived_s, at_s, mark, data) VALUES (?, ?, ?, ?, ?)",
                [(self._run, *row) for row in rows],
            )
            self._put(examples=int(self.fact("examples")) + len(rows))

    def _at_its_bound(self) -> bool:
        """Whether it was this file that was full, and not the disk."""
        free = self._pages_max - self._pragma("page_count") + self._pragma("freelist_count")
        return free * PAGE_BYTES <= BATCH_BYTES

    def _delete_oldest(self, count: int) -> None:
        if count > 0:
            self._freed = True
            self._delete_some("ORDER BY id", (), count)

    def _delete_some(self, which: str, values: Sequence[Any], count: int) -> int:
        deleted = self._db.execute(
            f"DELETE FROM examples WHERE id IN (SELECT id FROM examples {which} LIMIT ?)",  # noqa: S608 - our own words
            (*values, count),
        ).rowcount
        if deleted:
            self._put(examples=max(int(self.fact("examples")) - deleted, 0))
        return deleted

    def delete(self, which: str, values: Sequence[Any] = ()) -> int:
        """Delete the examples for which an SQL condition holds, a batch at a time."""
        deleted, some = 0, 1
        while some:
            with self._transaction():
                some = self._delete_some(f"WHERE {which}", values, self.batch)
            deleted += some
        self._freed = self._freed or deleted > 0
        self._moved = self._moved or deleted > 0
        return deleted

    def expire(self) -> int:
        """Delete the examples that have become too old; returns how many."""
        with self._transaction() as db:
            now_s = self._look()
            db.execute(
                "DELETE FROM runs WHERE run != ? AND run NOT IN (SELECT run FROM examples)",
                (self._run,),
            )
        if not self._age_s_max:
            return 0
        return self.delete(
            "(SELECT began_s FROM runs WHERE runs.run = examples.run) + lived_s < ?",
            (now_s - self._age_s_max,),
        )

    def _look(self) -> float:
        """What time it is by this file; in a transaction. See `_ages`."""
        running_s = self._running()
        row = self._db.execute("SELECT began_s FROM runs WHERE run = ?", (self._run,)).fetchone()
        believed_s = float(self.fact("believed_s"))
        began_s = believed_s - running_s if row is None else float(row[0])
        if row is None:  # another process found it empty
            self._db.execute("INSERT INTO runs VALUES (?, ?)", (self._run, began_s))
        found = look(
            began_s + running_s,
            self._wall(),
            running_s=running_s,
            ran_s=running_s - self._looked_s,
            doubted_s=float(self.fact("doubted_s")),
        )
        self._looked_s = running_s
        if found.renamed_s:
            self._db.execute("UPDATE runs SET began_s = began_s + ?", (found.renamed_s,))
        if found.off_s:
            self._db.execute(
                "UPDATE runs SET began_s = began_s + ? WHERE run = ?", (found.off_s, self._run)
            )
        now_s = began_s + running_s + found.renamed_s + found.off_s
        # Another process may know of more time that has passed.
        kept_s = now_s if found.renamed_s else max(now_s, believed_s)
        self._put(believed_s=kept_s, doubted_s=found.doubted_s)
        return now_s

    def rewrite(self) -> None:
        """Copy what is left to new pages, if some was deleted; the old are free then, and zeroed.

        Takes as much room as the file has, and twice that in the log, until the next `scrub`.
        """
        if not self._moved:
            return
        pages_max = self._pages_max + self._pragma("page_count")
        self._db.execute(f"PRAGMA max_page_count={pages_max}").fetchall()
        try:
            with self._transaction() as db:
                for statement in filter(str.strip, _REWRITE.split(";\n")):
                    db.execute(statement)
            self._moved = False
        finally:
            self._freed = True
            self._db.execute(f"PRAGMA max_page_count={self._pages_max}").fetchall()

    def scrub(self) -> bool:
        """Give free pages back, and cut the log to nothing.

        Returns:
            Whether it could be: another process may be reading.
        """
        self._db.executescript("PRAGMA incremental_vacuum")  # the one call that steps to its end
        self._db.execute(f"PRAGMA max_page_count={self._pages_max}").fetchall()  # see `rewrite`
        busy, _log, _written = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._freed = bool(busy)
        return not busy

    def clear(self, holdout: float) -> int:
        """Delete everything but the secret; from now on this fraction is held out."""
        deleted = self.delete("true")
        with self._transaction():
            self._put(holdout=holdout)
        return deleted

    # -- a reader's own connection -------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One moment of the file, whatever is written meanwhile."""
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)
        try:
            db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            db.execute("BEGIN")
            yield db
        finally:
            db.close()


def destroy(path: Path) -> None:
    """Overwrite a store's files with zeros, and remove them; what is not there is no error."""
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        try:
            with file.open("r+b") as opened:
                for start in range(0, file.stat().st_size, BATCH_BYTES):
                    opened.seek(start)
                    opened.write(bytes(min(BATCH_BYTES, file.stat().st_size - start)))
                opened.flush()
                os.fsync(opened.fileno())
        except (FileNotFoundError, NotADirectoryError):
            continue
        file.unlink(missing_ok=True)
