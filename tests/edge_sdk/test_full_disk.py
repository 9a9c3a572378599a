"""A disk without room at each place where the device writes: it says so, waits, and goes on."""

import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import EmbeddedBroker
from edge_sdk import Device, DeviceError, FineTuningError, read_status
from edge_sdk.journal import JournalError, SqliteJournal, no_room
from edge_sdk.models import FileShelf
from fleet.toy import ToyTask
from tests.support.federated import Federated
from tests.support.processes import until
from wire import Manifest, Report

PLACES = [
    *[(SqliteJournal, name) for name in ("seal", "forget", "spend", "note_spells", "note_waits")],
    *[(SqliteJournal, name) for name in ("note_held", "note_released")],
    *[(FileShelf, name) for name in ("save", "save_personal", "save_residual")],
]


@pytest.fixture
def federated(tmp_path: Path) -> Iterator[Federated]:
    with EmbeddedBroker() as broker:
        running = Federated(tmp_path, broker.url)
        yield running
        running.close()


def full(tmp_path: Path) -> sqlite3.Error:
    """What SQLite really says."""
    database = sqlite3.connect(tmp_path / "full", isolation_level=None)
    database.execute("PRAGMA max_page_count=2")
    database.execute("CREATE TABLE t (x BLOB)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    database.close()
    return caught.value


def test_a_full_disk_is_told_from_a_broken_one(tmp_path: Path) -> None:
    assert no_room(full(tmp_path))
    assert no_room(OSError(errno.ENOSPC, "no space left on device"))
    assert not no_room(OSError(errno.EACCES, "permission denied"))
    assert not no_room(sqlite3.DatabaseError("file is not a database"))


@pytest.mark.live
@pytest.mark.timeout(120)
def test_a_device_waits_for_room_wherever_it_found_none_and_loses_nothing(
    federated: Federated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.device.NO_ROOM_S", 0.05)
    monkeypatch.setattr("edge_sdk.session.FAILURE_PAUSE_S", 0.2)
    failures = {"sqlite": full(tmp_path), "file": OSError(errno.ENOSPC, "no space left")}
    struck: set[str] = set()

    def fail_once(owner: type, name: str) -> None:
        right = getattr(owner, name)

        def wrong(self: Any, *args: Any) -> Any:
            if name not in struck:
                struck.add(name)
                raise failures["sqlite" if owner is SqliteJournal else "file"]
            return right(self, *args)

        monkeypatch.setattr(owner, name, wrong)

    reports: list[Report] = []
    device = federated.device(1, on_report=reports.append)
    device.enroll(federated.tokens)
    for owner, name in PLACES:
        fail_once(owner, name)
    device.start()
    until(lambda: device.model.version == 2, "both rounds, in spite of it all", 60.0)
    assert device.running
    assert device.error is None
    assert device.status.counted == 2
    assert {"seal", "forget", "note_spells", "save", "note_released"} <= struck
    assert sum(r.what == "no_room" for r in reports) == sum(r.what == "room_again" for r in reports)
    device.stop()


@pytest.mark.live
@pytest.mark.timeout(60)
def test_a_device_that_finds_no_room_for_long_can_be_stopped_and_shows_its_last_model(
    federated: Federated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    device.stop()
    error = full(tmp_path)

    def wrong(*_: object) -> None:
        raise error

    reports: list[Report] = []
    again = federated.device(1, on_report=reports.append)
    monkeypatch.setattr(SqliteJournal, "note_waits", wrong)
    monkeypatch.setattr("edge_sdk.device.NO_ROOM_S", 0.05)
    again.start()
    until(lambda: sum(r.what == "no_room" for r in reports) > 2, "several tries")
    assert again.model.version == 2
    assert again.running
    again.stop()
    assert not again.running


class PersonalToy(ToyTask):
    """The toy with a head of each device's own."""

    def model(self) -> Manifest:
        return Manifest(super().model().tensors, parts={"w1": "personal", "b1": "personal"})


@pytest.mark.live
@pytest.mark.timeout(60)
def test_an_app_that_fine_tunes_while_its_device_waits_for_room_is_told(
    federated: Federated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = full(tmp_path)
    reports: list[Report] = []
    device = federated.device(1, task=PersonalToy(), on_report=reports.append)
    device.enroll(federated.tokens)

    def wrong(*_: object) -> None:
        raise error

    monkeypatch.setattr(SqliteJournal, "note_waits", wrong)
    device.start()
    until(lambda: any(report.what == "no_room" for report in reports), "a full disk")
    with pytest.raises(FineTuningError, match="stopped"):
        device.fine_tune()
    device.stop()


# -- a journal that is no longer one ---------------------------------------------------------------


def test_a_damaged_journal_is_a_typed_error_and_the_last_model_is_still_there(
    tmp_path: Path,
) -> None:
    task = ToyTask()
    manifest = task.model()
    shelf = FileShelf(tmp_path / "models", manifest.schema)
    shelf.save(7, {name: array + 1.0 for name, array in manifest.tensors.items()})
    SqliteJournal(tmp_path).close()
    path = tmp_path / "journal.sqlite"
    whole = path.read_bytes()
    for damaged in (
        whole[:1_000],
        whole[: len(whole) // 2],
        b"\xa5" * len(whole),
        whole[:100] + b"\xa5" * 4_000 + whole[4_100:],
        b"",
    ):
        for each in tmp_path.glob("journal.sqlite*"):
            each.unlink()
        path.write_bytes(damaged)
        device = Device(task, tmp_path)
        assert device.model.version == 7
        with pytest.raises(JournalError):
            read_status(tmp_path)
        with pytest.raises((JournalError, DeviceError), match=r"enrol|damaged"):
            device.start()


def test_rows_that_are_no_longer_what_they_were_are_a_typed_error(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    journal.begin_boot()
    for name, value in (("enrolment", b"\xc1"), ("revoked", b"\xff\xfe")):
        journal._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        with pytest.raises(JournalError, match="enrol again"):
            read_status(tmp_path)
        journal._db.execute("DELETE FROM facts WHERE name = ?", (name,))
    journal.close()


@pytest.mark.live
def test_a_journal_that_another_process_holds_is_waited_for(
    federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.device.NO_ROOM_S", 0.1)
    reports: list[Report] = []
    device = federated.device(1, on_report=reports.append)
    device.enroll(federated.tokens)
    other = sqlite3.connect(device.state_dir / "journal.sqlite", isolation_level=None)
    monkeypatch.setattr("edge_sdk.journal.LOCKED_S", 0.2)
    device.start()
    until(lambda: device.model.version >= 1, "a first round")
    other.execute("BEGIN IMMEDIATE")
    until(lambda: any(r.what == "no_room" for r in reports), "the lock to be met")
    other.execute("ROLLBACK")
    other.close()
    until(lambda: device.model.version == 2, "the second round")
    device.stop()


@pytest.mark.live
def test_a_journal_that_is_deleted_under_a_device_harms_nobody(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version >= 1, "a first round")
    for path in device.state_dir.glob("journal.sqlite*"):
        path.unlink()
    until(lambda: device.model.version == 2 or not device.running, "the end, this way or that")
    device.stop()
    assert device.model.version >= 1
    with pytest.raises(DeviceError, match="not enrolled"):
        federated.device(1).start()
