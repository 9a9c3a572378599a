import heapq
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.pace import (
    AWAY_S_MAX,
    TOLD_AT_ONCE_MAX,
    Pacer,
    Population,
    come_back_s,
    lot,
    usual_s,
)

RATE = 20.0
WINDOW_S = 120.0
USUAL_S = usual_s(WINDOW_S)


def fleet_check_ins(count: int, until_s: float, *, every_s: float = 0.0) -> list[float]:
    """When the devices of a fleet speak that have all come at once, by the real answers."""
    chance = random.Random(count)
    pacer = Pacer(7, RATE, 0.0)
    due = [(chance.uniform(0.0, 2.0), device, 0) for device in range(count)]
    heapq.heapify(due)
    spoken = []
    while due and due[0][0] < until_s:
        now_s, device, number = heapq.heappop(due)
        spoken.append(now_s)
        opens_in_s = every_s - now_s % every_s if every_s else 0.0
        silent_s = pacer.silence_s(
            f"d{device}", number, WINDOW_S, opens_in_s=opens_in_s, now_s=now_s
        )
        heapq.heappush(
            due, (now_s + (USUAL_S if silent_s is None else silent_s), device, number + 1)
        )
    return spoken


def busiest_minute(spoken: list[float], since_s: float) -> float:
    """Check-ins per second in the busiest minute from a time on."""
    later = np.array([at for at in spoken if at >= since_s])
    return float(max(np.searchsorted(later, later + 60.0) - np.arange(len(later)))) / 60.0


@pytest.mark.parametrize("count", [10, 100, 1_000, 2_500, 5_000])
def test_after_one_cycle_no_minute_has_twice_the_mean(count: int) -> None:
    cycle_s = max(count / RATE, USUAL_S)
    spoken = fleet_check_ins(count, 5 * cycle_s)
    since_s = 1.5 * cycle_s
    mean = sum(at >= since_s for at in spoken) / (5 * cycle_s - since_s)
    assert busiest_minute(spoken, since_s) <= 2.0 * mean
    assert mean <= 1.5 * RATE


@pytest.mark.slow
def test_a_hundred_thousand_devices_are_as_even() -> None:
    count = 100_000
    cycle_s = min(count / RATE, AWAY_S_MAX / 1.5)
    spoken = fleet_check_ins(count, 3.5 * cycle_s)
    since_s = 1.5 * cycle_s
    mean = sum(at >= since_s for at in spoken) / (2 * cycle_s)
    assert busiest_minute(spoken, since_s) <= 2.0 * mean
    assert mean <= 1.3 * count / cycle_s


@given(
    st.integers(1, 10**7),
    st.floats(0.1, 1e5),
    st.floats(10.0, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_nobody_is_away_longer_than_the_bound(
    population: int, rate: float, natural_s: float, opens_in_s: float, chance: float
) -> None:
    silent_s = come_back_s(
        population=population,
        rate_max=rate,
        usual_s=natural_s,
        opens_in_s=opens_in_s,
        chance=chance,
    )
    assert silent_s is None or 0.0 <= silent_s <= AWAY_S_MAX


def test_a_small_fleet_comes_together_shortly_before_a_round_may_open() -> None:
    for device in range(10):
        silent_s = come_back_s(
            population=10,
            rate_max=RATE,
            usual_s=USUAL_S,
            opens_in_s=1_800.0,
            chance=lot(1, f"d{device}", 3),
        )
        assert silent_s is not None
        assert 1_780.0 < silent_s < 1_800.0


@settings(max_examples=30)
@given(st.integers(2, 2_000), st.floats(0.0, 1.0, exclude_max=True))
def test_whoever_gathers_is_there_when_the_round_may_open(population: int, chance: float) -> None:
    """Its lease, which is as long as its window, has then begun and not ended."""
    silent_s = come_back_s(
        population=population,
        rate_max=RATE,
        usual_s=USUAL_S,
        opens_in_s=3_600.0,
        chance=chance,
    )
    assert silent_s is not None
    assert silent_s < 3_600.0 <= silent_s + WINDOW_S


def test_a_fleet_that_is_small_enough_is_left_alone() -> None:
    pacer = Pacer(1, RATE, 0.0)
    for device in range(1_000):
        silent = pacer.silence_s(f"d{device}", 1, WINDOW_S, opens_in_s=0.0, now_s=0.0)
        assert silent is None


def test_a_liar_that_speaks_all_the_time_is_one_device() -> None:
    population = Population(0.0)
    for second in range(10_000):
        assert population.hear("liar", float(second)) == 1


def test_a_device_that_is_paced_is_not_forgotten_and_one_that_is_gone_is() -> None:
    population = Population(0.0)
    population.hear("paced", 0.0)
    assert population.hear("other", AWAY_S_MAX + 1.0) == 2
    assert population.hear("other", 2 * AWAY_S_MAX + 2.0) == 1


def test_a_clock_that_is_set_back_forgets_nobody_at_once() -> None:
    population = Population(1e9)
    population.hear("a", 1e9)
    assert population.hear("b", 0.0) == 2


def test_after_a_restart_a_round_is_recalled_at_once_and_the_others_at_the_rate() -> None:
    pacer = Pacer(1, RATE, 0.0)
    recalled = pacer.recall([f"d{n}" for n in range(5_000)], 3, at_once=52)
    assert len(recalled) == TOLD_AT_ONCE_MAX
    assert [after_s for _d, after_s in recalled[:52]] == [0.0] * 52
    assert recalled[-1][1] == pytest.approx((TOLD_AT_ONCE_MAX - 1 - 52) / RATE)
    assert len({device for device, _ in recalled}) == TOLD_AT_ONCE_MAX
    assert pacer.recall(["d1"], 3, at_once=4) == [("d1", 0.0)]


def test_a_release_is_told_to_all_of_a_small_fleet_and_to_some_of_a_large_one() -> None:
    pacer = Pacer(1, RATE, 0.0)
    small = [f"d{n}" for n in range(TOLD_AT_ONCE_MAX)]
    assert pacer.told_at_once(small, 1) == sorted(small)
    large = [f"d{n}" for n in range(50_000)]
    told = pacer.told_at_once(large, 1)
    assert len(set(told)) == TOLD_AT_ONCE_MAX
    assert told != pacer.told_at_once(large, 2)


def test_when_all_is_over_devices_do_not_come_back_together() -> None:
    pacer = Pacer(1, RATE, 0.0)
    times = [pacer.idle_s(f"d{n}", 1) for n in range(200)]
    assert min(times) < 3_000.0
    assert max(times) > 4_000.0
    assert max(times) <= AWAY_S_MAX
