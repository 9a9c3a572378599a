import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk import Conditions, Policy, PolicyError
from edge_sdk.policy import judge, sense
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
        {"check_in_s": 1.0},
        {"check_in_s": 1e9},
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(rules: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match=next(iter(rules))):
        Policy(**rules)  # type: ignore[arg-type] # that is what is tested


def test_the_operating_system_gives_conditions_within_bounds() -> None:
    now = sense()
    assert 0.0 <= now.battery_fraction <= 1.0
    assert 0.0 <= now.cpu_load <= 1.0
