"""What an upload costs that is cut in the middle and resumed after a reboot, in bytes.

`python -m benchmarks.resume` runs a coordinator and a device as processes of their own, with a real
broker and a relay between (`benchmarks.relay`). The relay cuts the network when the device has sent
a part of an 8 MB update; the device is ended with SIGKILL, which is as good as a reboot; a new
process on the same state directory delivers the rest. Every byte that the device wrote is counted,
from its enrolment on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.relay import Relay
from coordinator import STORE_FILE, EmbeddedBroker, Store, StoreError, UpdateRow

ROOT: Final = Path(__file__).parents[1]
LIMIT: Final = 1.1
CUTS: Final = (0.25, 0.5, 0.9)
_QUICK_CUTS: Final = (0.5,)
# 11 values for each hidden unit: 8 in, 2 out, and one of bias.
HIDDEN_8_MB: Final = 190_650
_PATIENCE_S: Final = 120.0
_TASK: Final = """
import numpy as np
from edge_sdk import NumpyTrainer

class Task:
    def model(self):
        return NumpyTrainer.manifest(8, {hidden}, 2, seed=3)

    def trainer(self, device):
        chance = np.random.default_rng(device.seed)
        x = chance.standard_normal((40, 8)).astype("f4")
        y = (x[:, 0] > x[:, 1]).astype(int)
        return NumpyTrainer(x[:30], y[:30], holdout=(x[30:], y[30:]), seed=device.seed)

task = Task()
"""
_FEDERATION: Final = """
[federation]
name = "resume"
task = "large_task:task"
[rounds]
count = 1
cohort = 1
quorum = 1.0
deadline_s = 600.0
[uplink]
codec = "raw"
"""


def resume_table(quick: bool = False, *, hidden: int = HIDDEN_8_MB) -> dict[str, Any]:  # noqa: FBT001, FBT002 - `potluck bench` hands it on
    """Cut an upload, reboot, resume; the worst of all cuts.

    Args:
        quick: one cut, at half, instead of three.
        hidden: of the model, 44 bytes each.

    Returns:
        `bytes_payload` of the update, `bytes_sent_total` by the device, their `ratio`, the `limit`
        of that, and the worst one's `cut_at`, a fraction of the payload.
    """
    runs = [_one_run(cut, hidden) for cut in (_QUICK_CUTS if quick else CUTS)]
    return max(runs, key=lambda run: float(run["ratio"]))


def _one_run(cut: float, hidden: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="potluck-resume-") as name,
        EmbeddedBroker() as broker,
    ):
        directory = Path(name)
        (directory / "large_task.py").write_text(_TASK.format(hidden=hidden))
        (directory / "federation.toml").write_text(_FEDERATION)
        relay = Relay(broker.port, cut_at_bytes=int(cut * 44 * hidden))
        running: list[subprocess.Popen[bytes]] = []

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            running.append(_start(directory, *arguments))
            return running[-1]

        try:
            _start(directory, "coordinator", "init", "state", "--broker", relay.url).wait()
            _start(directory, "enroll", "state", "-n", "1", "-o", "tokens").wait()
            state = ("--state-dir", "state", "--broker", broker.url)
            start("coordinator", "run", "federation.toml", *state)
            device = (
                "--token-file",
                "tokens",
                "--task",
                "large_task:task",
                "--state-dir",
                "device",
            )
            first = start("device", "run", *device)
            if not relay.was_cut.wait(_PATIENCE_S):
                raise TimeoutError("the device has not sent enough for a cut")
            first.kill()
            first.wait()
            relay.mend()
            start("device", "run", *device)
            row = _settled(directory / "state", time.monotonic() + _PATIENCE_S)
        finally:
            for process in running:
                process.kill()
                process.wait()
            relay.close()
    return {
        "bytes_payload": row.payload_bytes,
        "bytes_sent_total": relay.sent_bytes,
        "ratio": relay.sent_bytes / row.payload_bytes,
        "limit": LIMIT,
        "cut_at": cut,
    }


def _start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "potluck", *arguments],
        cwd=directory,
        env={**os.environ, **one, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _settled(state: Path, until_s: float) -> UpdateRow:
    """The update, when the coordinator has it on disk.

    Raises:
        TimeoutError: it has not come.
    """
    while time.monotonic() < until_s:
        try:
            store = Store(state / STORE_FILE, read_only=True)
        except StoreError:
            continue
        try:
            rows = [row for row in store.updates() if row.receipted_at is not None]
        finally:
            store.close()
        if rows:
            return rows[0]
        time.sleep(0.05)
    raise TimeoutError("the update has not arrived")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; exit 1 when they pass the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    table = resume_table(quick=options.quick)
    if options.json:
        print(json.dumps(table))
    else:
        print(
            f"{table['bytes_payload']:,} bytes of payload, cut at {table['cut_at']:.0%}:"
            f" {table['bytes_sent_total']:,} sent, {table['ratio']:.3f} times"
            f" (limit {table['limit']})"
        )
    return 0 if table["ratio"] <= table["limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
