"""A coordinator on a thread of its own, over a real broker, and a folder for devices."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordinator import (
    STORE_FILE,
    EmbeddedBroker,
    Gateway,
    Store,
    UpdateRow,
    init_state,
    load_identity,
    make_tokens,
)
from coordinator.config import Broker, Downlink, Federation, FederationConfig, Rounds, Uplink
from coordinator.identity import write_tokens
from edge_sdk import Device, DeviceInfo
from fleet.toy import ToyTask
from wire import Ed25519, Report, SystemSecrets


class TunedBroker(EmbeddedBroker):
    """The embedded Mosquitto with other settings.

    Args:
        settings: name to value, in place of ours or beside them; "" leaves a line out.
        more: lines that follow.
    """

    def __init__(self, settings: dict[str, str], more: Sequence[str] = (), **options: Any) -> None:
        super().__init__(kind="mosquitto", **options)
        self.settings = settings
        self.more = more

    def _config(self, port: int) -> str:
        lines = [
            line
            for line in super()._config(port).splitlines()
            if line.split()[0] not in self.settings
        ]
        more = [f"{name} {value}" for name, value in self.settings.items() if value]
        return "\n".join((*lines, *more, *self.more)) + "\n"


class Federated:
    """A federation of the toy task.

    Args:
        directory: for everybody's state.
        broker: the coordinator's URL.
        devices: how many tokens there are.
        cohort: how many take part in a round.
        rounds: how many.
        deadline_s: of each.
        task: the task object.
        codec: both ways.
        packet_bytes_max: of the federation's file.
        device_broker: where devices find the broker, if not where the coordinator does.
        ca: a CA's file for devices, for `mqtts://`, in place of the federation's own.
        made_before_s: how old the tokens are.
    """

    def __init__(
        self,
        directory: Path,
        broker: str,
        *,
        devices: int = 4,
        cohort: int = 1,
        rounds: int = 2,
        deadline_s: float = 30.0,
        task: Any = None,
        codec: str = "auto",
        packet_bytes_max: int = 131_072,
        device_broker: str | None = None,
        ca: Path | None = None,
        made_before_s: float = 0.0,
    ) -> None:
        self.directory = directory
        self.task = task or ToyTask()
        self.reports: list[Report] = []
        self.devices: list[Device] = []
        self.said: dict[int, list[Report]] = {}
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._count = devices
        self._broker, self._device_broker, self._ca = broker, device_broker or broker, ca
        self._made_before_s = made_before_s
        self._config = FederationConfig(
            federation=Federation(name="toy"),
            rounds=Rounds(count=rounds, cohort=cohort, quorum=1.0, deadline_s=deadline_s),
            uplink=Uplink(codec=codec),
            downlink=Downlink(codec=codec),
            broker=Broker(packet_bytes_max=packet_bytes_max),
        )
        init_state(directory / "coordinator", SystemSecrets())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(20.0)

    def _run(self) -> None:
        gateway = Gateway(
            config=self._config,
            task=self.task,
            state_dir=self.directory / "coordinator",
            crypto=Ed25519(),
            observe=self.reports.append,
            broker=self._broker,
        )
        tokens = make_tokens(
            gateway.store,
            load_identity(self.directory / "coordinator", Ed25519()),
            count=self._count,
            broker=self._device_broker,
            secrets=SystemSecrets(),
            now_s=time.time() - self._made_before_s,
        )
        if self._ca is not None:
            ca = self._ca.read_text()
            tokens = [msgspec.structs.replace(token, ca=ca) for token in tokens]
        write_tokens(self.directory / "tokens", tokens)
        self._ready.set()
        try:
            gateway.run(self._stop.is_set, stay=True)
        finally:
            gateway.stop()

    @property
    def tokens(self) -> Path:
        """One-time tokens."""
        return self.directory / "tokens"

    def device(self, number: int, task: Any = None, **options: Any) -> Device:
        """A device in its own directory; the same one again after a reboot."""
        return Device(
            task or self.task,
            self.directory / f"device-{number}",
            info=DeviceInfo(index=number, seed=number),
            **options,
        )

    def enrolled(self, number: int, *, enrol_s: float = 30.0, **options: Any) -> Device:
        """One that is enrolled, that is stopped with the federation, and whose words are kept."""
        said = self.said.setdefault(number, [])
        device = self.device(number, on_report=said.append, **options)
        device.enroll(self.tokens, timeout_s=enrol_s)
        self.devices.append(device)
        return device

    def start_all(self) -> None:
        """There is a device for every token."""
        for number in range(self._count):
            self.enrolled(number).start()

    def rows(self) -> list[UpdateRow]:
        """The ledger so far."""
        store = Store(self.directory / "coordinator" / STORE_FILE, read_only=True)
        try:
            return store.updates()
        finally:
            store.close()

    def close(self) -> None:
        """Stop everything."""
        for device in self.devices:
            device.stop()
        self._stop.set()
        self._thread.join()
