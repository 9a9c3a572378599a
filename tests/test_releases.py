"""Promote and rollback, for real: processes, a broker, HTTP and the command line."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import EmbeddedBroker
from edge_sdk import JournalError, read_status
from tests.support.processes import Processes, potluck, until, write_federation, write_task

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(state_dir=tmp_path / "broker") as running:
        yield running


def events(directory: Path, log: str = "log-0") -> list[dict[str, Any]]:
    lines = (directory / log).read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def address(directory: Path, log: str = "log-0") -> str | None:
    """Where the API is, as the coordinator says."""
    said = (event["detail"] for event in events(directory, log) if event["event"] == "http")
    return next(said, None)


def is_ready(url: str) -> bool:
    try:
        return bool(ask(url, "/readyz")["status"] == "ok")
    except urllib.error.HTTPError:
        return False


def ask(url: str, path: str, token: str | None = None, body: Any = None) -> Any:
    """A read; with a token a write."""
    data = json.dumps(body).encode() if token else None
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url + path, data, headers)  # noqa: S310 - http
    with urllib.request.urlopen(request, timeout=15.0) as answer:  # noqa: S310 - as above
        return json.load(answer)


def in_use(directory: Path) -> set[int]:
    """The versions that apps on the devices see."""
    found = set()
    for number in range(2):
        try:
            found.add(read_status(directory / f"device-{number}").model_version)
        except JournalError:
            found.add(-1)
    return found


def start_coordinator(processes: Processes, state: Path, url: str) -> subprocess.Popen[bytes]:
    return processes.start(
        *("coordinator", "run", "federation.toml", "--state-dir", state, "--broker", url),
        *("--http", "127.0.0.1:0", "--stay", "--json"),
    )


def test_promote_and_rollback_reach_real_devices_and_a_restart_undoes_nothing(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    write_task(tmp_path)
    write_federation(tmp_path, count=3, cohort=2)
    (tmp_path / "go").touch()
    state = tmp_path / "coordinator"
    potluck("coordinator", "init", state, "--broker", broker.url, cwd=tmp_path)
    potluck("enroll", state, "-n", "2", "-o", tmp_path / "tokens", cwd=tmp_path)
    coordinator = start_coordinator(processes, state, broker.url)
    for number in range(2):
        processes.start(
            *("device", "run", "--token-file", "tokens", "--task", "their_task:task"),
            *("--state-dir", f"device-{number}", "--index", str(number), "--seed", str(number)),
        )
    url = until(lambda: address(tmp_path), "the API's address")
    token = (state / "http-token").read_text().strip()
    assert (state / "http-token").stat().st_mode & 0o777 == 0o600
    until(lambda: in_use(tmp_path) == {3}, "the run's release on every device")

    # Over HTTP: devices go back to an older version and forward again.
    moved = ask(url, "/v1/models/2/promote", token, {})
    assert (moved["release"]["from_version"], moved["release"]["actor"]) == (3, "http")
    until(lambda: in_use(tmp_path) == {2}, "an older version on every device")
    assert ask(url, "/v1/rollback", token, {})["release"]["version"] == 3
    until(lambda: in_use(tmp_path) == {3}, "the rollback on every device")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(url, "/v1/models/2/promote", "0" * 64, {})

    # From another process: the running coordinator hears of it.
    assert potluck("model", "promote", state, "2", cwd=tmp_path)["actor"] == "operator"
    until(lambda: in_use(tmp_path) == {2}, "another process's promotion on every device")
    listed = potluck("model", "list", state, cwd=tmp_path)
    assert listed["aliases"] == {"stable": 2}
    assert listed["versions"] == [
        {**row, "aliases": ["stable"] if row["version"] == 2 else []} for row in listed["versions"]
    ]
    exported = potluck("model", "export", state, "stable", "-o", "out.npz", cwd=tmp_path)
    assert (tmp_path / "out.npz").stat().st_size == exported["bytes"]

    # A restart does not make the run's last version stable again.
    coordinator.terminate()
    coordinator.wait(20.0)
    start_coordinator(processes, state, broker.url)
    url = until(lambda: address(tmp_path, "log-3"), "the API's new address")
    until(lambda: is_ready(url), "the coordinator back")
    time.sleep(1.5)
    assert ask(url, "/v1/federation")["state"]["aliases"] == {"stable": 2}
    actions = [(r["actor"], r["action"]) for r in ask(url, "/v1/releases")["items"]]
    assert actions == [
        ("run_over", "promote"),
        ("http", "promote"),
        ("http", "rollback"),
        ("operator", "promote"),
    ]
    assert in_use(tmp_path) == {2}
