"""kill -9, a hundred times, on a federation of real processes (`make kill-test`).

Twice the same federation, from the same keys: once undisturbed, once while coordinator, devices and
the broker (Mosquitto) are killed at random times that follow from a seed, and started again. At
quorum 1 and without drop-outs each round counts the same devices, so in the end

- every receipted update has exactly one settlement, and all of them count,
- each device says of itself what the ledger says of it,
- the model is the same, to the bit.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator import STORE_FILE, EmbeddedBroker, Store, StoreError
from coordinator.broker import BrokerStartError, free_port
from edge_sdk import JournalError, read_status

ROOT: Final = Path(__file__).parents[1]
COORDINATOR: Final = "coordinator"
BROKER: Final = "broker"
# How often each is struck, in relation to the others: devices together as often as the gateway.
_GAP_S: Final = (0.1, 1.4)
_DOWN_S: Final = (0.0, 0.6)
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 120.0
_NOBODY_OPENS: Final = 100_000

_TASK: Final = """
import time
import numpy as np
from edge_sdk import NumpyTrainer

class Slow(NumpyTrainer):
    # Takes a while, so that there is something to strike at.
    def train(self, model, plan, *, stop):
        over_s = time.monotonic() + (plan.seed * 7_919 % 1_000) / 1_000 * {slow_s}
        while time.monotonic() < over_s and not stop():
            time.sleep(0.01)
        return super().train(model, plan, stop=stop)

class Task:
    def model(self):
        return NumpyTrainer.manifest(16, {hidden}, 4, seed=3)

    def trainer(self, device):
        chance = np.random.default_rng(device.seed)
        x = chance.standard_normal((120, 16)).astype("f4")
        y = x[:, :4].argmax(axis=1)
        return Slow(x[:100], y[:100], holdout=(x[100:], y[100:]), seed=device.seed)

