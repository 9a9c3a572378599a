import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk import Conditions, Policy, PolicyError
from edge_sdk import policy as policy_module
from edge_sdk.policy import conditions_from, judge, sense
from edge_sdk.signals import GateClosed, GateOpened, Spent


def reason(policy: Policy, now: Conditions, *, spent: int = 0, was_open: bool = False) -> str:
    gate = judge(policy, now, spent=Spent(spent), was_open=was_open)
    return gate.reason if isinstance(gate, GateClosed) else ""


@pytest.mark.parametrize(
    ("policy", "now", "why"),
    [
        (Policy(), Conditions(), ""),
        (Policy(), Conditions(battery_fraction=0.2, charging=False), "battery_low"),
        (Policy(), Conditions(battery_fraction=0.2, charging=True), ""),
        (Policy(require_charging=True), Conditions(charging=False), "not_charging"),
        (Policy(), Conditions(metered=True), "metered"),
        (Policy(allow_metered=True), Conditions(metered=True), ""),
        (Policy(cpu_load_max=0.5), Conditions(cpu_load=0.6), "cpu_busy"),
        (Policy(), Conditions(cpu_load=1.0), ""),
        (Policy(), Conditions(temperature_c=81.0), "too_hot"),
        (Policy(max_temperature_c=40.0), Conditions(temperature_c=34.0), ""),
        (Policy(), Conditions(free_memory_bytes=1), "memory_low"),
        (Policy(min_free_memory_bytes=0), Conditions(free_memory_bytes=0), ""),
        (Policy(), Conditions(free_disk_bytes=1), "disk_low"),
        (Policy(min_free_disk_bytes=100), Conditions(free_disk_bytes=200), ""),
    ],
)
def test_each_rule_closes_the_gate_for_its_own_reason(
    policy: Policy, now: Conditions, why: str
) -> None:
    assert reason(policy, now) == why


def test_what_costs_bytes_is_the_reason_before_any_other() -> None:
    policy = Policy(bytes_per_day_max=1_000, require_charging=True)
    busy = Conditions(battery_fraction=0.0, charging=False, metered=True, cpu_load=1.0)
    assert reason(policy, busy, spent=1_000) == "byte_budget_spent"
    assert reason(policy, busy, spent=999) == "metered"


def test_a_check_in_lasts_as_long_as_the_owner_says() -> None:
    gate = judge(Policy(check_in_s=3_600.0), Conditions(), was_open=False)
    assert isinstance(gate, GateOpened)
    assert gate.check_in_s == 3_600.0


def test_a_spent_byte_budget_closes_the_gate() -> None:
    policy = Policy(bytes_per_day_max=1_000)
    assert reason(policy, Conditions(), spent=999) == ""
    assert reason(policy, Conditions(), spent=1_000) == "byte_budget_spent"
    assert reason(Policy(), Conditions(), spent=10**12) == ""


def test_each_budget_closes_the_gate_when_it_is_reached_and_no_sooner() -> None:
    policy = Policy(joules_per_day_max=10.0, training_s_per_day_max=60.0)
    for spent, why in (
        (Spent(10**12, 9.9, 59.9), ""),
        (Spent(0, 10.0, 0.0), "energy_budget_spent"),
        (Spent(0, 0.0, 60.0), "training_budget_spent"),
    ):
        gate = judge(policy, Conditions(), spent=spent, was_open=True)
        assert getattr(gate, "reason", "") == why
        assert isinstance(judge(Policy(), Conditions(), spent=spent, was_open=True), GateOpened)


def test_quiet_hours_close_the_gate_of_whoever_has_some() -> None:
    policy = Policy(quiet_hours=("22:00-06:00",))
    assert judge(policy, Conditions(), quiet=True, was_open=True) == GateClosed("quiet_hours")
    assert isinstance(judge(Policy(), Conditions(), quiet=True, was_open=True), GateOpened)


@pytest.mark.parametrize(
    ("policy", "field", "values"),
    [
        (Policy(), "temperature_c", (79.0, 81.0, 79.0, 76.0, 74.0)),
        (Policy(cpu_load_max=0.5), "cpu_load", (0.49, 0.51, 0.49, 0.46, 0.44)),
        (Policy(min_free_memory_bytes=100), "free_memory_bytes", (101, 99, 101, 120, 126)),
        (Policy(min_free_disk_bytes=100), "free_disk_bytes", (101, 99, 101, 120, 126)),
        (Policy(), "battery_fraction", (0.31, 0.29, 0.31, 0.315, 0.33)),
    ],
)
def test_a_gate_that_a_bound_has_closed_opens_a_little_on_the_other_side(
    policy: Policy, field: str, values: tuple[float, ...]
) -> None:
    was_open, seen = True, []
    for value in values:
        now = replace(Conditions(charging=False), **{field: value})  # type: ignore[arg-type] # by name
        was_open = isinstance(judge(policy, now, was_open=was_open), GateOpened)
        seen.append(was_open)
    assert seen == [True, False, False, False, True]


