"""kill -9 to collecting again: how long a gateway that died in mid-round takes to be back.

A state directory is made with a round that is open and half of its updates on disk. The process
that runs it is started, and the clock stops when it has taken the round up (`round_resumed`: every
stored update is in the sum again) and listens to the broker (`broker_up`), in whichever order.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from coordinator import STORE_FILE, Coordinator, EmbeddedBroker, Store, init_state, load_identity
from coordinator.config import FederationConfig, Rounds
from coordinator.signals import Open, RoundOpened, UpdateStored
from quantization import encode
from wire import Ed25519, Manifest, SystemSecrets, identity

_ROOT: Final = Path(__file__).parents[1]
_TASK: Final = """
import numpy as np
from wire import Manifest

class Task:
    def model(self):
        return Manifest({{"w": np.zeros({parameters}, np.float32)}})

    def trainer(self, device):
        raise NotImplementedError

task = Task()
"""
_PATIENCE_S: Final = 60.0


class RestartTimes(msgspec.Struct, frozen=True):
    """What was measured; seconds from the start of the process.

    `ready_s` is the median of `times_s`. `bare_s` is what Python and the imports alone take.
    """

    parameters: int
    updates: int
    spool_bytes: int
    ready_s: float
    times_s: list[float]
    bare_s: float


def restart_seconds(
    *, parameters: int = 1_000_000, updates: int = 16, repeats: int = 3, codec: str = "ecq_sr"
) -> RestartTimes:
    """Measure a restart with `updates` of twice as many invited devices on disk.

    Args:
        parameters: of the model.
        updates: in the spool.
        repeats: how often; each process is ended with SIGKILL.
        codec: of the updates.
    """
    with (
        tempfile.TemporaryDirectory(prefix="potluck-restart-") as directory,
        EmbeddedBroker() as broker,
    ):
        home = Path(directory)
        spool_bytes = _make_state(home, parameters, updates, codec)
        times = [_one_start(home, broker.url, updates) for _ in range(repeats)]
        bare_s = _bare_start()
    return RestartTimes(parameters, updates, spool_bytes, statistics.median(times), times, bare_s)


def _make_state(home: Path, parameters: int, updates: int, codec: str) -> int:
    """A federation that was killed in the middle of its first round."""
    (home / "restart_task.py").write_text(textwrap.dedent(_TASK.format(parameters=parameters)))
    (home / "federation.toml").write_text(
        '[federation]\nname = "restart"\ntask = "restart_task:task"\n'
        f"[rounds]\ncount = 3\ncohort = {2 * updates}\nquorum = 1.0\ndeadline_s = 36000.0\n"
    )
    state = home / "state"
    init_state(state, SystemSecrets())
    crypto, now_s = Ed25519(), time.time()
    keys = [SystemSecrets().token(32) for _ in range(2 * updates)]
    store = Store(state / STORE_FILE)
    manifest = Manifest({"w": np.zeros(parameters, np.float32)})
    coordinator = Coordinator(
        config=FederationConfig(
            rounds=Rounds(count=3, cohort=2 * updates, quorum=1.0, deadline_s=36_000.0)
        ),
        manifest=manifest,
        evaluator=None,
        store=store,
        keys=load_identity(state, crypto),
        crypto=crypto,
        publish=lambda _topic, _data: None,
        observe=lambda _report: None,
        now_s=now_s,
    )
    names = [coordinator.admit(crypto.signer(key).public_key, "unknown", now_s) for key in keys]
    opened = RoundOpened(
        round=1,
        base_version=0,
        base_digest=coordinator.models.digest,
        plan=FederationConfig().plan(1),
        codec=codec,
        cohort=2 * updates,
        needed=2 * updates,
        invited=dict.fromkeys(names, 1 << 32 | 1),
        opened_at_s=now_s,
        deadline_at_s=now_s + 36_000.0,
        chunk_bytes_max=120_000,
        weight_cap=1_000,
    )
    coordinator.rounds.current.begin(opened)
    coordinator.rounds.step(Open(opened), now_s)
    spool_bytes = 0
    for number, name in enumerate(names[:updates]):
        delta = np.random.default_rng(number).standard_t(3, parameters).astype(np.float32) * 1e-3
        payload = encode(codec, {"w": delta}, manifest.schema.shared, seed=number)
        spool_bytes += len(payload)
        update = UpdateStored(
            update_id=identity.update_id("restart", 1, name),
            device=name,
            round=1,
            base_version=0,
            num_examples=10,
            weight=10,
            payload_bytes=len(payload),
            payload_digest=bytes(32),
            metrics={},
            receipted_at_s=now_s,
        )
        coordinator.rounds.take(update, payload, now_s)
    store.close()
    return spool_bytes


def _one_start(home: Path, url: str, updates: int) -> float:
    """Start, wait until it collects, kill."""
    command = ["coordinator", "run", "federation.toml", "--state-dir", "state", "--json"]
    started_s = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own command line
        [sys.executable, "-m", "potluck", *command, "--broker", url],
        cwd=home,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    waiting = {"round_resumed", "broker_up"}
    said: list[Any] = []
    try:
        while waiting and time.monotonic() - started_s < _PATIENCE_S:
            line = process.stdout.readline() if process.stdout is not None else b""
            if not line:
                break
            said.append(line.decode("utf-8", "replace").strip())
            if line.startswith(b"{"):
                waiting.discard(msgspec.json.decode(line)["event"])
        took_s = time.monotonic() - started_s
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if waiting or not any(f"{updates} updates on disk" in line for line in said):
        raise RuntimeError(f"the coordinator did not resume: {said}")
    return round(took_s, 3)


def _bare_start() -> float:
    """The part of it that no state directory changes: Python, and importing the coordinator."""
    started_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import potluck.__main__"],
        env=_environment(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return round(time.monotonic() - started_s, 3)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1"}


def main() -> int:
    """Print one JSON object."""
    print(msgspec.json.encode(restart_seconds()).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
