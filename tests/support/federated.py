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
        cohort: how many take part in a round; 0 is all of them.
        rounds: how many.
        task: the task object.
        codec: both ways.
        packet_bytes_max: of the federation's file.
        device_broker: where devices find the broker, if not where the coordinator does.
        ca: a CA's file for devices, for `mqtts://`, in place of the federation's own.
    """

    def __init__(
        self,
        directory: Path,
        broker: str,
        *,
        devices: int = 2,
        cohort: int = 0,
        rounds: int = 2,
        task: Any = None,
        codec: str = "auto",
        packet_bytes_max: int = 131_072,
        device_broker: str | None = None,
        ca: Path | None = None,
    ) -> None:
        self.directory = directory
        self.reports: list[Report] = []
        self.devices: list[Device] = []
        self.said: dict[int, list[Report]] = {}
        self._task = task or ToyTask()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._count = devices
        self._broker, self._device_broker, self._ca = broker, device_broker or broker, ca
        self._config = FederationConfig(
            federation=Federation(name="toy"),
            rounds=Rounds(count=rounds, cohort=cohort or devices, quorum=1.0, deadline_s=120.0),
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
            task=self._task,
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
            now_s=time.time(),
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

    def device(self, number: int, *, enrol_s: float = 30.0, **options: Any) -> Device:
        """A device in its own directory, enrolled; the same one again after a reboot."""
        said = self.said.setdefault(number, [])
        device = Device(
            self._task,
            self.directory / f"device-{number}",
            info=DeviceInfo(index=number, seed=number),
            on_report=said.append,
            **options,
        )
        device.enroll(self.directory / "tokens", timeout_s=enrol_s)
        self.devices.append(device)
        return device

    def start_all(self) -> None:
        """Every device is there."""
        for number in range(self._count):
            self.device(number).start()

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
