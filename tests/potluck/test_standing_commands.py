import json
from pathlib import Path

import pytest

from coordinator import STORE_FILE, Store, init_state
from coordinator.quarantine import Quarantine
from potluck.__main__ import main
from wire import SystemSecrets


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A coordinator that has quarantined one of its four devices."""
    directory = tmp_path / "state"
    init_state(directory, SystemSecrets())
    store = Store(directory / STORE_FILE)
    for number in range(4):
        store.admit(f"device{number}", bytes(32), "unknown", 0.0)
    here = Quarantine(store, strikes_max=1, quarantine_s=1e6, share_max=0.3)
    here.strike("device1", 4, 2e9, reason="too_long", score=31.0)
    store.close()
    return directory


def test_the_trail_is_printed_for_people_and_for_programs(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coordinator", "audit", str(state), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["quarantined"] == [{"device": "device1", "until": 2e9 + 1e6}]
    assert [line["what"] for line in printed["audit"]] == ["strike", "quarantined"]
    assert set(printed["audit"][0]) == {
        "device",
        "round",
        "what",
        "reason",
        "score",
        "strikes",
        "at",
    }
    assert main(["coordinator", "audit", str(state)]) == 0
    assert "device1" in capsys.readouterr().out


def test_a_pardon_lets_back_and_stays_in_the_trail(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coordinator", "pardon", str(state), "device1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"device": "device1", "was_quarantined": True, "strikes": 0.0}
    store = Store(state / STORE_FILE, read_only=True)
    assert store.quarantined() == {}
    assert store.audit()[-1].what == "pardoned"
    store.close()


@pytest.mark.parametrize("command", [["audit"], ["pardon"]])
def test_a_directory_without_a_coordinator_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    device = ["x"] if command == ["pardon"] else []
    assert main(["coordinator", *command, str(tmp_path), *device]) != 0
    assert "potluck coordinator init" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_line(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coordinator", "pardon", str(state), "nobody"]) != 0
    assert "nobody" in capsys.readouterr().err
