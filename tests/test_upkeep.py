"""A gateway over time, with real processes: several federations, backup, reload, kill -9."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import STORE_FILE, EmbeddedBroker, Store
from coordinator.broker import available_kinds
from edge_sdk import read_status
from scripts.kill_test import play
from tests.support.processes import Processes, ledger_rows, potluck, until, write_task

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(180)]

FEDERATION = """
[federation]
name = "{name}"
task = "their_task:task"
[rounds]
count = {count}
cohort = {cohort}
quorum = 1.0
deadline_s = 120.0
every_s = {every_s}
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(state_dir=tmp_path / "broker") as running:
        yield running


class Site:
    """One coordinator of several on a broker: its file, its state, its devices."""

    def __init__(self, home: Path, key: str, broker: EmbeddedBroker, processes: Processes) -> None:
        self.home, self.key, self.url, self.processes = home, key, broker.url, processes
        self.state = home / f"state-{key}"
        self.file = home / f"{key}.toml"

    def set_up(
        self, *, name: str, devices: int, count: int = 2, cohort: int = 0, every_s: float = 0.0
    ) -> None:
        self.name, self.devices = name, devices
        self.write(count=count, cohort=cohort or devices, every_s=every_s)
        potluck("coordinator", "init", self.state, "--broker", self.url, cwd=self.home)
        tokens = self.home / f"tokens-{self.key}"
        potluck("enroll", self.state, "-n", str(devices), "-o", tokens, cwd=self.home)

    def write(self, *, count: int, cohort: int, every_s: float = 0.0) -> None:
        self.file.write_text(
            FEDERATION.format(name=self.name, count=count, cohort=cohort, every_s=every_s)
        )

    def run(self) -> subprocess.Popen[bytes]:
        return self.processes.start(
            *("coordinator", "run", self.file, "--state-dir", self.state, "--broker", self.url)
        )

    def run_device(self, number: int) -> Path:
        directory = self.home / f"device-{self.key}-{number}"
        self.processes.start(
            *("device", "run", "--token-file", f"tokens-{self.key}", "--task", "their_task:task"),
            *("--state-dir", directory, "--index", str(number), "--seed", str(number)),
        )
        return directory

    def rounds(self) -> list[str]:
        store = Store(self.state / STORE_FILE, read_only=True)
        try:
            return [row["status"] for row in store.rounds()]
        finally:
            store.close()


@pytest.mark.parametrize("names", [("north", "south"), ("same", "same")], ids=["two", "one-name"])
def test_two_federations_on_one_broker_do_not_touch_each_other(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes, names: tuple[str, str]
) -> None:
    """Also when both have the same name: devices believe their own coordinator's key alone."""
    write_task(tmp_path)
    (tmp_path / "go").touch()
    sites = [Site(tmp_path, key, broker, processes) for key in ("a", "b")]
    for site, name in zip(sites, names, strict=True):
        site.set_up(name=name, devices=2)
    running = [site.run() for site in sites]
    # Device 1 of both is one machine, enrolled twice: two directories, two keys.
    homes = [[site.run_device(number) for number in (0, 1)] for site in sites]
    for coordinator in running:
        until(lambda p=coordinator: p.poll() is not None, "the end")  # type: ignore[misc] # bound now
        assert coordinator.returncode == 0, processes.said()
    for site, directories in zip(sites, homes, strict=True):
        rows = ledger_rows(site.state)
        assert len(rows) == 4
        assert all(row.counted for row in rows)
        mine = {read_status(directory).device for directory in directories}
        assert {row.device for row in rows} == mine
    ledgers = [{row.update_id for row in ledger_rows(site.state)} for site in sites]
    assert not ledgers[0] & ledgers[1]
    reasons = {
        incident["reason"]
        for site in sites
        for incident in potluck("ledger", site.state, cwd=tmp_path)["incidents"]
    }
    # What a coordinator hears of another's devices it counts, and does nothing else with. (Both
    # devices of a site have its tokens, and try the one first that the other has used.)
    assert reasons - {"bad_token"} <= ({"unknown_sender"} if names[0] == names[1] else set())


