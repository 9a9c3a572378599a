"""Flower beside potluck: the same rounds, installed by name and version in its own environment.

It is run through `start_server` and `start_client`, Flower's older interface: one gRPC stream a
client, whole float32 models both ways, everything in memory, nothing on disk. Its present way to
deploy (SuperLink, SuperNodes, a process for each message) is another figure, and not measured here.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from msgspec import Struct

from benchmarks.gateway_process import RoundBenchError, environment
from coordinator.broker import free_port

VERSION: Final = "1.41.0"
PARAMETERS: Final = 1_000_000
_ROUNDS: Final = 5
_SCRIPT: Final = Path(__file__).with_name("flower_round.py")
_START_S: Final = 3.0
_PATIENCE_S: Final = 600.0


class PeerRow(Struct, frozen=True):
    """Rounds of a peer with so many client processes; of times the median, the least, the most."""

    peer: str
    version: str
    devices: int
    parameters: int
    rounds: int
    round_s: tuple[float, float, float]


def _python() -> Path:
    """The environment's Python, made at the first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "potluck" / f"flwr-{VERSION}"
    python = directory / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    done = directory / "installed"
    if not done.exists():
        for command in (
            [sys.executable, "-m", "venv", str(directory)],
            [str(python), "-m", "pip", "install", "--quiet", f"flwr=={VERSION}"],
        ):
            made = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
            if made.returncode:
                last = (made.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise RoundBenchError(f"Flower cannot be installed here: {last}")
        done.touch()
    return python


def rows(*, quick: bool, tell: Callable[[str], None]) -> list[PeerRow]:
    """Rounds with a few clients, and with as many as `processes` has.

    Raises:
        RoundBenchError: Flower cannot be installed, or a run failed.
    """
    python = _python()
    made = []
    for count in (2,) if quick else (2, 8, 32):
        tell(f"flower: {count} clients")
        made.append(_measure(python, count))
    return made


def _measure(python: Path, count: int) -> PeerRow:
    port = str(free_port())
    clients: list[subprocess.Popen[bytes]] = []
    command = [str(python), str(_SCRIPT)]
    # One round more, for the first, in which gRPC and NumPy wake up.
    server = subprocess.Popen(  # noqa: S603 - our own words
        [*command, "serve", port, str(count), str(_ROUNDS + 1)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(_START_S)
        for number in range(count):
            client = subprocess.Popen(  # noqa: S603 - as above
                [*command, "client", port, str(number)],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            clients.append(client)
        said, _nothing = server.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise RoundBenchError(f"Flower with {count} clients did not end") from error
    finally:
        for process in (server, *clients):
            process.kill()
            process.wait()
    if server.returncode or not said.strip():
        raise RoundBenchError(f"Flower with {count} clients ended with {server.returncode}")
    times = msgspec.json.decode(said.splitlines()[-1], type=list[float])[1:]
    spread = (median(times), min(times), max(times))
    return PeerRow("flower", VERSION, count, PARAMETERS, len(times), spread)


def lines(made: Sequence[PeerRow]) -> list[str]:
    """The measurements as text."""
    return [
        f"{row.peer} {row.version}, {row.devices} clients, {row.parameters} parameters:"
        f" {row.round_s[0]:.2f} s a round ({row.round_s[1]:.2f}-{row.round_s[2]:.2f})"
        for row in made
    ]
