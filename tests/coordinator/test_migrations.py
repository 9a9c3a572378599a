"""A file that an older potluck has written: everything in it is there afterwards, or nothing is."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import STORE_FILE, Store, StoreError
from coordinator.config import Rounds
from coordinator.store import SCHEMA_VERSION
from tests.support.loopback import Loopback

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

# What `coordinator/` of schema 1 wrote: two rounds committed, version 2 released, round 3 open with
# two updates on disk, tokens, a privacy spend, an incident.
SCHEMA_1 = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
ROUNDS = Rounds(count=4, cohort=3, quorum=0.6, over_select=1.3, deadline_s=60.0)
TABLES = ("meta", "tokens", "devices", "models", "tensors", "rounds", "updates", "spool")
MORE_TABLES = ("releases", "privacy", "incidents")


@pytest.fixture(scope="module")
def old_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema-1") / STORE_FILE
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA_1)
    return path


@pytest.fixture
def path(tmp_path: Path, old_file: Path) -> Path:
    return Path(shutil.copy(old_file, tmp_path / STORE_FILE))


def contents(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row, with the columns of schema 1."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        old = {
            table: [
                column[1]
                for column in database.execute(f"PRAGMA table_info({table})")
                if f" {column[1]} " in SCHEMA_1 or f"({column[1]} " in SCHEMA_1
            ]
            for table in TABLES + MORE_TABLES
        }
        return {
            table: [
                {name: row[name] for name in names}
                for row in database.execute(f"SELECT * FROM {table} ORDER BY rowid")  # noqa: S608
            ]
            for table, names in old.items()
        }


def schema_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        return int(version)


def test_the_fixture_is_a_federation_in_mid_round(path: Path) -> None:
    old = contents(path)
    assert schema_of(path) == 1
    assert all(old[table] for table in TABLES + MORE_TABLES)
    assert [row["status"] for row in old["rounds"]] == ["committed", "committed", "open"]
    unsettled = [row for row in old["updates"] if row["settled_at"] is None]
    assert len(unsettled) == len(old["spool"]) == 2


def test_opening_brings_it_up_to_date_with_every_row_as_it_was(path: Path) -> None:
    before = contents(path)
    Store(path).close()
    assert schema_of(path) == SCHEMA_VERSION
    assert contents(path) == before


def test_a_copy_as_it_was_stays_beside_it(path: Path) -> None:
    before = contents(path)
    Store(path).close()
    copy = path.with_name(f"{STORE_FILE}.v1.bak")
    assert schema_of(copy) == 1
    assert contents(copy) == before
    assert copy.stat().st_mode & 0o077 == 0
    Store(path).close()
    assert [p.name for p in path.parent.iterdir()].count(copy.name) == 1


def test_of_older_copies_nothing_stays(path: Path) -> None:
    older = path.with_name(f"{STORE_FILE}.v0.bak")
    older.touch()
    Store(path).close()
    assert not older.exists()


def test_a_new_file_has_no_copy(tmp_path: Path) -> None:
    Store(tmp_path / STORE_FILE).close()
    assert not list(tmp_path.glob("*.bak"))


class Kill(BaseException):
    """kill -9."""


def statements_of_a_migration(path: Path) -> Iterator[str]:
    seen: list[str] = []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.set_trace_callback(seen.append)
        with contextlib.closing(Store(path, connect=lambda: database)):
            yield from seen


def test_a_kill_before_any_statement_leaves_the_old_file_and_the_next_start_goes_through(
    path: Path, tmp_path: Path
) -> None:
    before = contents(path)
    counted = Path(shutil.copy(path, tmp_path / "counted.sqlite3"))
    statements = len(list(statements_of_a_migration(counted)))
    assert statements >= 5
    for stop_at in range(statements):
        killed = Path(shutil.copy(path, tmp_path / f"killed-{stop_at}.sqlite3"))
        database = sqlite3.connect(killed, isolation_level=None)

        class Dying:
            """Runs so many statements, and no more."""

            left = stop_at

            def __init__(self, inner: sqlite3.Connection) -> None:
                self.__dict__["_inner"] = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def execute(self, *arguments: Any) -> Any:
                if Dying.left == 0:
                    raise Kill
                Dying.left -= 1
                return self._inner.execute(*arguments)

        dying: Any = Dying(database)
        with contextlib.suppress(Kill):
            Store(killed, connect=lambda dying=dying: dying)  # type: ignore[misc] # bound now
        database.close()  # the process is gone: what was not committed is rolled back
        assert schema_of(killed) in (1, SCHEMA_VERSION)
        assert contents(killed) == before
        Store(killed).close()
        assert schema_of(killed) == SCHEMA_VERSION
        assert contents(killed) == before


def test_two_processes_that_open_it_at_once_bring_it_up_to_date_once(path: Path) -> None:
    first = sqlite3.connect(path, isolation_level=None)
    second = Store(path)
    Store(path, connect=lambda: first).close()
    second.close()
    assert schema_of(path) == SCHEMA_VERSION


def test_who_only_reads_is_told_what_brings_it_up_to_date(path: Path) -> None:
    with pytest.raises(StoreError, match=r"older potluck \(schema 1\); its coordinator brings it"):
        Store(path, read_only=True)
    assert schema_of(path) == 1
    assert not list(path.parent.glob("*.bak"))


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = contents(path)
    with pytest.raises(StoreError, match="newer potluck"):
        Store(path)
    assert schema_of(path) == SCHEMA_VERSION + 1
    assert contents(path) == before


def test_the_federation_goes_on_where_schema_1_left_it(tmp_path: Path, old_file: Path) -> None:
    """The round that was open ends with what it had; the model and the release are the old ones."""
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    coordinator = loopback.coordinator
    coordinator.store.close()
    for path in (tmp_path / "coordinator").glob(f"{STORE_FILE}*"):
        path.unlink()
    shutil.copy(old_file, tmp_path / "coordinator" / STORE_FILE)
    before = contents(old_file)
    loopback.now_s = 2_000.0
    coordinator = loopback.boot_coordinator()
    assert coordinator.models.version == 2
    assert coordinator.models.digest == before["models"][2]["digest"]
    loopback.start()
    assert coordinator.rounds.round.opened is not None
    assert coordinator.rounds.round.opened.round == 3
    loopback.play(until_s=4_000.0)
    assert coordinator.finished
    rows = {row.update_id: row for row in coordinator.store.updates()}
    for old in before["updates"]:
        now = rows[old["update_id"]]
        assert now.receipted_at == old["receipted_at"]
        if old["settled_at"] is not None:
            assert (now.settled_at, now.counted) == (old["settled_at"], bool(old["counted"]))
        else:
            assert now.settled_at is not None, "receipted and never settled"
    assert coordinator.store.rounds()[2]["closed_at"] is not None
    (kept,) = {row.digest for row in coordinator.store.releases() if row.version == 2}
    assert kept == before["models"][2]["digest"]
    assert coordinator.store.devices().keys() == {row["device"] for row in before["devices"]}
    tokens = before["tokens"]
    secret = coordinator.store.token_secret(tokens[0]["token_id"], bytes(32), 1_000.0)
    assert secret == tokens[0]["secret"]