task = Task()
"""

_FEDERATION: Final = """
[federation]
name = "kills"
task = "their_task:task"
[rounds]
count = {count}
cohort = {cohort}
quorum = 1.0
deadline_s = 36000.0
every_s = {every_s}
"""


class KillTestError(Exception):
    """A promise was broken, or the federation did not come to its end."""


class Federation:
    """Processes of one federation; whatever happens, they end with `close`.

    Args:
        directory: its own; a template of it may have been copied there.
        port: of the broker.
        devices: how many.
    """

    def __init__(self, directory: Path, port: int, devices: int) -> None:
        self.directory = directory
        self.devices = devices
        self.state = directory / COORDINATOR
        self.broker = EmbeddedBroker(kind="mosquitto", port=port, state_dir=directory / BROKER)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    # -- set up ------------------------------------------------------------------------------

    def write_file(self, *, rounds: int, cohort: int, every_s: float) -> None:
        """The federation file."""
        text = _FEDERATION.format(count=rounds, cohort=cohort, every_s=every_s)
        (self.directory / "federation.toml").write_text(text, encoding="utf-8")

    def set_up(self, hidden: int, slow_s: float) -> None:
        """Keys, tokens, and every device enrolled; no round has been held."""
        (self.directory / "their_task.py").write_text(
            textwrap.dedent(_TASK.format(hidden=hidden, slow_s=slow_s)), encoding="utf-8"
        )
        self.write_file(rounds=1, cohort=_NOBODY_OPENS, every_s=0.0)
        self.broker.start()
        self._run("coordinator", "init", self.state, "--broker", self.broker.url)
        self._run("enroll", self.state, "-n", str(self.devices), "-o", self.directory / "tokens")
        self.start_all()
        until(lambda: len(self._store(Store.devices) or ()) == self.devices, "enrolment")
        self.close()

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, "-m", "potluck", *map(str, arguments)],
            cwd=self.directory,
            env=_environment(),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
        )

    # -- life and death ----------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that can be killed."""
        return (COORDINATOR, *(f"device-{number}" for number in range(self.devices)), BROKER)

    def start_all(self) -> None:
        """Everything, the broker first."""
        if not self.broker.running:
            self.broker.start()
        for name in self.names[:-1]:
            self.start(name)

    def start(self, name: str) -> None:
        """Start what is not running."""
        if name == BROKER:
            deadline_s = time.monotonic() + _PATIENCE_S
            while not self.broker.running:
                try:
                    self.broker.start()
                except BrokerStartError:
                    if time.monotonic() > deadline_s:
                        raise
            return
        if name == COORDINATOR:
            command = ["coordinator", "run", "federation.toml", "--state-dir", str(self.state)]
            command += ["--stay", "--broker", self.broker.url, "--json"]
        else:
            number = name.removeprefix("device-")
            command = ["device", "run", "--task", "their_task:task", "--state-dir", name]
            command += ["--index", number, "--seed", number, "--json", "--min-battery", "0"]
            if not (self.directory / name).exists():
                command += ["--token-file", "tokens"]
        with (self.directory / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", "potluck", *command],
                cwd=self.directory,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        if name == BROKER:
            self.broker.kill()
            return
        process = self._running.pop(name)
        if process.poll() is not None:
            raise KillTestError(f"{name} ended by itself ({process.returncode}): {self.said(name)}")
        process.kill()
        process.wait()

    def look_after(self) -> None:
        """Nobody may end unless told to."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise KillTestError(
                    f"{name} ended by itself ({process.returncode}): {self.said(name)}"
                )

    def close(self) -> None:
        """SIGTERM for all, SIGKILL for whoever does not listen."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        self.broker.stop()

    def said(self, name: str) -> str:
        """The end of what a process has said."""
        return (self.directory / f"{name}.log").read_text("utf-8", "replace")[-2_000:]

    # -- looking -----------------------------------------------------------------------------

    def _store(self, look: Callable[[Store], Any]) -> Any:
        """Read the coordinator's store, running or dead; None when it is not to be read now."""
        with contextlib.suppress(StoreError):
            store = Store(self.state / STORE_FILE, read_only=True)
            try:
                return look(store)
            finally:
                store.close()
        return None

    def round(self) -> int:
        """The last round."""
        return self._store(Store.last_round) or 0

    def is_over(self, rounds: int) -> bool:
        """Everything is decided, said, heard and released."""
        closed = self._store(lambda store: [row["status"] for row in store.rounds()]) or []
        released = self._store(lambda store: store.released("stable"))
        if closed.count("committed") + closed.count("abandoned") < rounds or released is None:
            return False
        statuses = [read_status(self.directory / name) for name in self.names[1:-1]]
        return all(
            s.sealed_round is None and s.model_version == released["version"] for s in statuses
        )


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def until(condition: Callable[[], object], what: str, patience_s: float = _PATIENCE_S) -> None:
    """Wait.

    Raises:
        KillTestError: it did not come true in time.
    """
    give_up_at_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > give_up_at_s:
            raise KillTestError(f"{what}: not within {patience_s:.0f} s")
        time.sleep(_POLL_S)


# -- what came of it -------------------------------------------------------------------------------


class Outcome(msgspec.Struct):
    """One federation's end."""

    model_digest: str
    updates: int
    counted: int
    open: int
    rounds: dict[str, int]
    wall_s: float


def look_at(federation: Federation, wall_s: float) -> Outcome:
    """Read the ledger and compare it with what each device says of itself.

    Raises:
        KillTestError: they differ, or an update waits for its settlement.
    """
    store = Store(federation.state / STORE_FILE, read_only=True)
    try:
        rows, rounds = store.updates(), store.rounds()
        model = store.model(store.latest_version() or 0)
    finally:
        store.close()
    for row in rows:
        if row.receipted_at is not None and (row.settled_at is None or row.counted is None):
            raise KillTestError(f"{row.update_id.hex()} is receipted and not settled")
    for name in federation.names[1:-1]:
        status = read_status(federation.directory / name)
        ours = {
            (r.update_id, r.round, bool(r.counted), r.reason)
            for r in rows
            if r.device == status.device
        }
        said = [(f.update_id, f.round, f.counted, f.reason) for f in status.history]
        if len(set(said)) != len(said) or set(said) != ours:
            raise KillTestError(
                f"{name} says {len(said)} settlements, the ledger {len(ours)}: {set(said) ^ ours}"
            )
        if status.counted != sum(counted for _, _, counted, _ in ours):
            raise KillTestError(f"{name} counts otherwise than the ledger")
    return Outcome(
        model_digest="" if model is None else bytes(model["digest"]).hex(),
        updates=len(rows),
        counted=sum(bool(row.counted) for row in rows),
        open=sum(row.settled_at is None for row in rows),
        rounds=dict(Counter(row["status"] for row in rounds)),
        wall_s=round(wall_s, 1),
    )


class Result(msgspec.Struct):
    """Both runs, and what was killed how often."""

    seed: int
    kills: dict[str, int]
    killed_in_round: dict[int, int]
    undisturbed: Outcome
    disturbed: Outcome


def play(
    directory: Path,
    *,
    seed: int,
    rounds: int,
    kills: int,
    devices: int,
    every_s: float = 0.5,
    slow_s: float = 1.5,
    hidden: int = 32,
    say: Callable[[str], None] = lambda _line: None,
) -> Result:
    """Run both federations in `directory` and compare them.

    Args:
        directory: for everything; new.
        seed: of what is killed, and when.
        rounds: how many.
        kills: how many, in all.
        devices: how many; each is in every round.
        every_s: seconds from one round to the next while there are kills.
        slow_s: seconds that a training takes at most.
        hidden: hidden units of the model.
        say: told of progress.

    Raises:
        KillTestError: a promise was broken.
    """
    port = free_port()
    template = directory / "template"
    template.mkdir(parents=True)
    federation = Federation(template, port, devices)
    try:
        federation.set_up(hidden, slow_s)
    finally:
        federation.close()
    say("enrolled")
    outcomes, struck, in_round = [], Counter[str](), Counter[int]()
    for name, pause_s in (("undisturbed", 0.0), ("disturbed", every_s)):
        shutil.copytree(template, directory / name)
        federation = Federation(directory / name, port, devices)
        federation.write_file(rounds=rounds, cohort=devices, every_s=pause_s)
        started_s = time.monotonic()
        try:
            federation.start_all()
            if name == "disturbed":
                struck, in_round = _strike(federation, seed, kills, rounds, say)
            until(lambda f=federation: _goes_on(f, rounds), f"the end of the {name} run", 600.0)  # type: ignore[misc] # bound now
        finally:
            federation.close()
        outcomes.append(look_at(federation, time.monotonic() - started_s))
        say(f"{name}: {outcomes[-1]}")
    undisturbed, disturbed = outcomes
    result = Result(seed, dict(struck), dict(in_round), undisturbed, disturbed)
    everything = devices * rounds
    if disturbed.rounds != {"committed": rounds} or disturbed.counted != everything:
        raise KillTestError(f"not every update counted: {disturbed}")
    if undisturbed.model_digest != disturbed.model_digest:
        raise KillTestError(f"the models differ: {result}")
    return result


def _goes_on(federation: Federation, rounds: int) -> bool:
    federation.look_after()
    with contextlib.suppress(JournalError):
        return federation.is_over(rounds)
    return False


def _strike(
    federation: Federation, seed: int, kills: int, rounds: int, say: Callable[[str], None]
) -> tuple[Counter[str], Counter[int]]:
    """Kill and start again."""
    chance = random.Random(seed)  # noqa: S311 - a test's dice
    struck, in_round = Counter[str](), Counter[int]()
    weights = [federation.devices, *(1 for _ in range(federation.devices)), 1]
    for number in range(kills):
        # As many in each round, at any time in it.
        until(
            lambda due=number * rounds // kills: federation.round() >= due,  # type: ignore[misc] # bound now
            "the next round",
            600.0,
        )
        time.sleep(chance.uniform(*_GAP_S))
        federation.look_after()
        (name,) = chance.choices(federation.names, weights)
        in_round[federation.round()] += 1
        struck[name] += 1
        federation.kill(name)
        time.sleep(chance.uniform(*_DOWN_S))
        federation.start(name)
        if (number + 1) % 10 == 0:
            say(f"{number + 1} kills, round {federation.round()} of {rounds}")
    return struck, in_round


def main() -> int:
    """Run it; print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is killed when (default: 1)")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--kills", type=int, default=100, help="default: 100")
    parser.add_argument("--devices", type=int, default=3, help="default: 3")
    parser.add_argument("--every", type=float, default=0.5, help="[rounds] every_s (default: 0.5)")
    parser.add_argument("--keep", type=Path, help="a new directory to work in, which stays")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="potluck-kill-"))
    try:
        result = play(
            directory,
            seed=arguments.seed,
            rounds=arguments.rounds,
            kills=arguments.kills,
            devices=arguments.devices,
            every_s=arguments.every,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KillTestError as error:
        print(f"kill_test: {error}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    if arguments.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(
            f"{sum(result.kills.values())} kills {dict(sorted(result.kills.items()))},"
            f" {result.disturbed.counted} updates counted in {result.disturbed.rounds},"
            f" digest {result.disturbed.model_digest[:16]} as undisturbed,"
            f" {result.disturbed.wall_s:.0f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
