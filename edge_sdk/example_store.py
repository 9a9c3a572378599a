"""Examples that an app collects as it goes: bounded, split honestly, forgotten for good.

`add` is for the app's own loop: it checks, copies into a buffer and returns, and never waits for a
disk. A thread writes the buffer to one SQLite file (`_example_file`), once a second while there is
something to write. When the process is killed, at most what came since the last write is lost; a
power cut may also take what the system had not put on the disk yet.

- **Bounds**: the oldest go first when there are too many, when the file is full, or when they are
  too old; how old is said by clocks that are not trusted (`_ages`).
- **Hold-out**: an example is held out by a keyed hash of its bytes, or of the `group` that the app
  names: added twice, or after a restart, it stays on its side. Windows that overlap, or many
  examples of one person or session, are one group: else what is held out has been seen.
- **Deletion**: what is deleted is overwritten in the file and in its log. What a disk keeps of
  blocks that it no longer shows, no program can say; encrypt the disk where that matters.
"""

import atexit
import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from edge_sdk._example_buffer import Buffer, Waiting, first
from edge_sdk.examples import Arrays, ExampleError, ExampleStats, Fields, Index, Split
from wire.errors import PotluckError

if TYPE_CHECKING:
    import sqlite3

    from edge_sdk._example_file import ExampleFile


DAY_S: Final = 86_400.0
EXAMPLES_MAX: Final = 10_000
BYTES_MAX: Final = 64 << 20
# How long an example stays in memory, at most, while the disk takes what it is given.
FLUSH_S: Final = 1.0
# What retention has deleted is gone from the log after so long.
SCRUB_S: Final = 60.0
RETRY_S: Final = 5.0
# How often ages are looked at, at most.
EXPIRE_EVERY_S: Final = 60.0
_IDLE_S: Final = 3_600.0
_READ_ROWS: Final = 256
_IDS_AT_ONCE: Final = 500
_MARK_BITS: Final = 63


class ExampleStoreError(PotluckError):
    """The store's file cannot be used now; the text says why and what to do.

    `busy` says that another process is in the way.
    """

    def __init__(self, text: str, *, busy: bool = False) -> None:
        super().__init__(text)
        self.busy = busy