@given(
    st.floats(-20.0, 120.0),
    st.floats(-20.0, 120.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 200),
    st.integers(0, 200),
)
def test_no_bound_has_its_hysteresis_the_wrong_way_round(  # noqa: PLR0917 - drawn
    heat: float, hottest: float, load: float, busiest: float, free: int, least: int
) -> None:
    policy = Policy(
        max_temperature_c=hottest,
        cpu_load_max=busiest,
        min_free_memory_bytes=least,
        min_free_disk_bytes=least,
    )
    now = Conditions(
        temperature_c=heat, cpu_load=load, free_memory_bytes=free, free_disk_bytes=free
    )
    if not reason(policy, now, was_open=False):
        assert not reason(policy, now, was_open=True)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_gate_that_is_open_never_closes_where_a_closed_one_would_open(
    battery: float, least: float
) -> None:
    policy, now = Policy(min_battery=least), Conditions(battery_fraction=battery, charging=False)
    if not reason(policy, now, was_open=False):
        assert not reason(policy, now, was_open=True)


def test_an_open_gate_says_what_the_check_in_reports() -> None:
    now = Conditions(battery_fraction=0.8, charging=False, window_s=60.0)
    gate = judge(Policy(), now, was_open=False)
    assert gate == GateOpened(window_s=60.0, battery_fraction=0.8, charging=False, metered=False)


@pytest.mark.parametrize(
    "rules",
    [
        {"min_battery": 1.5},
        {"cpu_load_max": -0.1},
        {"bytes_per_day_max": -1},
        {"joules_per_day_max": -0.1},
        {"training_s_per_day_max": math.nan},
        {"training_s_per_day_max": math.inf},
        {"min_free_memory_bytes": -1},
        {"min_free_disk_bytes": -1},
        {"max_temperature_c": math.nan},
        {"quiet_hours": ("22-6",)},
        {"quiet_hours": ("06:00-06:00",)},
        {"quiet_hours": ("12:00-11:00",)},
        {"check_in_s": 1.0},
        {"check_in_s": 1e9},
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(rules))):
        Policy(**rules)


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu_load": math.nan},
        {"temperature_c": math.nan},
        {"temperature_c": math.inf},
        {"free_memory_bytes": -1},
        {"free_disk_bytes": -1},
        {"power_w": -1.0},
        {"power_w": math.inf},
        {"window_s": -1.0},
    ],
)
def test_conditions_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(fields))):
        Conditions(**fields)


def test_the_operating_system_gives_conditions_within_bounds() -> None:
    now = sense()
    assert 0.0 <= now.battery_fraction <= 1.0
    assert 0.0 <= now.cpu_load <= 1.0
    assert now.free_memory_bytes
    assert now.free_disk_bytes is None


def test_an_apps_own_sources_replace_the_systems_one_by_one(tmp_path: Path) -> None:
    readings = iter((30.0, 90.0))
    ask = conditions_from({"temperature_c": lambda: next(readings), "metered": True}, tmp_path)
    assert [ask().temperature_c for _ in range(2)] == [30.0, 90.0]
    readings = iter((1.0,))
    now = ask()
    assert (now.metered, now.free_disk_bytes is not None) == (True, True)


def test_an_apps_own_function_is_asked_alone(tmp_path: Path) -> None:
    assert conditions_from(Conditions, tmp_path)() == Conditions()
    assert conditions_from(sense, tmp_path)().free_disk_bytes


def test_a_source_of_what_is_no_condition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="tempreature"):
        conditions_from({"tempreature": 3.0}, tmp_path)


class Psutil:
    """What a machine's sensors say."""

    def __init__(self, chips: dict[str, tuple[float, ...]] | OSError) -> None:
        self._chips = chips

    def sensors_temperatures(self) -> dict[str, list[SimpleNamespace]]:
        if isinstance(self._chips, OSError):
            raise self._chips
        return {
            chip: [SimpleNamespace(current=heat) for heat in heats]
            for chip, heats in self._chips.items()
        }


@pytest.mark.parametrize(
    ("chips", "hottest"),
    [
        ({}, None),
        ({"coretemp": (50.0, 61.0), "BAT0": (33.0,)}, 61.0),
        ({"nct6775": (127.0,), "cpu_thermal": (44.0,)}, 44.0),
        ({"acpitz": (-273.0, 1e9)}, None),
        (OSError("gone"), None),
    ],
)
def test_the_hottest_of_those_sensors_that_mean_something_counts(
    chips: Any, hottest: float | None
) -> None:
    assert policy_module._hottest_c(Psutil(chips)) == hottest
    assert policy_module._hottest_c(object()) is None
