"""A real broker and a real coordinator process, watched from outside.

What a round took is read off the coordinator's own reports as they come; what it cost, off the
operating system's books. Whatever happens, the processes end with the `with` block.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import psutil
from msgspec import Struct

from coordinator import STORE_FILE, EmbeddedBroker, Store, init_state
from wire import PotluckError, SystemSecrets

_ROOT: Final = Path(__file__).parents[1]
_LOOK_EVERY_S: Final = 0.02
_POLL_S: Final = 0.005
_END_S: Final = 10.0
_PROC: Final = Path("/proc")


class RoundBenchError(PotluckError):
    """A benchmark could not be run to its end; the text says what happened."""


class Mark(Struct, frozen=True):
    """What had been spent when a round was committed: CPU seconds since each process began."""

    at_s: float
    coordinator_s: float
    devices_s: float
    broker_s: float


class RoundSeen(Struct):
    """One round as the coordinator told it; times are monotonic seconds."""

    number: int
    opened_s: float
    committed_s: float = 0.0
    mark: Mark | None = None


def environment() -> dict[str, str]:
    """Potluck importable from any directory; one thread for each NumPy."""
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    return {**os.environ, **one, "PYTHONPATH": str(_ROOT)}


class GatewayProcess:
    """Mosquitto (or iotcore where there is none) and `potluck coordinator run` on it.

    Args:
        directory: where everything goes.
        toml: the federation file.
        devices: the device processes, asked at each commit what they have spent.
    """

    def __init__(
        self,
        directory: Path,
        toml: str,
        devices: Callable[[], Sequence[psutil.Process]] = lambda: (),
    ) -> None:
        self.state_dir = directory / "coordinator"
        self.federation = directory / "federation.toml"
        self.federation.write_text(toml, encoding="utf-8")
        self.broker = EmbeddedBroker(state_dir=directory / "broker")
        self.rounds: list[RoundSeen] = []
        self.said: list[tuple[float, str]] = []
        self.rss_peak_bytes = 0
        self._devices = devices
        self._log = directory / "coordinator.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = psutil.Process()
        init_state(self.state_dir, SystemSecrets())

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.broker.stop()

    def start(self) -> None:
        """Start the coordinator."""
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [
                *(sys.executable, "-m", "potluck", "coordinator", "run"),
                *(str(self.federation), "--state-dir", str(self.state_dir)),
                *("--broker", self.broker.url, "--json"),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
        )
        self._seen = psutil.Process(self._process.pid)
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        threading.Thread(target=self._look, args=(self._seen,), daemon=True).start()

    def kill(self) -> None:
        """SIGKILL: no moment to tidy up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the coordinator in good order, or by force if that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def ended(self) -> bool:
        """Whether the coordinator has ended, by itself or not."""
        return self._process is None or self._process.poll() is not None

    # -- other threads -----------------------------------------------------------------------

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            return
        for line in process.stdout:
            now_s = time.monotonic()
            with contextlib.suppress(msgspec.DecodeError):
                self._take(msgspec.json.decode(line, type=dict[str, object]), now_s)

    def _take(self, report: dict[str, object], now_s: float) -> None:
        what, detail = str(report.get("event")), str(report.get("detail", ""))
        if what == "round_opened":
            self.rounds.append(RoundSeen(_number(detail), now_s))
        elif what == "round_committed":
            for seen in self.rounds:
                if seen.number == _number(detail):
                    seen.mark, seen.committed_s = self.mark(now_s), now_s
        elif what != "enrolled":
            self.said.append((now_s, f"{what} {detail}"))

    def mark(self, now_s: float) -> Mark:
        """What has been spent until now."""
        devices = self._devices()
        return Mark(
            at_s=now_s,
            coordinator_s=cpu_s(self._seen),
            devices_s=sum(map(cpu_s, devices)),
            broker_s=cpu_s(psutil.Process(self.broker.pid)),
        )

    def _look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                self.rss_peak_bytes = max(self.rss_peak_bytes, _peak_bytes(process))
                time.sleep(_LOOK_EVERY_S)

    @property
    def rss_bytes(self) -> int:
        """The coordinator's resident memory now."""
        with contextlib.suppress(psutil.Error):
            return int(self._seen.memory_info().rss)
        return 0

    # -- waiting -----------------------------------------------------------------------------

    def wait_for_rounds(self, after: int, count: int, patience_s: float) -> list[RoundSeen]:
        """The first `count` rounds numbered above `after`, once they are committed.

        Raises:
            RoundBenchError: they were not within `patience_s`.
        """
        give_up_at_s = time.monotonic() + patience_s
        while time.monotonic() < give_up_at_s and not self.ended:
            done = [seen for seen in self.rounds if seen.number > after and seen.mark is not None]
            if len(done) >= count:
                return done[:count]
            time.sleep(_LOOK_EVERY_S)
        raise RoundBenchError(self.complaint(f"{count} rounds were not committed in time"))

    def complaint(self, what: str) -> str:
        """What went wrong, with the coordinator's last words."""
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        said = log.strip().splitlines() or [line for _at_s, line in self.said]
        return f"{what}: {(said or ['it said nothing'])[-1]}"

    def wait_for_round(self, number: int, patience_s: float) -> None:
        """Until a round is open.

        Raises:
            RoundBenchError: it was not within `patience_s`.
        """
        give_up_at_s = time.monotonic() + patience_s
        while not any(seen.number == number for seen in self.rounds):
            if time.monotonic() > give_up_at_s:
                raise RoundBenchError(self.complaint(f"round {number} did not open"))
            time.sleep(_POLL_S)

    def wait_for(self, what: str, since_s: float, patience_s: float) -> float:
        """When the coordinator first said `what` after `since_s`, monotonic seconds.

        Raises:
            RoundBenchError: it did not within `patience_s`.
        """
        give_up_at_s = time.monotonic() + patience_s
        while time.monotonic() < give_up_at_s:
            for at_s, line in tuple(self.said):
                if at_s >= since_s and line.startswith(what):
                    return at_s
            time.sleep(_POLL_S)
        raise RoundBenchError(self.complaint(f"it did not say {what}"))

    def traffic(self, rounds: Sequence[RoundSeen]) -> list[tuple[int, int]]:
        """(down, up) MQTT bytes that passed the coordinator's link in each round."""
        store = Store(self.state_dir / STORE_FILE, read_only=True)
        try:
            rows = [store.round(seen.number) for seen in rounds]
        finally:
            store.close()
        kept = [row["traffic"] for row in rows if row is not None]
        return [msgspec.msgpack.decode(data, type=tuple[int, int]) for data in kept if data]


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has spent; 0 when it is gone."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _number(detail: str) -> int:
    """The round of a report: "round 7: ..."."""
    word = detail.removeprefix("round ").partition(":")[0]
    return int(word) if word.isdecimal() else 0


def _peak_bytes(process: psutil.Process) -> int:
    """The kernel's own high-water mark where it keeps one, else what is resident now."""
    status = _PROC / str(process.pid) / "status"
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return int(process.memory_info().rss)
