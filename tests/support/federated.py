"""A real coordinator on a thread of this process, for tests of devices over a real broker."""

import threading
import time
from pathlib import Path
from typing import Any

from coordinator import EmbeddedBroker, Gateway, init_state, load_identity, make_tokens
from coordinator.config import Federation, FederationConfig, Rounds
from coordinator.identity import write_tokens
from edge_sdk import Device, DeviceInfo
from fleet.toy import ToyTask
from wire import Ed25519, Report, SystemSecrets


class Federated:
    """A coordinator on a thread of its own, and a folder for devices."""

    def __init__(
        self,
        directory: Path,
        broker: EmbeddedBroker,
        *,
        cohort: int = 1,
        deadline_s: float = 30.0,
        made_before_s: float = 0.0,
        rounds: int = 2,
    ) -> None:
        self.directory = directory
        self.broker = broker
        self.reports: list[Report] = []
        self._stop = threading.Event()
        self._made_before_s = made_before_s
        self._config = FederationConfig(
            federation=Federation(name="toy"),
            rounds=Rounds(count=rounds, cohort=cohort, quorum=1.0, deadline_s=deadline_s),
        )
        init_state(directory / "coordinator", SystemSecrets())
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(10.0)

    def _run(self) -> None:
        gateway = Gateway(
            config=self._config,
            task=ToyTask(),
            state_dir=self.directory / "coordinator",
            crypto=Ed25519(),
            observe=self.reports.append,
            broker=self.broker.url,
        )
        tokens = make_tokens(
            gateway.store,
            load_identity(self.directory / "coordinator", Ed25519()),
            count=4,
            broker=self.broker.url,
            secrets=SystemSecrets(),
            now_s=time.time() - self._made_before_s,
        )
        write_tokens(self.directory / "tokens", tokens)
        self._ready.set()
        try:
            gateway.run(self._stop.is_set, stay=True)
        finally:
            gateway.stop()

    def device(self, number: int, task: Any = None, **options: Any) -> Device:
        """A device in its own directory."""
        return Device(
            task or ToyTask(),
            self.directory / f"device-{number}",
            info=DeviceInfo(seed=number),
            **options,
        )

    @property
    def tokens(self) -> Path:
        """Four one-time tokens."""
        return self.directory / "tokens"

    def close(self) -> None:
        """Stop the coordinator."""
        self._stop.set()
        self._thread.join()
