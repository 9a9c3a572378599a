"""The command line as its users meet it: real processes, their output, their exit status."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import EmbeddedBroker
from potluck.__main__ import build_parser, main
from tests.support.processes import (
    Processes,
    environment,
    ledger_rows,
    potluck,
    until,
    write_federation,
    write_task,
)

DESIGN_ROUND = {
    "number",
    "status",
    "invited",
    "accepted",
    "accuracy",
    "loss",
    "uplink_bytes",
    "downlink_bytes",
    "energy_j",
    "duration_s",
}
DESIGN_TOTALS = {
    "accuracy",
    "uplink_bytes",
    "downlink_bytes",
    "uplink_bytes_float32",
    "device_updates",
    "wasted_updates",
    "wall_s",
    "updates_per_s",
    "peak_rss_bytes",
    "model_digest",
    "accepted_ids_digest",
    "trace_digest",
    "crypto",
    "engine",
    "epsilon",
}
DESIGN_UPDATE = {
    "update_id",
    "device",
    "round",
    "base_version",
    "weight",
    "bytes",
    "digest",
    "receipted_at",
    "settled",
    "reason",
}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder outside of the repository, with a task of the user's own."""
    write_task(tmp_path)
    (tmp_path / "go").touch()
    write_federation(tmp_path, count=2, cohort=3)
    return tmp_path


@pytest.mark.live
def test_a_users_own_task_runs_in_a_fleet(users_folder: Path) -> None:
    record = potluck(
        *("fleet", "run", "federation.toml", "--devices", "5", "--rounds", "3", "--seed", "2"),
        *("--wire", "mqtt", "--crypto", "stub", "--state-dir", "state", "--report", "out.html"),
        cwd=users_folder,
    )
    assert set(record["totals"]) >= DESIGN_TOTALS
    assert [r["status"] for r in record["rounds"]] == ["committed"] * 3
    assert all(set(r) >= DESIGN_ROUND for r in record["rounds"])
    assert record["totals"]["accuracy"] is not None or record["totals"]["device_updates"] == 9
    ledger = potluck("ledger", "state", cwd=users_folder)
    assert all(set(row) >= DESIGN_UPDATE for row in ledger["updates"])
    assert sum(row["settled"] == "counted" for row in ledger["updates"]) == 9
    assert (users_folder / "out.html").read_text().lstrip().startswith("<!doctype html>")


@pytest.mark.live
def test_a_day_in_virtual_time_is_repeated_by_its_seed(users_folder: Path) -> None:
    command = ("fleet", "run", "federation.toml", "--devices", "20", "--wire", "virtual")
    one, two = (potluck(*command, "--seed", "4", cwd=users_folder) for _ in range(2))
    other = potluck(*command, "--seed", "5", cwd=users_folder)
    for digest in ("trace_digest", "model_digest", "accepted_ids_digest"):
        assert one["totals"][digest] == two["totals"][digest]
        assert one["totals"][digest] != other["totals"][digest]


@pytest.mark.live
def test_a_users_own_task_runs_as_processes_on_the_embedded_broker(
    users_folder: Path, processes: Processes
) -> None:
    potluck("coordinator", "init", "state", cwd=users_folder)
    potluck("enroll", "state", "-n", "3", "-o", "tokens", cwd=users_folder)
    coordinator = processes.start("coordinator", "run", "federation.toml", "--state-dir", "state")
    devices = [
        processes.start(
            *("device", "run", "--token-file", "tokens", "--task", "their_task:task"),
            *("--state-dir", f"device-{number}", "--index", str(number), "--json"),
        )
        for number in range(3)
    ]
    until(lambda: coordinator.poll() is not None, "the end")
    assert coordinator.returncode == 0, processes.said()
    rows = ledger_rows(users_folder / "state")
    assert len(rows) == 6
    assert all(row.counted for row in rows)
    until(
        lambda: all(
            potluck("device", "status", f"device-{n}", cwd=users_folder)["model_version"] == 2
            for n in range(3)
        ),
        "the release",
    )
    for device in devices:
        device.send_signal(signal.SIGTERM)
    assert [device.wait(20) for device in devices] == [0, 0, 0]
    events = [
        json.loads(line)["event"] for line in (users_folder / "log-1").read_text().splitlines()
    ]
    assert {"invited", "sealed", "receipted", "settled", "released"} <= set(events)


@pytest.mark.live
def test_a_fleet_joins_a_running_coordinator(users_folder: Path, processes: Processes) -> None:
    with EmbeddedBroker() as broker:
        potluck("coordinator", "init", "state", "--broker", broker.url, cwd=users_folder)
        potluck("enroll", "state", "-n", "4", "-o", "tokens", cwd=users_folder)
        coordinator = processes.start(
            *("coordinator", "run", "federation.toml", "--state-dir", "state"),
            *("--broker", broker.url),
        )
        record = potluck(
            *("fleet", "run", "federation.toml", "--devices", "4", "--join", "tokens"),
            cwd=users_folder,
        )
        until(lambda: coordinator.poll() is not None, "the end")
    assert coordinator.returncode == 0, processes.said()
    assert record["totals"]["device_updates"] == 6
    assert len(ledger_rows(users_folder / "state")) == 6