def test_a_backup_of_a_running_coordinator_goes_on_elsewhere_with_the_same_devices(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    write_task(tmp_path)
    (tmp_path / "go").touch()
    site = Site(tmp_path, "a", broker, processes)
    site.set_up(name="saved", devices=2, count=500)
    coordinator = site.run()
    homes = [site.run_device(number) for number in (0, 1)]
    until(lambda: len(ledger_rows(site.state)) >= 4, "two rounds")
    file = tmp_path / "backup"
    made = potluck("coordinator", "backup", site.state, "-o", file, cwd=tmp_path)
    assert made["bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o077 == 0
    refused = potluck("coordinator", "backup", site.state, "-o", file, cwd=tmp_path, check=False)
    assert "exists already" in refused.stderr
    lost_up_to = made["round"] + 2
    until(lambda: len(site.rounds()) > lost_up_to, "rounds that the backup does not know")
    coordinator.kill()  # and its disk with it
    coordinator.wait()
    site.state.rename(tmp_path / "ashes")
    restored = potluck("coordinator", "restore", file, site.state, cwd=tmp_path)
    assert (restored["round"], restored["version"]) == (made["round"], made["version"])
    site.write(count=made["round"] + 3, cohort=2)
    again = site.run()
    until(lambda: again.poll() is not None, "the end")
    assert again.returncode == 0, processes.said()
    store = Store(site.state / STORE_FILE, read_only=True)
    released = store.released("stable")
    numbers = [row["round"] for row in store.rounds()]
    store.close()
    assert released is not None
    assert min(n for n in numbers if n > made["round"]) == restored["epoch"] * 1_000_000 + 1
    until(
        lambda: {read_status(home).model_version for home in homes} == {released["version"]},
        "the release on every device",
    )
    assert all(row.counted is not None for row in ledger_rows(site.state))


def test_a_running_coordinator_reads_its_file_again_and_keeps_the_old_one_for_a_bad_one(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    write_task(tmp_path)
    (tmp_path / "go").touch()
    site = Site(tmp_path, "a", broker, processes)
    site.set_up(name="changed", devices=1, count=100_000, every_s=0.2)
    coordinator = site.run()
    site.run_device(0)
    until(lambda: len(ledger_rows(site.state)) >= 1, "a round")
    good = site.file.read_text()
    site.file.write_text("[rounds]\ncohrt = 3\n")
    refused = potluck("coordinator", "reload", site.state, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "did you mean 'cohort'" in refused.stderr
    site.file.write_text(good.replace('"changed"', '"another"'))
    refused = potluck("coordinator", "reload", site.state, cwd=tmp_path, check=False)
    assert "not possible" in refused.stderr
    assert coordinator.poll() is None, processes.said()
    site.write(count=len(site.rounds()) + 3, cohort=1, every_s=0.2)
    if hasattr(signal, "SIGHUP"):
        coordinator.send_signal(signal.SIGHUP)
    else:
        potluck("coordinator", "reload", site.state, cwd=tmp_path)
    until(lambda: coordinator.poll() is not None, "the end that the new file says")
    assert coordinator.returncode == 0, processes.said()
    gone = potluck("coordinator", "reload", site.state, cwd=tmp_path, check=False)
    assert "no coordinator runs here" in gone.stderr


@pytest.mark.skipif("mosquitto" not in available_kinds(), reason="needs Mosquitto")
def test_kill_minus_nine_of_everything_changes_no_bit_of_the_model(tmp_path: Path) -> None:
    """The short version of `make kill-test`."""
    result = play(tmp_path / "kills", seed=3, rounds=3, kills=6, devices=2, every_s=0.2, slow_s=0.5)
    assert sum(result.kills.values()) == 6
    assert result.disturbed.counted == 6
    assert result.disturbed.model_digest == result.undisturbed.model_digest
