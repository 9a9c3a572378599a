"""Real processes for tests that kill them: the command line, its output, and patience."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator import STORE_FILE, Store, StoreError, UpdateRow

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]

FEDERATION = """
[federation]
name = "survivors"
task = "their_task:task"
[rounds]
count = {count}
cohort = {cohort}
quorum = {quorum}
deadline_s = 60.0
"""

# A user's own task, outside of the repository. Device `SLOW` trains when the file `go` is there.
TASK = """
import time
from pathlib import Path
import numpy as np
from edge_sdk import NumpyTrainer

HERE = Path(__file__).parent

class Slow(NumpyTrainer):
    def train(self, model, plan, *, stop):
        while not (HERE / "go").exists() and not stop():
            time.sleep(0.02)
        return super().train(model, plan, stop=stop)

class Task:
    def model(self):
        return NumpyTrainer.manifest(8, {hidden}, 2, seed=3)

    def trainer(self, device):
        chance = np.random.default_rng(device.seed)
        x = chance.standard_normal((40, 8)).astype("f4")
        y = (x[:, 0] > x[:, 1]).astype(int)
        kind = Slow if device.index == 0 else NumpyTrainer
        return kind(x[:30], y[:30], holdout=(x[30:], y[30:]), seed=device.seed)

task = Task()
"""


def write_task(directory: Path, *, hidden: int = 6) -> None:
    """A user's folder: task module and nothing else."""
    (directory / "their_task.py").write_text(textwrap.dedent(TASK.format(hidden=hidden)))


def write_federation(
    directory: Path, *, count: int = 1, cohort: int = 3, quorum: float = 1.0, more: str = ""
) -> Path:
    """A federation file."""
    path = directory / "federation.toml"
    path.write_text(FEDERATION.format(count=count, cohort=cohort, quorum=quorum) + more)
    return path


def potluck(*arguments: str | Path, cwd: Path, check: bool = True) -> Any:
    """Run a command to its end; its JSON object."""
    done = subprocess.run(
        [sys.executable, "-m", "potluck", *map(str, arguments), "--json"],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else done


def environment() -> dict[str, str]:
    """The repository importable, from whatever directory; one thread for each NumPy."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


class Processes:
    """Long-running commands of one test; whatever it does, they end with it."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, *arguments: str | Path, python: str | Path = sys.executable
    ) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to a file beside the task."""
        log = (self._cwd / f"log-{len(self._started)}").open("wb")
        process = subprocess.Popen(
            [python, "-m", "potluck", *map(str, arguments)],
            cwd=self._cwd,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        """SIGKILL for whoever is left."""
        for process in self._started:
            process.kill()
            process.wait()

    def said(self) -> str:
        """What all of them printed, for a failing assertion."""
        return "\n".join(p.read_text(errors="replace") for p in sorted(self._cwd.glob("log-*")))


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition to be true; returns its value."""
    give_up_at_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_at_s:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {patience_s:.0f} s")


def ledger_rows(state_dir: Path) -> list[UpdateRow]:
    """The ledger of a coordinator that may be running, or dead."""
    try:
        store = Store(state_dir / STORE_FILE, read_only=True)
    except StoreError:
        return []
    try:
        return store.updates()
    finally:
        store.close()
