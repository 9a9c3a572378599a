import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.config import Selection
from coordinator.leases import Lease
from coordinator.selection import is_eligible, select

ANYBODY = Selection(policy="random", min_battery=0.0, allow_metered=True)


def lease(device: str, **changes: float | bool) -> Lease:
    fields: dict[str, float | bool] = {
        "until_s": 100.0,
        "battery_fraction": 1.0,
        "charging": True,
        "metered": False,
        **changes,
    }
    return Lease(
        device=device,
        check_in=1,
        until_s=fields["until_s"],
        device_class="pi-5",
        battery_fraction=fields["battery_fraction"],
        charging=bool(fields["charging"]),
        metered=bool(fields["metered"]),
        held_version=0,
    )


LEASES = st.lists(
    st.builds(
        lease,
        st.integers(0, 99).map("d{}".format),
        until_s=st.floats(0.0, 200.0),
        battery_fraction=st.floats(0.0, 1.0),
        charging=st.booleans(),
        metered=st.booleans(),
    ),
    max_size=15,
    unique_by=lambda each: each.device,
)
RULES = st.builds(
    Selection,
    policy=st.sampled_from(["random", "availability"]),
    min_battery=st.floats(0.0, 1.0),
    require_charging=st.booleans(),
    allow_metered=st.booleans(),
)


def names(
    leases: list[Lease],
    rules: Selection,
    *,
    count: int,
    round_number: int = 1,
    taken_part: dict[str, int] | None = None,
) -> list[str]:
    chosen = select(
        leases,
        rules,
        count=count,
        seed=5,
        round_number=round_number,
        deadline_at_s=50.0,
        taken_part=taken_part or {},
    )
    return [each.device for each in chosen]


@settings(max_examples=25)
@given(LEASES, RULES, st.integers(0, 20), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_who_was_quickest(
    leases: list[Lease], rules: Selection, count: int, chance: random.Random
) -> None:
    shuffled = list(leases)
    chance.shuffle(shuffled)
    assert names(leases, rules, count=count) == names(shuffled, rules, count=count)


@settings(max_examples=25)
@given(LEASES, RULES, st.integers(0, 20))
def test_only_the_eligible_are_chosen_each_once_and_as_many_as_there_are(
    leases: list[Lease], rules: Selection, count: int
) -> None:
    eligible = {each.device for each in leases if is_eligible(each, rules)}
    chosen = names(leases, rules, count=count)
    assert set(chosen) <= eligible
    assert len(set(chosen)) == len(chosen) == min(count, len(eligible))


@pytest.mark.parametrize(
    ("each", "rules", "expected"),
    [
        (lease("d", charging=False, battery_fraction=0.3), Selection(min_battery=0.3), True),
        (lease("d", charging=False, battery_fraction=0.29), Selection(min_battery=0.3), False),
        (lease("d", charging=True, battery_fraction=0.0), Selection(min_battery=0.3), True),
        (lease("d", charging=False), Selection(require_charging=True), False),
        (lease("d", metered=True), Selection(), False),
        (lease("d", metered=True), Selection(allow_metered=True), True),
    ],
)
def test_conditions_are_met_or_not(each: Lease, rules: Selection, *, expected: bool) -> None:
    assert is_eligible(each, rules) is expected


def test_random_gives_everybody_the_same_chance() -> None:
    leases = [lease(f"d{n}") for n in range(10)]
    seen = Counter(
        name for r in range(1_000) for name in names(leases, ANYBODY, count=3, round_number=r)
    )
    # 300 expected each, deviation 14.5.
    assert len(seen) == 10
    assert all(abs(count - 300) < 5 * 14.5 for count in seen.values())


def test_random_does_not_look_at_who_took_part() -> None:
    leases = [lease(f"d{n}") for n in range(10)]
    often = {f"d{n}": n for n in range(10)}
    assert names(leases, ANYBODY, count=5) == names(leases, ANYBODY, count=5, taken_part=often)


def test_availability_prefers_who_stays_then_who_took_part_least() -> None:
    leases = [
        lease("leaves", until_s=49.0),
        lease("often", until_s=50.0),
        lease("never", until_s=60.0),
        lease("once", until_s=99.0),
    ]
    order = ["never", "once", "often", "leaves"]
    taken_part = {"often": 5, "once": 1}
    for count in range(5):
        assert names(leases, Selection(), count=count, taken_part=taken_part) == order[:count]


def test_availability_gives_everybody_a_turn() -> None:
    leases = [lease(f"d{n}") for n in range(7)]
    taken_part: Counter[str] = Counter()
    for round_number in range(70):
        taken_part.update(
            names(leases, Selection(), count=2, round_number=round_number, taken_part=taken_part)
        )
        assert max(taken_part.values()) - min(taken_part[f"d{n}"] for n in range(7)) <= 1


def test_another_round_draws_anew() -> None:
    leases = [lease(f"d{n}") for n in range(20)]
    draws = {tuple(names(leases, ANYBODY, count=5, round_number=r)) for r in range(10)}
    assert len(draws) == 10
