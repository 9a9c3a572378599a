"""kill -9, for real: of the coordinator, of the broker, of a device."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import EmbeddedBroker
from edge_sdk import JournalError, read_status
from edge_sdk.journal import SqliteJournal
from tests.support.processes import (
    Processes,
    ledger_rows,
    potluck,
    until,
    write_federation,
    write_task,
)
from wire import update_id

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(state_dir=tmp_path / "broker") as running:
        yield running


def set_up(directory: Path, url: str, *, devices: int, hidden: int = 6, more: str = "") -> Path:
    write_task(directory, hidden=hidden)
    write_federation(directory, cohort=devices, more=more)
    state = directory / "coordinator"
    potluck("coordinator", "init", state, "--broker", url, cwd=directory)
    potluck("enroll", state, "-n", str(devices), "-o", directory / "tokens", cwd=directory)
    return state


def run_coordinator(processes: Processes, state: Path, url: str) -> subprocess.Popen[bytes]:
    return processes.start(
        *("coordinator", "run", "federation.toml", "--state-dir", state, "--broker", url)
    )


def run_device(processes: Processes, number: int) -> subprocess.Popen[bytes]:
    return processes.start(
        *("device", "run", "--token-file", "tokens", "--task", "their_task:task"),
        *("--state-dir", f"device-{number}", "--index", str(number), "--seed", str(number)),
    )


def sealed_round(state_dir: Path) -> int | None:
    with contextlib.suppress(JournalError):  # the device has not begun yet
        return read_status(state_dir).sealed_round
    return None


def test_coordinator_killed_in_mid_round_resumes_it_and_settles_every_receipt_once(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    state = set_up(tmp_path, broker.url, devices=3)
    coordinator = run_coordinator(processes, state, broker.url)
    for number in range(3):
        run_device(processes, number)
    # Device 0 waits in its trainer; the two others are receipted, and nothing is settled.
    before = until(
        lambda: rows if len(rows := ledger_rows(state)) == 2 else None,
        "two receipted updates",
    )
    assert all(row.receipted_at is not None and row.counted is None for row in before)
    coordinator.kill()
    coordinator.wait()
    again = run_coordinator(processes, state, broker.url)
    (tmp_path / "go").touch()
    assert until(lambda: again.poll() is not None, "the end") is True
    assert again.returncode == 0, processes.said()
    after = {row.update_id: row for row in ledger_rows(state)}
    assert len(after) == 3
    assert all(row.counted for row in after.values())
    assert all(after[row.update_id].receipted_at == row.receipted_at for row in before)
    ledger = potluck("ledger", state, cwd=tmp_path)
    assert [row["settled"] for row in ledger["updates"]] == ["counted"] * 3
    assert [release["version"] for release in ledger["releases"]] == [1]


def test_device_killed_between_seal_and_receipt_is_counted_once_under_the_same_id(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    state = set_up(tmp_path, broker.url, devices=2)
    coordinator = run_coordinator(processes, state, broker.url)
    device = run_device(processes, 0)
    run_device(processes, 1)
    until(lambda: len(ledger_rows(state)) == 1, "the other device's update")
    # Nobody is there to receipt what device 0 seals now.
    coordinator.kill()
    coordinator.wait()
    (tmp_path / "go").touch()
    until(lambda: sealed_round(tmp_path / "device-0") == 1, "the seal")
    device.kill()
    device.wait()
    journal = SqliteJournal(tmp_path / "device-0", read_only=True)
    sealed, enrolment = journal.kept().sealed, journal.enrolment
    assert sealed is not None
    assert enrolment is not None
    payload = journal.sealed_slice(sealed.update_id, 0, 2**30)
    journal.close()
    assert sealed.update_id == update_id("survivors", 1, enrolment.device)
    assert payload is not None
    assert ledger_rows(state)[0].update_id != sealed.update_id

    again = run_coordinator(processes, state, broker.url)
    run_device(processes, 0)
    until(lambda: again.poll() is not None, "the end")
    rows = [row for row in ledger_rows(state) if row.device == enrolment.device]
    assert [(row.update_id, row.digest, row.counted) for row in rows] == [
        (sealed.update_id, sealed.payload_digest, True)
    ]
    until(lambda: read_status(tmp_path / "device-0").counted == 1, "the settlement")


def test_broker_killed_in_mid_upload_and_restarted_the_round_commits(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    # 2 MB as float32 in chunks of 3 KB: an upload is some 700 packets long.
    state = set_up(
        tmp_path,
        broker.url,
        devices=2,
        hidden=50_000,
        more='[uplink]\ncodec = "raw"\n[broker]\npacket_bytes_max = 4096\n',
    )
    (tmp_path / "go").touch()
    coordinator = run_coordinator(processes, state, broker.url)
    for number in range(2):
        run_device(processes, number)
    until(
        lambda: all(sealed_round(tmp_path / f"device-{number}") == 1 for number in range(2)),
        "both updates sealed",
    )
    assert len(ledger_rows(state)) < 2, "the upload was over before it could be cut"
    broker.kill()
    time.sleep(0.5)
    assert coordinator.poll() is None, processes.said()
    broker.start()
    until(lambda: coordinator.poll() is not None, "the end", 120.0)
    assert coordinator.returncode == 0, processes.said()
    assert [row.counted for row in ledger_rows(state)] == [True, True]