def _boot_clock() -> float:
    """Seconds since the machine started, asleep or awake where the system can say so."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class ExampleStore:
    """Examples in one file. Every method may be called from any thread.

    Args:
        path: of the file; made, with its directory, when something is first added.
        fields: name -> (dtype, shape) of one example, in the order in which arrays come back.
        examples_max: most examples, train and hold-out together.
        bytes_max: most bytes of the file. Beside it is a log of a few MB at most.
        age_s_max: seconds after which an example is deleted, 0 for never.
        holdout: fraction that is never trained on. A file keeps the one that it was made with,
            until `clear`.
        split_key: the secret of the split, for an app that wants the same one in another file; by
            default the file has its own.
        flush_s: how long an example may wait in memory.
        clock: unix seconds by the wall clock.
        boot_clock: seconds by a clock that nobody sets.

    Raises:
        ExampleError: fields or bounds make no sense.
    """

    def __init__(
        self,
        path: Path | str,
        fields: Mapping[str, tuple[DTypeLike, Sequence[int]]],
        *,
        examples_max: int = EXAMPLES_MAX,
        bytes_max: int = BYTES_MAX,
        age_s_max: float = 30 * DAY_S,
        holdout: float = 0.2,
        split_key: bytes | None = None,
        flush_s: float = FLUSH_S,
        clock: Callable[[], float] = time.time,
        boot_clock: Callable[[], float] = _boot_clock,
    ) -> None:
        self.path = Path(path)
        self._fields = Fields(fields)
        self._example_bytes = self._fields.record.itemsize
        self._examples_max = examples_max
        self._bytes_max = bytes_max
        self._age_s_max = float(age_s_max)
        self._holdout = float(holdout)
        self._split_key = split_key
        self._flush_s = flush_s
        self._clock = clock
        self._boot_clock = boot_clock
        self._check_bounds()
        self._born_s = boot_clock()
        self._buffer = Buffer(self._example_bytes)
        self._error: ExampleStoreError | None = None
        self._starting = threading.Lock()
        self._io = threading.RLock()  # of the file
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._writer: threading.Thread | None = None
        self._opened: ExampleFile | None = None
        self._key = b""
        self._threshold = 0
        self._scrub_at_s = math.inf
        self._expire_at_s = 0.0

    def _check_bounds(self) -> None:
        from edge_sdk._example_file import FILE_BYTES_MIN, rows_in  # noqa: PLC0415 - loads sqlite3

        if not 0.0 <= self._holdout < 1.0:
            raise ExampleError(f"holdout is {self._holdout}, not a fraction from 0 to below 1")
        if self._examples_max < 1:
            raise ExampleError(f"examples_max is {self._examples_max}; at least 1")
        if not (math.isfinite(self._age_s_max) and self._age_s_max >= 0.0):
            raise ExampleError(f"age_s_max is {self._age_s_max}, not seconds; 0 means no bound")
        if self._bytes_max < FILE_BYTES_MIN or rows_in(self._bytes_max, self._example_bytes) < 1:
            raise ExampleError(
                f"bytes_max is {self._bytes_max}: too little for a file and one example of"
                f" {self._example_bytes} bytes"
            )

    # -- the app's loop ----------------------------------------------------------------------

    def add(
        self, *values: ArrayLike, at: float | None = None, group: str | None = None, **named: Any
    ) -> bool:
        """Take one example: all fields in order, or all by name. Waits for no disk.

        Args:
            values: the fields in order.
            at: unix seconds when it was recorded, now by default; what `delete` goes by.
            group: what it belongs to; all of a group are on one side of the split.
            named: the fields by name.

        Returns:
            Whether it was taken: a store that is closed takes none.

        Raises:
            ExampleError: a field is missing, or has another shape or dtype, or is not finite.
        """
        data = self._fields.encode(values, named)
        at_s = self._clock() if at is None else float(at)
        if not math.isfinite(at_s):
            raise ExampleError(f"at is {at_s}, not unix seconds")
        lived_s = self._boot_clock() - self._born_s
        count = self._buffer.put(Waiting(lived_s, at_s, group, data))
        if count == 1:
            self._begin_to_write()
            self._wake.set()
        elif count * 2 == self._buffer.examples_max:
            self._hurry.set()
        return count > 0

    # -- reading -----------------------------------------------------------------------------

    def split(self, *, newest: int | None = None) -> Split:
        """Both sides, of one moment; what was added before is in it.

        Args:
            newest: at most so many of each side, the newest; all by default.

        Raises:
            ExampleStoreError: the file cannot be read.
        """
        with self._read() as db:
            return Split(self._side(db, "<=", newest), self._side(db, ">", newest))

    def train(self, *, newest: int | None = None) -> Arrays:
        """Examples to train on, an array for each field; see `split`."""
        with self._read() as db:
            return self._side(db, "<=", newest)

    def holdout(self, *, newest: int | None = None) -> Arrays:
        """Examples that are never trained on, an array for each field; see `split`."""
        with self._read() as db:
            return self._side(db, ">", newest)

    def index(self) -> Index:
        """Identity, time and side of every example."""
        with self._read() as db:
            rows = db.execute(
                "SELECT id, at_s, ? > mark FROM examples ORDER BY id", (self._threshold,)
            ).fetchall()
        ids, at_s, held = zip(*rows, strict=True) if rows else ((), (), ())
        return Index(np.array(ids, np.int64), np.array(at_s, np.float64), np.array(held, np.bool_))

    def stats(self) -> ExampleStats:
        """What it holds and has lost; reads the file."""
        with self._read() as db:
            train, held = db.execute(
                "SELECT COUNT(*) FILTER (WHERE ? <= mark), COUNT(*) FILTER (WHERE ? > mark)"
                " FROM examples",
                (self._threshold, self._threshold),
            ).fetchone()
            holdout = float(
                db.execute("SELECT value FROM facts WHERE name = 'holdout'").fetchone()[0]
            )
        log = self.path.with_name(self.path.name + "-wal")
        file_bytes = self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)
        error = "" if self._error is None else str(self._error)
        return ExampleStats(
            train, held, len(self._buffer), self._buffer.dropped, file_bytes, holdout, error
        )

    @property
    def error(self) -> ExampleStoreError | None:
        """Why nothing can be written now, None while all is well."""
        return self._error

    @contextlib.contextmanager
    def _read(self) -> "Iterator[sqlite3.Connection]":
        with self._using_the_file(), self._io:
            with contextlib.suppress(ExampleStoreError):
                self.flush()  # a full disk can still be read
            if self._boot_clock() >= self._expire_at_s:
                with contextlib.suppress(ExampleStoreError):
                    self._expire()
            file = self._file()
        with self._using_the_file(), file.snapshot() as db:
            yield db

    def _side(self, db: "sqlite3.Connection", side: str, newest: int | None) -> Arrays:
        """One side, filled from its end: no second copy of it is ever in memory."""
        some = "FROM examples WHERE ? " + side + " mark ORDER BY id DESC LIMIT ?"
        values = (self._threshold, -1 if newest is None else max(newest, 0))
        (count,) = db.execute(f"SELECT COUNT(*) FROM (SELECT 1 {some})", values).fetchone()  # noqa: S608 - our own words
        arrays = self._fields.empty(count)
        cursor = db.execute(f"SELECT data {some}", values)
        end = count
        while rows := cursor.fetchmany(_READ_ROWS):
            joined = b"".join(data for (data,) in rows)
            if len(joined) != len(rows) * self._example_bytes:
                raise ExampleStoreError(f"{self.path}: the file is damaged: clear() begins anew")
            self._fields.fill(arrays, end - len(rows), joined)
            end -= len(rows)
        return arrays

    # -- deleting ----------------------------------------------------------------------------

    def delete(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        ids: Sequence[int] | NDArray[np.int64] | None = None,
        group: str | None = None,
    ) -> int:
        """Delete for good the examples for which all that is said holds; waits for the disk.

        Args:
            before: recorded before this moment, unix seconds.
            after: recorded at this moment or later.
            ids: of `index`.
            group: of this group.

        Returns:
            How many they were.

        Raises:
            ExampleError: nothing is said; `clear` deletes everything.
            ExampleStoreError: the file cannot be written; or it is being read at this moment, and
                what was deleted is gone from the disk when that is done (`busy`).
        """
        terms: list[tuple[str, float | None]] = [("at_s < ?", before), ("at_s >= ?", after)]
        if before is None and after is None and ids is None and group is None:
            raise ExampleError("say which examples: before, after, ids or group; or clear()")
        with self._io, self._using_the_file():
            self.flush()
            file = self._file()
            terms.append(("mark = ?", None if group is None else self._mark(group, b"")))
            said = {term: value for term, value in terms if value is not None}
            which = " AND ".join(said) or "true"
            lists = [""]
            if ids is not None:
                numbers = [str(int(one)) for one in ids]
                lists = [
                    f" AND id IN ({','.join(numbers[start : start + _IDS_AT_ONCE])})"
                    for start in range(0, len(numbers), _IDS_AT_ONCE)
                ]
            deleted = sum(file.delete(which + some, tuple(said.values())) for some in lists)
            file.rewrite()
            self._scrub()
            return deleted

    def clear(self) -> None:
        """Delete every example for good; a file that is damaged or of other fields begins anew.

        Raises:
            ExampleStoreError: as `delete`.
        """
        from edge_sdk._example_file import destroy  # noqa: PLC0415 - loads sqlite3

        with self._io:
            self._buffer.take()
            try:
                with self._using_the_file():
                    self._file().clear(self._holdout)
            except ExampleStoreError as error:
                if self._buffer.closed or error.busy:
                    raise
                with self._using_the_file():
                    self._let_go()
                    destroy(self.path)
            with self._using_the_file():
                self._know_the_split(self._file())
                self._scrub()
            self._error = None

    def destroy(self) -> None:
        """Close, and delete the file and everything beside it; `Device.leave` calls it.

        Raises:
            ExampleStoreError: the files cannot be removed.
        """
        from edge_sdk._example_file import destroy  # noqa: PLC0415 - loads sqlite3

        self._buffer.close()
        self._buffer.take()
        self._end_the_writer()
        with self._io, self._using_the_file():
            self._let_go()
            destroy(self.path)

    # -- the file ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what waits; on the disk or on its way there when it returns.

        Raises:
            ExampleStoreError: it cannot be written now; it goes on waiting.
        """
        from edge_sdk._example_file import Row  # noqa: PLC0415 - loads sqlite3

        with self._io:
            waiting = self._buffer.take()
            try:
                while waiting:
                    with self._using_the_file():
                        file = self._file()
                        batch = first(waiting, file.batch)
                        file.write(
                            [
                                Row(
                                    one.lived_s, one.at_s, self._mark(one.group, one.data), one.data
                                )
                                for one in batch
                            ]
                        )
                        for _ in batch:
                            waiting.popleft()
                    self._error = None
            finally:
                self._buffer.put_back(waiting)

    def close(self) -> None:
        """Write what waits, and let go of the file; from then on `add` takes nothing.

        Raises:
            ExampleStoreError: what waits cannot be written, and is lost.
        """
        try:
            if not self._buffer.closed:
                self.flush()
        finally:
            self._buffer.close()
            self._end_the_writer()
            with self._io, self._using_the_file():
                if self._opened is not None and self._opened.freed:
                    self._opened.scrub()
                self._let_go()

    def __enter__(self) -> Self:
        with self._io, self._using_the_file():
            self._file()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self) -> "ExampleFile":
        """The open file; with `_io` held."""
        from edge_sdk._example_file import ExampleFile  # noqa: PLC0415 - loads sqlite3

        if self._buffer.closed:
            raise ExampleStoreError(f"{self.path}: the store is closed")
        if self._opened is None:
            key = self._split_key
            self._opened = ExampleFile(
                self.path,
                layout=self._fields.layout,
                example_bytes=self._example_bytes,
                examples_max=self._examples_max,
                bytes_max=self._bytes_max,
                age_s_max=self._age_s_max,
                holdout=self._holdout,
                key=os.urandom(32) if key is None else hashlib.sha256(key).digest(),
                wall=self._clock,
                running=lambda: self._boot_clock() - self._born_s,
            )
            self._know_the_split(self._opened)
        return self._opened

    def _know_the_split(self, file: "ExampleFile") -> None:
        self._key = bytes(file.fact("key"))
        self._threshold = int(float(file.fact("holdout")) * 2.0**_MARK_BITS)

    def _mark(self, group: str | None, data: bytes) -> int:
        """63 bits that place an example on its side: of its group, or of its own bytes."""
        what, person = (data, b"example") if group is None else (group.encode(), b"group")
        digest = hashlib.blake2b(what, digest_size=8, key=self._key, person=person).digest()
        return int.from_bytes(digest, "little") >> (64 - _MARK_BITS)

    def _let_go(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @contextlib.contextmanager
    def _using_the_file(self) -> Iterator[None]:
        """What SQLite and the system say, in the words of this module."""
        import sqlite3  # noqa: PLC0415 - loaded when it is used

        from edge_sdk._example_file import LayoutError  # noqa: PLC0415 - as above

        try:
            yield
        except (sqlite3.Error, OSError, LayoutError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            advice = ""
            if isinstance(error, LayoutError):
                advice = "; take another path, or clear() to begin anew"
            elif code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                advice = "; the file is damaged: clear() begins anew"
            elif code == sqlite3.SQLITE_FULL:
                advice = "; make room on the disk"
            busy = code is not None and code & 0xFF == sqlite3.SQLITE_BUSY
            self._error = ExampleStoreError(f"{self.path}: {error}{advice}", busy=busy)
            raise self._error from error

    # -- the thread that writes --------------------------------------------------------------

    def _begin_to_write(self) -> None:
        with self._starting:
            if self._writer is not None or self._buffer.closed:
                return
            self._writer = threading.Thread(
                target=self._write_on, name="potluck-examples", daemon=True
            )
            self._writer.start()
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        with contextlib.suppress(ExampleStoreError):
            self.close()

    def _end_the_writer(self) -> None:
        self._hurry.set()
        self._wake.set()
        if self._writer is not None and self._writer is not threading.current_thread():
            self._writer.join()
            atexit.unregister(self._at_exit)

    def _write_on(self) -> None:
        while not self._buffer.closed:
            self._wake.wait(min(max(self._scrub_at_s - self._boot_clock(), 0.0), _IDLE_S))
            if self._buffer:
                self._hurry.wait(self._flush_s)
            self._wake.clear()
            self._hurry.clear()
            try:
                self._turn()
            except ExampleStoreError:
                if not self._buffer.closed:
                    self._hurry.wait(RETRY_S)
                    self._wake.set()

    def _turn(self) -> None:
        """Write, and now and then look at ages and clean the log."""
        with self._io:
            if self._buffer.closed:
                return
            self.flush()
            now_s = self._boot_clock()
            if now_s >= self._expire_at_s:
                self._expire()
            if self._opened is not None and self._opened.freed and self._scrub_at_s == math.inf:
                self._scrub_at_s = now_s + SCRUB_S
            if now_s >= self._scrub_at_s:
                self._scrub()

    def _expire(self) -> None:
        self._expire_at_s = self._boot_clock() + EXPIRE_EVERY_S
        with self._using_the_file():
            self._file().expire()

    def _scrub(self) -> None:
        self._scrub_at_s = math.inf
        with self._using_the_file():
            if not self._file().scrub():
                self._scrub_at_s = self._boot_clock() + RETRY_S
                raise ExampleStoreError(
                    f"{self.path}: is being read at this moment; what was deleted is gone from the"
                    " disk when that is done",
                    busy=True,
                )
