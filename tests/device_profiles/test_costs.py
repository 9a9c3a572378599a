import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import device_profiles as dp

CLASSES = st.sampled_from([dp.load_class(name) for name in dp.class_names()])
BYTES = st.integers(0, 10**9)
PI_4 = dp.load_class("pi-4")
LTE = dp.load_class("sensor-lte")


def test_training_takes_flops_over_speed() -> None:
    """11.9 GFLOP at 11.9 GFLOP/s is a second, and costs what training draws above idling."""
    assert pytest.approx(1.0) == dp.training_seconds(PI_4, 11.9e9)
    assert pytest.approx(7.2 - 1.6) == dp.training_energy_j(PI_4, 11.9e9)


def test_transfer_takes_bits_over_speed() -> None:
    """10 MB at 80 Mbit/s down and 7.5 MB at 60 Mbit/s up are a second each."""
    assert pytest.approx(1.0) == dp.transfer_seconds(PI_4, 0, 10_000_000)
    assert pytest.approx(2.0) == dp.transfer_seconds(PI_4, 7_500_000, 10_000_000)


def test_a_session_on_lte_costs_its_tail() -> None:
    """An update of 10 KB is nearly all tail, once per session."""
    one = dp.transfer_energy_j(LTE, 10_000, 0)
    assert pytest.approx(5.2 * 0.01 + 12.3) == one
    assert pytest.approx(one + 12.3) == dp.transfer_energy_j(LTE, 10_000, 0, sessions=2)


@settings(max_examples=50, deadline=None)
@given(CLASSES, BYTES, BYTES)
def test_costs_are_additive_and_never_negative(
    profile: dp.DeviceProfile, up: int, down: int
) -> None:
    """Both directions together cost what they cost apart, the tail aside."""
    together = dp.transfer_energy_j(profile, up, down, sessions=0)
    apart = dp.transfer_energy_j(profile, up, 0, sessions=0) + dp.transfer_energy_j(
        profile, 0, down, sessions=0
    )
    assert together >= 0.0
    assert pytest.approx(apart) == together
    assert dp.training_energy_j(profile, up * 1e3) >= 0.0
