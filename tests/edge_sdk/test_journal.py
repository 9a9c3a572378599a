import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk import JournalError
from edge_sdk.journal import (
    HISTORY_LINES_MAX,
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
    assert reopen().sealed_payload(SEALED.update_id) == b"abc"
    assert reopen().sealed_payload(b"x" * 16) is None
    reopen().forget(ForgetUpdate(SEALED.update_id, 7, counted=True, reason="counted"))
    kept = reopen().begin_boot()
    assert (kept.sealed, kept.last_round) == (None, 7)
    assert reopen().sealed_payload(SEALED.update_id) is None


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
