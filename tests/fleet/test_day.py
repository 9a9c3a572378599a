"""The federation file of a day of thousands, with fewer of them and for an hour and a half."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from coordinator import load_config
from fleet import FleetRun, StubCrypto, run_virtual
from fleet.toy import ToyTask

FILE = Path(__file__).parents[2] / "benchmarks" / "federations" / "day-of-2000.toml"


@pytest.mark.slow
def test_a_round_opens_every_half_hour_and_devices_check_in_by_the_hour() -> None:
    config = load_config(FILE)
    assert (config.rounds.count, config.rounds.cohort) == (48, 100)
    config = replace(config, rounds=replace(config.rounds, count=4, cohort=20))
    run = FleetRun(config=config, task=ToyTask(), count=200, seed=1, crypto=StubCrypto())
    record = run_virtual(run)
    assert [r.status for r in record.rounds] == ["committed"] * 4
    packets = sum(device.uplink_bytes for device in record.devices) / len(record.devices)
    # Two or three check-ins of 250 bytes, and at most four updates of three times that.
    assert packets < 4_000
