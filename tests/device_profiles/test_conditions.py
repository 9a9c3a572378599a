from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import device_profiles as dp

CLASSES = [dp.load_class(name) for name in dp.class_names()]
PHONE = dp.load_class("phone-mid")
# 2026-01-05 00:00 UTC, a Monday.
MIDNIGHT_S = 1_767_571_200.0

PROFILES = st.sampled_from(CLASSES)
SEEDS = st.integers(0, 2**64 - 1)
TIMES = st.floats(-1e9, 1e10)


def share_at(hour: float, what: str, devices: int = 600) -> float:
    """The share of phones of which `what` is true at an hour of that Monday."""
    asked = (dp.conditions_at(PHONE, seed, MIDNIGHT_S + hour * 3600) for seed in range(devices))
    return sum(bool(getattr(conditions, what)) for conditions in asked) / devices


@settings(max_examples=60, deadline=None)
@given(PROFILES, SEEDS, TIMES)
def test_conditions_follow_from_profile_seed_and_time(
    profile: dp.DeviceProfile, seed: int, now_s: float
) -> None:
    """Asking twice, with other questions in between, gives the same answer."""
    first = dp.conditions_at(profile, seed, now_s)
    dp.conditions_at(profile, seed + 1, now_s - 86_400)
    assert first == dp.conditions_at(profile, seed, now_s)


@settings(max_examples=60, deadline=None)
@given(PROFILES, SEEDS, TIMES)
def test_conditions_stay_within_bounds(profile: dp.DeviceProfile, seed: int, now_s: float) -> None:
    """A battery is 0 to 1, a room is a room, and mains is a full battery that charges."""
    conditions = dp.conditions_at(profile, seed, now_s)
    assert 0.0 <= conditions.battery_fraction <= 1.0
    assert 10.0 <= conditions.temperature_c <= 45.0
    if profile.on_mains:
        assert conditions.charging
        assert conditions.battery_fraction == 1.0


@settings(max_examples=60, deadline=None)
@given(SEEDS, TIMES)
def test_a_device_is_ready_while_the_curve_is_above_its_level(seed: int, now_s: float) -> None:
    """Ready devices are idle, charging and on unmetered network, and no other device is idle."""
    conditions = dp.conditions_at(PHONE, seed, now_s)
    assert conditions.ready == conditions.idle
    if conditions.idle:
        assert conditions.charging
        assert conditions.online
        assert not conditions.metered


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([p for p in CLASSES if not p.on_mains]), SEEDS, st.floats(0.0, 4e9))
def test_a_battery_rises_while_charging_and_falls_otherwise_without_jumps(
    profile: dp.DeviceProfile, seed: int, now_s: float
) -> None:
    """Over a second in one state the level moves the right way, and by less than a thousandth."""
    before = dp.conditions_at(profile, seed, now_s)
    after = dp.conditions_at(profile, seed, now_s + 1.0)
    change = after.battery_fraction - before.battery_fraction
    assert abs(change) < 1e-3
    if before.charging and after.charging:
        assert change >= -1e-9
    if not before.charging and not after.charging:
        assert change <= 1e-9


@settings(max_examples=60, deadline=None)
@given(SEEDS, TIMES, st.integers(-12, 14))
def test_local_time_is_what_counts(seed: int, now_s: float, hours: int) -> None:
    """A device further east lives the same day earlier."""
    offset_s = hours * 3600.0
    east = dp.conditions_at(PHONE, seed, now_s, utc_offset_s=offset_s)
    assert east == dp.conditions_at(PHONE, seed, now_s + offset_s)


def test_phones_are_ready_by_night() -> None:
    """Between night and day lies at least a factor of 2 (4 in Bonawitz et al., MLSys 2019)."""
    assert share_at(2.5, "ready") >= 2.0 * share_at(14.0, "ready") > 0.0


@pytest.mark.parametrize("hour", [2.5, 7.0, 14.0, 21.5])
def test_the_share_of_ready_phones_is_the_curve(hour: float) -> None:
    """With 600 devices within 4 standard deviations."""
    _, day_s = PHONE.day.locate(MIDNIGHT_S + hour * 3600)
    expected = PHONE.day.ready_share(day_s)
    deviation = (expected * (1.0 - expected) / 600) ** 0.5
    assert abs(share_at(hour, "ready") - expected) < 4.0 * deviation


def test_a_phone_is_ready_in_one_stretch_and_not_in_strewn_hours() -> None:
    """In a day, readiness begins at most once after the day's border."""
    for seed in range(25):
        noon_s = MIDNIGHT_S + 12 * 3600.0
        ready = [
            dp.conditions_at(PHONE, seed, noon_s + quarter * 900.0).ready for quarter in range(96)
        ]
        begins = sum(after and not before for before, after in pairwise(ready))
        assert begins <= 1


def test_a_habit_makes_days_alike() -> None:
    """The same phones are ready on two nights more often than chance has it."""
    nights = [
        [dp.conditions_at(PHONE, seed, MIDNIGHT_S + (2 + 24 * day) * 3600).ready for day in (0, 7)]
        for seed in range(600)
    ]
    alike = sum(first == second for first, second in nights) / len(nights)
    share = PHONE.day.ready_by_hour[2]
    assert alike > share**2 + (1 - share) ** 2 + 0.08


def test_a_device_on_lte_is_reachable_and_never_ready() -> None:
    """Its network is metered, so only a federation that allows that gets it."""
    profile = dp.load_class("sensor-lte")
    asked = [dp.conditions_at(profile, seed, MIDNIGHT_S) for seed in range(300)]
    assert all(conditions.metered and not conditions.ready for conditions in asked)
    assert 0.9 < sum(conditions.online for conditions in asked) / len(asked) < 1.0


def test_conditions_are_pinned() -> None:
    """The answer for one seed and time is part of what makes runs repeat."""
    expected = dp.Conditions(
        battery_fraction=0.288737970256854,
        charging=False,
        metered=True,
        online=True,
        temperature_c=18.63893320476337,
        idle=False,
    )
    assert expected == dp.conditions_at(PHONE, 7, MIDNIGHT_S + 20.5 * 3600)
