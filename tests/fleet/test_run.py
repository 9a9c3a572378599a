"""A fleet over a real broker."""

from pathlib import Path
from typing import Literal

import pytest

from coordinator import STORE_FILE
from coordinator.config import Federation, FederationConfig, Fleet, Rounds
from coordinator.store import Store
from fleet import Fault, FleetError, FleetRun, StubCrypto, run_live
from fleet.toy import ToyTask
from insight import RoundRecord, RunRecord
from wire import Crypto, Ed25519

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def run(
    directory: Path | None,
    *,
    quorum: float = 1.0,
    count: int = 8,
    faults: tuple[Fault, ...] = (),
    crypto: Crypto | None = None,
    seed: int = 5,
    told: list[RoundRecord] | None = None,
    mode: Literal["sync", "async"] = "sync",
    evaluate_every: int = 0,
) -> RunRecord:
    config = FederationConfig(
        federation=Federation(name="toy"),
        rounds=Rounds(
            mode=mode,
            count=3,
            cohort=5,
            quorum=quorum,
            deadline_s=4.0,
            evaluate_every=evaluate_every,
            evaluate_cohort=5,
        ),
        fleet=Fleet(mix="phones-and-gateways"),
    )
    fleet_run = FleetRun(
        config=config,
        task=ToyTask(),
        count=count,
        seed=seed,
        crypto=crypto or StubCrypto(),
        faults=faults,
        state_dir=directory,
    )
    if told is not None:
        fleet_run.on_round = told.append
    return run_live(fleet_run)


def test_with_quorum_1_and_no_drop_outs_the_same_seed_repeats_its_digests() -> None:
    one, two, other = run(None), run(None), run(None, seed=6)
    assert one.totals.model_digest == two.totals.model_digest
    assert one.totals.accepted_ids_digest == two.totals.accepted_ids_digest
    assert other.totals.model_digest != one.totals.model_digest
    assert [r.status for r in one.rounds] == ["committed"] * 3


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_rounds_end_and_the_last_model_is_measured_in_either_mode(
    mode: Literal["sync", "async"],
) -> None:
    record = run(None, count=16, quorum=0.6, mode=mode, evaluate_every=3)
    assert [r.status for r in record.rounds] == ["committed"] * 3
    assert record.rounds[-1].metrics_source == "devices"
    assert all((r.staleness is None) == (mode == "sync") for r in record.rounds)


def test_an_asynchronous_fleet_survives_garbage_and_devices_that_vanish() -> None:
    faults = (
        Fault(kind="garbage", devices=2),
        Fault(kind="vanish", devices=4, round=2),
    )
    record = run(None, count=20, quorum=0.6, mode="async", faults=faults)
    assert [r.status for r in record.rounds] == ["committed"] * 3


def test_signatures_do_not_change_the_model() -> None:
    real, stub = run(None, crypto=Ed25519()), run(None, crypto=StubCrypto())
    assert (real.totals.crypto, stub.totals.crypto) == ("real", "stub")
    assert [r.accepted for r in real.rounds] == [r.accepted for r in stub.rounds]


def test_every_fault_is_counted_and_none_stops_the_rounds(tmp_path: Path) -> None:
    told: list[RoundRecord] = []
    record = run(
        tmp_path / "state",
        quorum=0.4,
        count=12,
        faults=(
            Fault(kind="vanish", devices=1),
            Fault(kind="garbage", devices=1),
            Fault(kind="flap", devices=1, for_s=0.3),
            Fault(kind="low_battery", devices=1, for_s=0.3),
        ),
        told=told,
    )
    assert [r.status for r in record.rounds] == ["committed"] * 3
    assert [r.number for r in told] == [1, 2, 3]
    incidents = [device.incidents for device in record.devices if device.incidents]
    for garbage in incidents:
        assert {"bad_signature", "truncated"} <= set(garbage)
    totals = record.totals
    counted = sum(r.accepted for r in record.rounds)
    assert totals.device_updates - totals.wasted_updates == counted
    assert totals.uplink_bytes_float32 == 4 * 68 * totals.device_updates
    assert sum(r.uplink_bytes for r in record.rounds) <= totals.uplink_bytes
    store = Store(tmp_path / "state" / STORE_FILE, read_only=True)
    assert sum(row.counted is True for row in store.updates()) == counted
    store.close()


def test_a_fleet_that_cannot_make_the_quorum_is_refused_at_once() -> None:
    with pytest.raises(FleetError, match="cannot make a quorum of 5"):
        run(None, count=4)
