"""A gateway is lost and comes back from a backup: it is in the past, and its devices are not."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import Federation, FederationConfig, Fleet, Rounds
from coordinator.epochs import ROUNDS_PER_EPOCH, Numbering, begin_epoch
from coordinator.store import Store, StoreError
from fleet.checkers import FINAL_CHECKERS, Evidence
from fleet.crypto import StubCrypto
from fleet.nemesis import START
from fleet.record import FleetRun
from fleet.toy import ToyTask
from fleet.virtual import VirtualFleet
from fleet.world import World

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

ROUNDS = 6


def make_fleet(seed: int) -> VirtualFleet:
    run = FleetRun(
        config=FederationConfig(
            federation=Federation(name="world", task="fleet.toy:task"),
            rounds=Rounds(count=ROUNDS, cohort=4, quorum=0.5, deadline_s=90.0, over_select=1.3),
            fleet=Fleet(partition="iid", start=START),
        ),
        task=ToyTask(flops_per_example=2.5e8),
        count=8,
        seed=seed,
        crypto=StubCrypto(),
    )
    return VirtualFleet(run, lives_days=False)


def copy_of(database: sqlite3.Connection) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None)
    database.backup(copy)
    copy.row_factory = sqlite3.Row
    return copy


def lose_and_restore(
    fleet: VirtualFleet, backup: sqlite3.Connection, *, epoch: int | None = None
) -> int:
    """The gateway burns down; another takes its place, with the backup. Returns the floor."""
    gateway = fleet.gateway
    gateway.crash(down_s=40.0)
    gateway.disk.database = backup
    store = gateway.disk.open()
    return begin_epoch(store, gateway.clock(), epoch).floor


def release(fleet: VirtualFleet) -> None:
    coordinator = fleet.coordinator
    coordinator.releases.run_over(coordinator.models.version, fleet.gateway.clock())


def run_to_the_end(fleet: VirtualFleet) -> None:
    world = fleet.world
    world.run(world.now_s + 60.0)  # by then the gateway is another
    # Whoever thought that all was over comes back within the hour.
    world.run(world.now_s + 20_000.0, over=lambda: fleet.coordinator.finished)
    world.run(world.now_s + 2_000.0)


def look(fleet: VirtualFleet, floor: int, last_before: int) -> None:
    """Every promise that can still be kept is kept."""
    for checker in FINAL_CHECKERS:
        checker(Evidence(fleet))
    database, store = fleet.gateway.disk.database, fleet.coordinator.store
    assert Numbering.read(store).rounds_done(store.last_round()) == ROUNDS
    rows = store.updates()
    assert len({row.update_id for row in rows}) == len(rows)
    assert not [r for r in rows if last_before < r.round <= floor], "a number of the lost future"
    ledger = {row.update_id: row for row in rows}
    for host in fleet.hosts:
        history = host.disk.history
        assert len({f.update_id for f in history}) == len(history), "settled twice on a device"
        for forgotten in history:
            if forgotten.round > floor:
                row = ledger[forgotten.update_id]
                assert (row.counted, row.reason) == (forgotten.counted, forgotten.reason)
            elif forgotten.round > last_before:
                assert forgotten.update_id not in ledger
    served = {r["version"] for r in database.execute("SELECT version FROM models")}
    assert not [v for v in served if last_before < v <= floor]


def a_life_with_a_loss(seed: int, before_s: float, lost_s: float) -> VirtualFleet:
    fleet = make_fleet(seed)
    fleet.start()
    fleet.world.run(before_s)
    backup = copy_of(fleet.gateway.disk.database)
    last_before = fleet.coordinator.store.last_round()
    fleet.world.run(before_s + lost_s)
    release(fleet)  # devices run a version that the backup does not know
    fleet.world.run(before_s + lost_s + 20.0)
    floor = lose_and_restore(fleet, backup)
    run_to_the_end(fleet)
    look(fleet, floor, last_before)
    return fleet


@pytest.mark.parametrize("seed", range(4))
def test_a_restored_coordinator_goes_on_and_everybody_ends_with_its_last_release(
    seed: int,
) -> None:
    chance = World(seed + 700)
    fleet = a_life_with_a_loss(seed, chance.uniform(3.0, 40.0), chance.uniform(1.0, 60.0))
    fleet.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(4, 100))
def test_whenever_the_backup_was_made_and_however_much_was_lost(seed: int) -> None:
    chance = World(seed + 700)
    a_life_with_a_loss(seed, chance.uniform(0.1, 60.0), chance.uniform(0.0, 200.0)).close()


def test_an_update_sealed_for_a_lost_round_is_settled_and_its_device_is_free() -> None:
    fleet = make_fleet(3)
    fleet.start()
    world = fleet.world
    world.run(5.0)
    backup = copy_of(fleet.gateway.disk.database)
    last_before = fleet.coordinator.store.last_round()
    world.run(
        2_000.0,
        over=lambda: any(
            (s := host.device.driver.session).sealed is not None and s.sealed.round > last_before
            for host in fleet.hosts
        ),
    )
    waiting = [
        (host, sealed.update_id)
        for host in fleet.hosts
        if (sealed := host.device.driver.session.sealed) is not None and sealed.round > last_before
    ]
    assert waiting
    floor = lose_and_restore(fleet, backup)
    run_to_the_end(fleet)
    for host, update_id in waiting:
        (last,) = [f for f in host.disk.history if f.update_id == update_id]
        assert (last.counted, last.reason) == (False, "stale_round")
    look(fleet, floor, last_before)
    fleet.close()


def test_the_same_backup_restored_twice_begins_another_epoch_and_says_what_it_hears() -> None:
    fleet = make_fleet(5)
    fleet.start()
    fleet.world.run(20.0)
    backup = copy_of(fleet.gateway.disk.database)
    last_before = fleet.coordinator.store.last_round()
    first = lose_and_restore(fleet, copy_of(backup), epoch=7)
    fleet.world.run(20_000.0, over=lambda: fleet.coordinator.store.last_round() >= first + 2)
    # Once more from the same file, within the hour: the same numbers would mean two things.
    same = lose_and_restore(fleet, copy_of(backup), epoch=7)
    assert same == first
    fleet.world.run(fleet.world.now_s + 100.0)
    fleet.coordinator.stop()
    assert "unknown_version" in {row["reason"] for row in fleet.coordinator.store.incidents()}
    # What the message says to do.
    floor = lose_and_restore(fleet, copy_of(backup), epoch=8)
    assert floor == first + ROUNDS_PER_EPOCH
    run_to_the_end(fleet)
    look(fleet, floor, last_before)
    fleet.close()


def test_without_the_leap_the_federation_would_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail: a plain copy of an old state directory strands its devices."""

    def no_leap(_store: Any, _now_s: float, _epoch: int | None = None) -> Numbering:
        return Numbering()

    monkeypatch.setattr("tests.fleet.test_restore.begin_epoch", no_leap)
    with pytest.raises((AssertionError, KeyError)):
        a_life_with_a_loss(0, 10.0, 60.0)


def test_an_epoch_is_later_than_all_before_and_its_numbers_fit_the_wire(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite3")
    first = begin_epoch(store, 1_767_225_600.0 + 3_600.0 * 5_000)
    assert (first.epoch, first.rounds_done(store.last_round())) == (5_000, 0)
    # A clock that went back, or that is young: still a later one.
    assert begin_epoch(store, 0.0).epoch == 5_001
    for epoch in (5_001, 0, -1, 2**53):
        with pytest.raises(StoreError, match="5002"):
            begin_epoch(store, 0.0, epoch)
    assert begin_epoch(store, 1e30).next_round(0) + ROUNDS_PER_EPOCH <= 2**53
    store.close()