@pytest.mark.live
def test_a_coordinator_that_is_told_to_stop_goes_on_where_it_was(
    users_folder: Path, processes: Processes
) -> None:
    potluck("coordinator", "init", "state", cwd=users_folder)
    coordinator = processes.start(
        "coordinator", "run", "federation.toml", "--state-dir", "state", "--json"
    )
    log = users_folder / "log-0"
    until(lambda: "broker_up" in log.read_text(), "the start")
    second = potluck(
        "coordinator",
        "run",
        "federation.toml",
        "--state-dir",
        "state",
        cwd=users_folder,
        check=False,
    )
    assert second.returncode == 1
    assert "another process is running here" in second.stderr
    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait(20) == 0
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["finished"]) == ("stopped", False)


@pytest.mark.live
def test_doctor_finds_this_machine_fit() -> None:
    found = potluck("doctor", cwd=Path.cwd())
    assert found["ok"]
    assert {"python", "numpy", "broker"} <= {check["name"] for check in found["checks"]}


@pytest.mark.live
def test_a_reader_that_goes_away_is_no_traceback(users_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "potluck", "doctor"],
        cwd=users_folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # nobody reads: its first print meets a broken pipe
    said = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert "Traceback" not in said


# -- errors are one line that says what to do ------------------------------------------------------


def error_of(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("potluck: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_broken_federation_file_names_line_key_and_the_nearest_known_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text('[federation]\nname = "x"\n[rounds]\ncohrt = 3\n')
    said = error_of("fleet", "run", path, capsys=capsys)
    assert f"{path}:4: " in said
    assert "'cohrt'" in said
    assert "'cohort'" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[rounds]\ncohort = "many"\n', "expected int"),
        ("[rounds]\ncohort = 0\n", "cohort"),
        ("[rounds\n", ":1"),
        ('[federation]\nname = "Bad Name"\n', "lower-case"),
        ('[federation]\ntask = "nowhere:task"\n', "nowhere"),
        ('[uplink]\ncodec = "zip"\n', "ecq_sr"),
        ("[privacy]\nnoise_multiplier = 1.0\n", "privacy mode"),
    ],
)
def test_every_mistake_in_a_federation_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(text)
    assert says in error_of("fleet", "run", path, "--devices", "30", capsys=capsys)


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.toml" in error_of("fleet", "run", tmp_path / "nothing.toml", capsys=capsys)


def test_virtual_time_has_no_broker_to_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text("")
    said = error_of(
        *("fleet", "run", path, "--wire", "virtual", "--broker", "mqtt://localhost"), capsys=capsys
    )
    assert "leave out --broker" in said


def test_state_directories_that_are_none_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "coordinator init" in error_of("ledger", tmp_path, capsys=capsys)
    assert "coordinator init" in error_of(
        "enroll", tmp_path, "-o", tmp_path / "tokens", capsys=capsys
    )
    assert "no device has run here" in error_of("device", "status", tmp_path, capsys=capsys)


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "init", str(tmp_path / "state")]) == 0
    capsys.readouterr()
    assert "already" in error_of("coordinator", "init", tmp_path / "state", capsys=capsys)


def test_tokens_never_overwrite_a_file_and_are_their_owners_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, tokens = tmp_path / "state", tmp_path / "tokens"
    main(["coordinator", "init", str(state)])
    assert main(["enroll", str(state), "-n", "3", "-o", str(tokens)]) == 0
    assert len(tokens.read_text().splitlines()) == 3
    assert tokens.stat().st_mode & 0o077 == 0
    capsys.readouterr()
    assert "exists already" in error_of("enroll", state, "-o", tokens, capsys=capsys)
    assert "-n 0" in error_of("enroll", state, "-n", "0", "-o", tmp_path / "t", capsys=capsys)


@pytest.mark.parametrize("url", ["localhost", "http://localhost", "mqtt://", "mqtt://x:99999"])
def test_a_url_that_is_none_says_what_one_looks_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    said = error_of("coordinator", "init", tmp_path / "state", "--broker", url, capsys=capsys)
    assert "broker URL" in said
    assert not (tmp_path / "state").exists()


def test_every_command_has_json_and_a_description() -> None:
    for name, parser in leaves(build_parser()):
        options = [option for action in parser._actions for option in action.option_strings]
        assert "--json" in options, name
        assert parser.description, name


def leaves(
    parser: argparse.ArgumentParser, name: str = "potluck"
) -> list[tuple[str, argparse.ArgumentParser]]:

    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        return [(name, parser)]
    return [
        leaf for sub, child in inner[0].choices.items() for leaf in leaves(child, f"{name} {sub}")
    ]


@pytest.mark.live
@pytest.mark.timeout(150)
def test_the_demo_learns_and_says_what_happened(tmp_path: Path) -> None:
    record = potluck("demo", cwd=tmp_path)
    totals = record["totals"]
    assert totals["accuracy"] >= 0.93
    assert totals["wall_s"] <= 60.0
    assert len(record["devices"]) == 30
    assert sum(r["missing"] for r in record["rounds"]) == 3
    garbage = [device for device in record["devices"] if device["incidents"]]
    assert len(garbage) == 1
    assert garbage[0]["counted"] == 0
    assert totals["uplink_bytes"] * 10 < totals["uplink_bytes_float32"]
    assert (tmp_path / "potluck-demo.html").stat().st_size > 10_000
    assert os.listdir(tmp_path) == ["potluck-demo.html"]  # noqa: PTH208 - names are what is compared


def test_a_run_that_its_byte_budget_ends_says_which_key_to_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(
        '[federation]\ntask = "fleet.toy:task"\n[rounds]\ncount = 2\ncohort = 2\nbytes_max = 1\n'
    )
    command = ["fleet", "run", str(path), "--devices", "6", "--wire", "virtual", "--crypto", "stub"]
    assert main(command) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "potluck: no round was committed; byte_budget_spent: raise [rounds] bytes_max"
