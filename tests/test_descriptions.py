"""A device without a model, for real: it fetches one, through kill -9, trains and is counted."""

import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import EmbeddedBroker
from edge_sdk import JournalError, read_status
from edge_sdk.parts import PartFiles
from tests.support.processes import (
    Processes,
    ledger_rows,
    potluck,
    until,
    write_federation,
)

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

SIZE = 2_000_000
SOME_BYTES = 1_000_000

# The coordinator's module; devices have another one, without a model.
THEIRS = """
import numpy as np
from wire import Manifest

class Task:
    def model(self):
        table = np.arange({size}, dtype="f4") / {size}
        tensors = {{"weights": np.zeros(8, "f4"), "table": table}}
        return Manifest(tensors, parts={{"table": "frozen"}})

    def trainer(self, device):
        raise NotImplementedError

task = Task()
"""
DEVICES = """
import numpy as np
from edge_sdk import CallableTrainer

def train(tensors, x, y, plan):
    assert tensors["table"][-1] > 0.9
    error = 1.0 / (1.0 + np.exp(-(x @ tensors["weights"]))) - y
    tensors["weights"] -= plan.learning_rate * (x.T @ error) / len(y)

class Task:
    def trainer(self, device):
        assert device.manifest.tensors["table"][0] == 0.0
        chance = np.random.default_rng(device.seed)
        x = chance.standard_normal((40, 8)).astype("f4")
        y = (x[:, 0] > x[:, 1]).astype("f4")
        return CallableTrainer(train, (x, y))

task = Task()
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


def set_up(directory: Path, url: str, *, size: int, more: str = "") -> Path:
    """A federation whose description has `size` frozen values."""
    (directory / "their_task.py").write_text(textwrap.dedent(THEIRS.format(size=size)))
    (directory / "device_task.py").write_text(textwrap.dedent(DEVICES))
    write_federation(directory, cohort=1, more=more)
    state = directory / "coordinator"
    potluck("coordinator", "init", state, "--broker", url, cwd=directory)
    potluck("enroll", state, "-n", "2", "-o", directory / "tokens", cwd=directory)
    return state


def description_of(state_dir: Path) -> str:
    try:
        return read_status(state_dir).description
    except JournalError:  # the device has not begun yet
        return ""


def test_a_device_without_a_model_goes_on_after_kill_9_and_is_counted(
    tmp_path: Path, broker: EmbeddedBroker, processes: Processes
) -> None:
    small = "[broker]\npacket_bytes_max = 4096\n"
    state = set_up(tmp_path, broker.url, size=SIZE, more=small)
    processes.start(
        *("coordinator", "run", "federation.toml", "--state-dir", state, "--broker", broker.url)
    )
    device = tmp_path / "device"
    part = device / "models" / "description" / "part-0.bin"

    def run_device() -> subprocess.Popen[bytes]:
        return processes.start(
            *("device", "run", "--token-file", "tokens", "--task", "device_task:task"),
            *("--state-dir", device, "--seed", "1"),
        )

    first = run_device()
    # A file with holes: what it takes on the disk is what has arrived.
    until(lambda: part.exists() and part.stat().st_blocks * 512 > SOME_BYTES, "some chunks")
    first.kill()
    first.wait()
    assert description_of(device) == ""
    found = PartFiles(part.parent).find(0)
    assert found is not None
    chunks = sum(byte.bit_count() for byte in found[1].received)
    assert SOME_BYTES // 4_096 <= chunks < 4 * SIZE // 4_096
    run_device()
    digest = until(lambda: description_of(device), f"the description\n{processes.said()}")
    assert f"the description: {chunks} chunks are here" in processes.said()
    rows = until(
        lambda: [row for row in ledger_rows(state) if row.counted], "an update that counts"
    )
    assert len(rows) == 1
    until(lambda: read_status(device).model_version == 1, "the released model")
    status = potluck("device", "status", device, cwd=tmp_path)
    assert status["description"] == digest
    assert status["counted"] == 1


def test_the_coordinator_needs_a_model_and_says_so(tmp_path: Path, broker: EmbeddedBroker) -> None:
    state = set_up(tmp_path, broker.url, size=8)
    file = tmp_path / "federation.toml"
    file.write_text(file.read_text().replace("their_task", "device_task"))
    run = ("coordinator", "run", file, "--state-dir", state, "--broker", broker.url)
    done = potluck(*run, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "has no model()" in done.stderr
