"""A trainable file goes to real devices, in chunks: checked, tried, trained, counted.

The how-to page's own modules, in processes of their own; a device on each runtime that is there.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from coordinator import EmbeddedBroker
from edge_sdk import JournalError, read_status
from edge_sdk._litert_trust import FILE_NAME
from edge_sdk.litert_files import load_manifest, save_manifest
from tests.docs.test_litert import FILES
from tests.support.litert_runtimes import TFLITE
from tests.support.processes import Processes, ledger_rows, potluck, until, write_federation
from wire import Artefact, Manifest

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

# What an app ships says where a trial is remembered; and that nothing of the builder is there.
KEPT = "seed=device.seed, state_dir='trials-' + str(device.seed))"
NO_BUILDER = """
import importlib.util
import sys
sys.modules["litert_author"] = sys.modules["bearings"] = None
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


def set_up(directory: Path, url: str, *, cohort: int) -> Path:
    """The page's files; three of them at the coordinator alone. Packets are small."""
    for name, text in FILES.items():
        (directory / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "build.py"], cwd=directory, check=True, capture_output=True)
    on_device = FILES["on_device.py"]
    assert "seed=device.seed)" in on_device
    on_device = NO_BUILDER + on_device.replace("seed=device.seed)", KEPT)
    (directory / "on_device.py").write_text(on_device, encoding="utf-8")
    file = write_federation(directory, cohort=cohort, more="[broker]\npacket_bytes_max = 4096\n")
    file.write_text(file.read_text().replace("their_task", "bearings"))
    state = directory / "coordinator"
    potluck("coordinator", "init", state, "--broker", url, cwd=directory)
    potluck("enroll", state, "-n", "2", "-o", directory / "tokens", cwd=directory)
    return state


def run_coordinator(processes: Processes, state: Path, url: str) -> None:
    processes.start(
        *("coordinator", "run", "federation.toml", "--state-dir", state, "--broker", url)
    )


def run_device(processes: Processes, directory: Path, number: int, python: Path) -> Path:
    device = directory / f"device-{number}"
    processes.start(
        *("device", "run", "--token-file", "tokens", "--task", "on_device:task"),
        *("--state-dir", device, "--seed", str(number), "--json"),
        python=python,
    )
    return device


def has_release(device: Path) -> bool:
    try:
        return read_status(device).model_version == 1
    except JournalError:  # it has not begun yet
        return False


def test_a_file_that_came_over_the_wire_is_tried_trained_and_counted(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    pythons = [Path(sys.executable)] + [TFLITE] * TFLITE.exists()
    state = set_up(tmp_path, broker.url, cohort=len(pythons))
    run_coordinator(processes, state, broker.url)
    devices = [run_device(processes, tmp_path, n, p) for n, p in enumerate(pythons)]
    until(
        lambda: len([row for row in ledger_rows(state) if row.counted]) == len(pythons),
        "updates that count",
    )
    for number, device in enumerate(devices):
        until(partial(has_release, device), "the release")
        passed = msgspec.json.decode((tmp_path / f"trials-{number}" / FILE_NAME).read_bytes())
        assert len(passed) == 1, "one trial, which was remembered"
        held = (device / "models").rglob("*")
        file = (tmp_path / "bearing.tflite").read_bytes()
        assert any(p.is_file() and p.read_bytes().endswith(file) for p in held)


def test_a_file_that_lies_about_itself_is_refused_by_devices_which_stay(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    state = set_up(tmp_path, broker.url, cohort=1)
    honest = load_manifest(tmp_path / "bearing")
    assert honest.artefact is not None
    info = honest.artefact.info
    lie = msgspec.structs.replace(info.probe, losses=tuple(2 * v for v in info.probe.losses))
    artefact = Artefact(honest.artefact.data, msgspec.structs.replace(info, probe=lie))
    save_manifest(
        Manifest(dict(honest.tensors), parts=honest.parts, artefact=artefact), tmp_path / "bearing"
    )
    run_coordinator(processes, state, broker.url)
    run_device(processes, tmp_path, 0, Path(sys.executable))
    until(lambda: "the file failed its trial" in processes.said(), "a refusal")
    assert not [row for row in ledger_rows(state) if row.counted]
    status = potluck("device", "status", tmp_path / "device-0", cwd=tmp_path)
    assert status["counted"] == 0, json.dumps(status)
