"""Batteries are integrated, work drains them, and an empty one is a power loss until charged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import Federation, FederationConfig, Fleet, Rounds
from device_profiles import charging_w, class_names, load_class, training_w_extra
from fleet import FleetRun, StubCrypto
from fleet.power import Power
from fleet.toy import ToyTask
from fleet.virtual import VirtualFleet

PHONE = load_class("phone-mid")
CAPACITY_J = 3_600.0 * PHONE.battery_wh


def test_training_costs_its_power_for_as_long_as_it_lasts() -> None:
    power = Power(PHONE)
    power.look(100.0, charging=False, owner_j=0.0, radio_j=0.0)
    power.train(now=True)
    power.look(110.0, charging=False, owner_j=0.0, radio_j=0.0)
    power.train(now=False)
    power.look(500.0, charging=False, owner_j=0.0, radio_j=0.0)
    assert power.training_j == pytest.approx(10.0 * training_w_extra(PHONE))
    assert power.fraction == pytest.approx(1.0 - power.training_j / CAPACITY_J)


def test_owner_and_radio_drain_and_the_charger_pays_for_all() -> None:
    power = Power(PHONE, 0.5)
    power.look(10.0, charging=False, owner_j=100.0, radio_j=20.0)
    assert power.fraction == pytest.approx(0.5 - 120.0 / CAPACITY_J)
    before = power.fraction
    power.look(20.0, charging=True, owner_j=100.0, radio_j=40.0)
    assert power.fraction == pytest.approx(before + 10.0 * charging_w(PHONE) / CAPACITY_J)
    power.look(1e6, charging=True, owner_j=0.0, radio_j=40.0)
    assert power.fraction == 1.0


def test_it_is_known_when_a_battery_will_be_empty() -> None:
    power = Power(PHONE, 0.01)
    left_s = power.seconds_left(PHONE.idle_w) or 0.0
    assert left_s == pytest.approx(0.01 * CAPACITY_J / PHONE.idle_w)
    power.look(left_s, charging=False, owner_j=left_s * PHONE.idle_w, radio_j=0.0)
    assert power.empty


def test_mains_is_full_and_never_empty() -> None:
    power = Power(load_class("pi-4"))
    power.look(1e6, charging=False, owner_j=1e9, radio_j=1e9)
    assert power.fraction == 1.0
    assert not power.empty
    assert power.seconds_left(5.0) is None


@given(
    st.sampled_from(class_names()),
    st.lists(st.tuples(st.floats(0.0, 1e4), st.booleans(), st.floats(0.0, 1e4), st.booleans())),
)
def test_a_battery_stays_between_empty_and_full(
    name: str, looks: list[tuple[float, bool, float, bool]]
) -> None:
    power, now_s, radio_j, cost_j = Power(load_class(name), 0.5), 0.0, 0.0, 0.0
    for passed_s, charging, owner_j, training in looks:
        now_s, radio_j = now_s + passed_s, radio_j + 1.0
        power.look(now_s, charging=charging, owner_j=owner_j, radio_j=radio_j)
        power.train(now=training)
        assert 0.0 <= power.fraction <= 1.0
        assert power.training_j >= cost_j
        cost_j = power.training_j


def fleet(start: str = "2026-01-05T20:00:00Z", *, lives_days: bool = False) -> VirtualFleet:
    config = FederationConfig(
        federation=Federation(name="toy"),
        rounds=Rounds(count=3, cohort=2, quorum=0.5, deadline_s=120.0),
        fleet=Fleet(mix={"phone-mid": 1.0}, start=start),
    )
    run = FleetRun(
        config=config,
        task=ToyTask(flops_per_example=2.5e8),
        count=4,
        seed=1,
        crypto=StubCrypto(),
    )
    made = VirtualFleet(run, lives_days=lives_days)
    made.start()
    return made


def test_a_battery_that_runs_out_is_a_power_loss_until_the_charger_is_in() -> None:
    world = fleet()
    host = world.hosts[0]
    world.world.run(10.0)
    host.unplug(for_s=20_000.0, battery_fraction=1e-6 + 3.0 / CAPACITY_J)
    world.world.run(10_000.0)
    assert (host.running, host.crashes) == (False, 1)
    assert host.power.empty
    world.world.run(40_000.0)
    assert (host.running, host.crashes) == (True, 1)
    assert 0.02 <= host.power.fraction <= 1.0
    world.close()


def test_what_a_round_is_said_to_cost_is_what_batteries_gave() -> None:
    world = fleet()
    world.world.run(200.0)
    trained = [device for device in world.devices if device.counts.trained]
    assert trained
    for device in trained:
        flops = world.coordinator.models.manifest.step_flops * 24 * device.counts.trained
        seconds = flops / (PHONE.training_gflops * 1e9)
        assert device.counts.training_j == pytest.approx(seconds * training_w_extra(PHONE))
        assert device.energy_j == device.counts.training_j + device.radio_j
    world.close()


@pytest.mark.slow
def test_over_a_day_batteries_follow_their_owners_and_are_charged() -> None:
    world = fleet("2026-01-05T00:00:00Z", lives_days=True)
    seen: list[float] = []
    for hour in range(1, 49):
        world.world.run(3_600.0 * hour)
        seen += [host.power.fraction for host in world.hosts]
    assert all(0.0 <= fraction <= 1.0 for fraction in seen)
    assert min(seen) < 0.6
    assert max(seen) == 1.0
    world.close()
