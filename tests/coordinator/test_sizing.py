import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import Rounds
from coordinator.participation import Recent
from coordinator.sizing import OVER_SELECT_MAX, budget_allows, deadline_s, to_invite

ROUNDS = Rounds(cohort=20, over_select=1.3, quorum=0.7, deadline_s=600.0)
AUTO = Rounds(cohort=20, deadline_s=600.0, deadline="auto")


def test_without_evidence_it_is_the_files_number() -> None:
    assert to_invite(ROUNDS, Recent(), adapt=True) == 26
    assert to_invite(ROUNDS, Recent(500.0, 500.0), adapt=False) == 26


def test_at_quorum_one_exactly_the_cohort_is_invited() -> None:
    whole = Rounds(cohort=20, over_select=3.0, quorum=1.0)
    assert to_invite(whole, Recent(10.0, 190.0), adapt=True) == 20


def test_it_follows_the_drop_out_both_ways() -> None:
    reliable = to_invite(ROUNDS, Recent(200.0, 0.0), adapt=True)
    flaky = to_invite(ROUNDS, Recent(100.0, 100.0), adapt=True)
    assert 20 <= reliable < 26 < flaky


def test_little_evidence_moves_it_little() -> None:
    assert abs(to_invite(ROUNDS, Recent(1.0, 1.0), adapt=True) - 27) <= 1


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.integers(1, 10_000), st.floats(1.0, 10.0))
def test_it_stays_within_its_bounds(
    delivered: float, lost: float, cohort: int, over_select: float
) -> None:
    rounds = Rounds(cohort=cohort, over_select=over_select, quorum=0.5)
    invited = to_invite(rounds, Recent(delivered, lost), adapt=True)
    assert cohort <= invited <= math.ceil(max(OVER_SELECT_MAX, over_select) * cohort)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.9, 0.97])
def test_a_cohort_is_full_in_about_four_rounds_of_five(rate: float) -> None:
    chance = random.Random(1)
    recent, full = Recent(), 0
    for number in range(300):
        invited = to_invite(ROUNDS, recent, adapt=True)
        delivered = sum(chance.random() < rate for _ in range(invited))
        recent.note(delivered, invited - delivered)
        full += number >= 50 and delivered >= 20
    assert 0.7 < full / 250 < 0.99


def test_a_deadline_is_the_files_until_enough_devices_were_timed() -> None:
    assert deadline_s(ROUNDS, [1.0] * 100, bytes_both_ways=10) == 600.0
    assert deadline_s(AUTO, [1.0] * 4, bytes_both_ways=10) == 600.0
    assert deadline_s(AUTO, [20.0] * 5, bytes_both_ways=200_000) == pytest.approx(40.0)


def test_a_slow_tenth_does_not_hold_up_the_rest() -> None:
    durations = sorted([20.0] * 95 + [500.0] * 5)
    assert deadline_s(AUTO, durations, bytes_both_ways=0) == pytest.approx(30.0)


@given(st.lists(st.floats(0.001, 1e6), max_size=30), st.integers(0, 10**9))
def test_a_deadline_is_never_longer_than_the_files(durations: list[float], size: int) -> None:
    assert 0.0 < deadline_s(AUTO, sorted(durations), bytes_both_ways=size) <= 600.0


@pytest.mark.parametrize(
    ("bytes_max", "spent", "last", "allowed"),
    [
        (0, 10**15, [10**12], True),
        (1_000, 0, [], True),
        (1_000, 600, [100, 400], True),
        (1_000, 601, [400, 100], False),
        (1_000, 1_000, [], False),
    ],
)
def test_a_round_that_may_not_fit_into_the_budget_is_not_opened(
    bytes_max: int, spent: int, last: list[int], *, allowed: bool
) -> None:
    assert budget_allows(bytes_max, spent, last) is allowed
