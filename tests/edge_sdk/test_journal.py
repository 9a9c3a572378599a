import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk import JournalError
from edge_sdk import journal as journal_module
from edge_sdk.journal import (
    HISTORY_LINES_MAX,
    JOURNAL_FILE,
    Enrolment,
    Journal,
    MemoryJournal,
    SqliteJournal,
)
from edge_sdk.signals import ForgetUpdate, SealedUpdate, Spent

SEALED = SealedUpdate(
    update_id=b"u" * 16,
    round=7,
    base_version=6,
    payload_bytes=3,
    payload_digest=b"d" * 32,
    num_examples=10,
    chunk_bytes_max=1_000,
    metrics={"train_loss": 0.5},
)
ENROLMENT = Enrolment("device", "toy", b"k" * 32, "mqtt://localhost", "ca", b"certificate")


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    """The same journal again, as after a crash (memory: as after nothing)."""
    memory = MemoryJournal()
    return (lambda: memory) if request.param == "memory" else (lambda: SqliteJournal(tmp_path))


def test_boots_are_counted_over_restarts(reopen: Callable[[], Journal]) -> None:
    assert [reopen().begin_boot().boot for _ in range(3)] == [1, 2, 3]


def test_a_sealed_update_is_there_until_it_is_forgotten(reopen: Callable[[], Journal]) -> None:
    reopen().seal(SEALED, b"abc")
    kept = reopen().begin_boot()
    assert (kept.sealed, kept.last_round) == (SEALED, 7)
    assert reopen().sealed_slice(SEALED.update_id, 0, 2**30) == b"abc"
    assert reopen().sealed_slice(b"x" * 16, 0, 2**30) is None
    reopen().forget(ForgetUpdate(SEALED.update_id, 7, counted=True, reason="counted"))
    kept = reopen().begin_boot()
    assert (kept.sealed, kept.last_round) == (None, 7)
    assert reopen().sealed_slice(SEALED.update_id, 0, 2**30) is None


def test_the_description_is_remembered_and_none_is_empty(reopen: Callable[[], Journal]) -> None:
    assert reopen().description() == b""
    reopen().note_description(b"d" * 32)
    assert reopen().description() == b"d" * 32


def test_a_device_that_enrols_anew_forgets_which_description_it_had(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    journal.note_description(b"d" * 32)
    journal.reset()
    assert journal.description() == b""


def test_models_and_enrolment_are_remembered(reopen: Callable[[], Journal]) -> None:
    journal = reopen()
    journal.enrol(ENROLMENT)
    journal.note_held(9)
    journal.note_released(8)
    kept = reopen().begin_boot()
    assert (kept.enrolment, kept.held_version, kept.released_version) == (ENROLMENT, 9, 8)


def test_revocation_takes_the_sealed_update_with_it(reopen: Callable[[], Journal]) -> None:
    reopen().seal(SEALED, b"abc")
    reopen().revoke("owner_left")
    kept = reopen().begin_boot()
    assert kept.revoked
    assert kept.sealed is None


def test_bytes_add_up_within_a_day_and_start_anew_on_the_next(
    reopen: Callable[[], Journal],
) -> None:
    assert reopen().spend(100, Spent(5)) == Spent(5)
    assert reopen().spend(100, Spent(7)) == Spent(12)
    assert reopen().spend(101, Spent(1)) == Spent(1)


def test_a_clock_that_is_set_back_finds_the_days_sum_again(reopen: Callable[[], Journal]) -> None:
    assert reopen().spend(20_000, Spent(5)) == Spent(5)
    assert reopen().spend(20_365, Spent(7)) == Spent(7)
    assert reopen().spent(20_000) == Spent(5)
    assert reopen().spend(20_000, Spent(1)) == Spent(6)
    assert reopen().spent(7) == Spent(0)


@pytest.mark.slow
def test_bytes_of_64_days_are_kept(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    for day in range(100):
        journal.spend(day, Spent(1))
    assert list(journal.spent_by_day()) == list(range(36, 100))
    journal.close()


def test_the_identity_key_is_made_once(tmp_path: Path) -> None:
    assert SqliteJournal(tmp_path).identity_key(b"a" * 32) == b"a" * 32
    assert SqliteJournal(tmp_path).identity_key(b"b" * 32) == b"a" * 32


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).identity_key(b"a" * 32)
    assert (tmp_path / "journal.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_history_is_bounded(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    journal._db.execute("PRAGMA synchronous=OFF")
    for number in range(HISTORY_LINES_MAX + 50):
        journal.forget(ForgetUpdate(b"u" * 16, number, counted=False, reason="late"))
    history = journal.history()
    assert len(history) == HISTORY_LINES_MAX
    assert history[-1].round == HISTORY_LINES_MAX + 49


@pytest.mark.parametrize("content", [b"not a database at all, but long enough" * 40, b"SQLite"])
def test_a_damaged_journal_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    with pytest.raises(JournalError, match="move it away"):
        SqliteJournal(tmp_path)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(JournalError, match="newer potluck"):
        SqliteJournal(tmp_path)


def test_looking_at_no_device_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no device has run here"):
        SqliteJournal(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


FIRST_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE sealed (
    only INTEGER PRIMARY KEY CHECK (only = 1), record BLOB NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE history (
    sequence INTEGER PRIMARY KEY, update_id BLOB NOT NULL, round INTEGER NOT NULL,
    counted INTEGER NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE TABLE spent (day INTEGER PRIMARY KEY, bytes INTEGER NOT NULL) STRICT;
INSERT INTO spent VALUES (100, 5);
PRAGMA user_version=1;
"""


@pytest.fixture
def of_the_first_schema(tmp_path: Path) -> Path:
    database = sqlite3.connect(tmp_path / JOURNAL_FILE)
    database.executescript(FIRST_SCHEMA)
    database.close()
    return tmp_path


def test_a_journal_of_the_first_schema_keeps_its_bytes_and_gets_the_rest(
    of_the_first_schema: Path,
) -> None:
    journal = SqliteJournal(of_the_first_schema)
    assert journal.spent(100) == Spent(5)
    assert journal.spend(100, Spent(1, 2.5, 3.5)) == Spent(6, 2.5, 3.5)
    journal.close()
    again = SqliteJournal(of_the_first_schema)
    assert again.spend(100, Spent(1, 0.5, 0.25)) == Spent(7, 3.0, 3.75)
    again.close()


def test_a_migration_that_is_cut_short_leaves_the_old_journal(
    of_the_first_schema: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (*journal_module._MIGRATIONS[:1], journal_module._MIGRATIONS[1] + "NONSENSE;\n")
    monkeypatch.setattr(journal_module, "_MIGRATIONS", steps)
    with pytest.raises(JournalError):
        SqliteJournal(of_the_first_schema)
    monkeypatch.undo()
    journal = SqliteJournal(of_the_first_schema)
    assert journal.spend(100, Spent(1)) == Spent(6)
    journal.close()


def test_a_journal_of_the_first_schema_can_be_read_by_whoever_only_reads(
    of_the_first_schema: Path,
) -> None:
    journal = SqliteJournal(of_the_first_schema, read_only=True)
    assert (journal.spent(100), journal.spent(101)) == (Spent(5), Spent())
    assert journal.waits == ""
    journal.close()


def test_why_a_device_waits_is_kept(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    journal.note_waits("quiet_hours")
    journal.close()
    journal = SqliteJournal(tmp_path, read_only=True)
    assert journal.waits == "quiet_hours"
    journal.close()
