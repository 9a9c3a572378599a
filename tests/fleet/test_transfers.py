"""In a world: devices that reboot in the middle of a download go on from there."""

import pytest

from coordinator.config import (
    Broker,
    Downlink,
    Federation,
    FederationConfig,
    Fleet,
    Rounds,
    Uplink,
)
from edge_sdk import DeviceDriver
from edge_sdk.download import digest_of
from fleet.crypto import StubCrypto
from fleet.nemesis import try_seed
from fleet.record import FleetRun
from fleet.toy import ToyTask
from fleet.virtual import VirtualFleet
from wire import limits

DEVICES = 3
HIDDEN = 3_000  # 66 KB as float16: 22 chunks
CHUNKS = 22
BYTES_PER_S = 10_000.0


def make(seed: int = 1, rounds: int = 2) -> VirtualFleet:
    config = FederationConfig(
        federation=Federation(name="world", task="fleet.toy:task"),
        rounds=Rounds(count=rounds, cohort=2, quorum=1.0, over_select=1.0, deadline_s=600.0),
        uplink=Uplink(codec="f16"),
        downlink=Downlink(codec="f16"),
        broker=Broker(packet_bytes_max=limits.PACKET_BYTES_MIN),
        fleet=Fleet(partition="iid", mix="phones-and-gateways"),
    )
    run = FleetRun(
        config=config,
        task=ToyTask(flops_per_example=2.5e8, hidden=HIDDEN),
        count=DEVICES,
        seed=seed,
        crypto=StubCrypto(),
    )
    fleet = VirtualFleet(run, lives_days=False)
    for host in fleet.hosts:
        host.device.link.slowed = host.profile.down_mbps * 125_000.0 / BYTES_PER_S
    return fleet


def until_half_is_here(fleet: VirtualFleet) -> int:
    """The number of a device that has half of a download on its disk."""
    found: list[int] = []

    def looks() -> bool:
        found[:] = [
            number
            for number, host in enumerate(fleet.hosts)
            if any(len(part.chunks) >= CHUNKS // 2 for part in host.parts.parts.values())
        ]
        return bool(found)

    fleet.world.run(3_600.0, over=looks)
    assert found, "nobody downloads"
    return found[0]


@pytest.mark.parametrize("silent", [False, True], ids=["kill -9", "power cut"])
def test_a_device_that_reboots_in_mid_download_fetches_the_rest(silent: bool) -> None:  # noqa: FBT001 - a parameter of the test
    fleet = make()
    fleet.start()
    host = fleet.hosts[until_half_is_here(fleet)]
    (version,) = host.parts.parts
    before_bytes = host.device.link.traffic.received_bytes
    host.crash(down_s=5.0, silent=silent)
    kept = len(host.parts.parts[version].chunks)
    assert 0 < kept < CHUNKS
    assert (kept < CHUNKS // 2) is silent
    fleet.world.run(
        fleet.world.now_s + 600.0,
        over=lambda: host.running and version not in host.parts.parts,
    )
    assert host.parts.resumed >= kept
    fetched_bytes = host.device.link.traffic.received_bytes - before_bytes
    assert fetched_bytes < (CHUNKS - kept + 3) * limits.PACKET_BYTES_MIN
    driver, store = host.device.driver, fleet.coordinator.store
    assert isinstance(driver, DeviceDriver)
    held = driver._load(version)
    row = store.model(version)
    assert held is not None
    assert row is not None
    assert digest_of(driver.schema, held) == bytes(row["digest"])
    fleet.world.run(fleet.world.now_s + 3_600.0, over=lambda: fleet.coordinator.finished)
    fleet.world.run(fleet.world.now_s + 600.0)
    assert [device.driver.released.version for device in fleet.devices] == [2, 2, 2]
    assert not any(host.parts.parts for host in fleet.hosts)
    fleet.close()


def test_a_full_disk_in_mid_download_is_a_reason_and_the_device_goes_on() -> None:
    fleet = make()
    fleet.start()
    host = fleet.hosts[until_half_is_here(fleet)]
    driver = host.device.driver
    assert isinstance(driver, DeviceDriver)
    host.fill_disk()
    fleet.world.run(fleet.world.now_s + 60.0, over=lambda: driver.incidents["disk_failed"] > 0)
    assert driver.incidents["disk_failed"] == 1
    assert not host.parts.parts
    assert host.running
    host.free_disk()
    fleet.world.run(fleet.world.now_s + 3_600.0, over=lambda: fleet.coordinator.finished)
    fleet.world.run(fleet.world.now_s + 600.0)
    latest = fleet.coordinator.models.version
    assert latest >= 1
    assert [device.driver.released.version for device in fleet.devices] == [latest] * DEVICES
    fleet.close()


@pytest.mark.slow
def test_slow_links_and_many_chunks_are_repeated_by_their_seed() -> None:
    first, again = (try_seed(2, "transfers", devices=5, rounds=2) for _ in range(2))
    assert first.violation is None
    assert first.trace_digest == again.trace_digest
