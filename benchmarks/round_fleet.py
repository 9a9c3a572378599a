"""Emulated devices in a process of their own, for the coordinator to have its own to itself.

`python -m benchmarks.round_fleet FEDERATION.toml STATE_DIR BROKER COUNT` connects devices that
`admit` has enrolled, says `up` when every link is there, and goes on until it is ended.
"""

import sys
import time
from pathlib import Path
from typing import Final

from coordinator import STORE_FILE, FederationConfig, Store, load_config, load_identity
from edge_sdk import load_task
from edge_sdk.journal import Enrolment
from edge_sdk.models import MemoryShelf
from fleet.devices import device_key, make_devices
from fleet.loop import FleetLoop
from fleet.run import live_link
from wire import BrokerAddress, Ed25519, Tensors, device_id

SEED: Final = 5
UP: Final = "up"


class CommonShelf(MemoryShelf):
    """A version that one device has rebuilt serves all of them: what differs is not measured here.

    A device checks the digest before it saves, so what has the same number has the same bits.
    """

    _common: dict[int, Tensors] = {}  # noqa: RUF012 - all devices' on purpose

    def save(self, version: int, tensors: Tensors) -> None:
        """Keep a version, or the one that is kept already."""
        while len(self._common) > 2:  # noqa: PLR2004 - the newest, and the one before
            del self._common[min(self._common)]
        super().save(version, self._common.setdefault(version, tensors))


def _names(count: int) -> list[str]:
    crypto = Ed25519()
    return [device_id(crypto.signer(device_key(SEED, n)).public_key) for n in range(count)]


def admit(state_dir: Path, count: int) -> None:
    """Enrol devices without the ceremony of tokens, while no coordinator runs."""
    crypto, now_s = Ed25519(), time.time()
    store = Store(state_dir / STORE_FILE)
    try:
        with store.transaction():
            for number, name in enumerate(_names(count)):
                key = crypto.signer(device_key(SEED, number)).public_key
                store.admit(name, key, "unknown", now_s)
    finally:
        store.close()


def run(config: FederationConfig, task_dir: Path, state_dir: Path, broker: str, count: int) -> None:
    """Connect the devices, and go on until whoever started this ends it."""
    crypto = Ed25519()
    key = load_identity(state_dir, crypto).signer.public_key
    task = load_task(config.federation.task, beside=task_dir)
    loop = FleetLoop()
    devices = make_devices(
        task=task,
        manifest=task.model(),
        config=config,
        seed=SEED,
        crypto=crypto,
        enrolments=[
            Enrolment(name, config.federation.name, key, broker, "", b"") for name in _names(count)
        ],
        faults={},
        make_link=live_link(BrokerAddress.parse(broker), config.broker.packet_bytes_max),
        start_work=loop.start_work,
        make_shelf=lambda _number: CommonShelf(),
    )
    loop.start(devices)
    said = False
    while loop.error is None:
        time.sleep(0.05)
        if not said and all(device.link.up for device in devices):
            said = True
            print(UP, flush=True)
    raise loop.error


if __name__ == "__main__":
    federation = Path(sys.argv[1])
    run(
        load_config(federation),
        federation.parent,
        Path(sys.argv[2]),
        sys.argv[3],
        int(sys.argv[4]),
    )
