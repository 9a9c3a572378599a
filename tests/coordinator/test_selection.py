import random
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.config import Selection
from coordinator.leases import Lease
from coordinator.participation import Participation, Past
from coordinator.selection import (
    CLIP_QUANTILE,
    FLOOR_ROUNDS,
    FloorWindow,
    Question,
    Shares,
    by_class,
    chance_to_finish,
    is_eligible,
    select,
    utilities,
)

ANYBODY = Selection(policy="random", min_battery=0.0, allow_metered=True)
POLICIES = ("random", "availability", "prioritised")


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
        stays_until_s=fields.get("stays_until_s", 1_000.0),
    )


LEASES = st.lists(
    st.builds(
        lease,
        st.integers(0, 99).map("d{}".format),
        stays_until_s=st.floats(0.0, 200.0),
        battery_fraction=st.floats(0.0, 1.0),
        charging=st.booleans(),
        metered=st.booleans(),
    ),
    max_size=15,
    unique_by=lambda each: each.device,
)
RULES = st.builds(
    Selection,
    policy=st.sampled_from(POLICIES),
    min_battery=st.floats(0.0, 1.0),
    require_charging=st.booleans(),
    allow_metered=st.booleans(),
    min_separation=st.integers(0, 3),
    participation_floor=st.floats(0.0, 1.0),
)
PASTS = st.dictionaries(
    st.integers(0, 99).map("d{}".format),
    st.builds(
        Past,
        invited=st.integers(0, 9),
        delivered=st.integers(0, 9),
        counted=st.integers(0, 9),
        vanished=st.integers(0, 9),
        duration_s=st.floats(0.0, 1e5),
        last_round=st.integers(0, 9),
        utility=st.floats(0.0, 1e12),
        utility_round=st.integers(0, 9),
    ),
    max_size=12,
)


def class_of(device: str) -> str:
    return f"class-{int(device.strip('d') or 0) % 3}" if device[1:].isdigit() else device


def ask(
    leases: list[Lease],
    rules: Selection,
    *,
    count: int,
    needed: int = 1,
    round_number: int = 10,
    pasts: Mapping[str, Past] | None = None,
    window: FloorWindow | None = None,
    classes: Callable[[str], str] = class_of,
) -> list[str]:
    question = Question(
        rules=rules,
        count=count,
        needed=needed,
        cohort=count,
        seed=5,
        round_number=round_number,
        now_s=0.0,
        deadline_at_s=50.0,
    )
    past = Participation(classes, dict(pasts or {}))
    return [each.device for each in select(leases, question, past, window or FloorWindow())]


# -- any policy ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(LEASES, RULES, st.integers(0, 20), PASTS, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_who_was_quickest(
    leases: list[Lease],
    rules: Selection,
    count: int,
    pasts: dict[str, Past],
    chance: random.Random,
) -> None:
    shuffled = list(leases)
    chance.shuffle(shuffled)
    first = ask(leases, rules, count=count, pasts=pasts)
    assert first == ask(shuffled, rules, count=count, pasts=pasts)


@settings(max_examples=40)
@given(LEASES, RULES, st.integers(0, 20), PASTS)
def test_only_the_eligible_are_chosen_each_once_and_as_many_as_there_are(
    leases: list[Lease], rules: Selection, count: int, pasts: dict[str, Past]
) -> None:
    rules = msgspec.structs.replace(rules, min_separation=0)
    eligible = {each.device for each in leases if is_eligible(each, rules)}
    chosen = ask(leases, rules, count=count, pasts=pasts)
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


@pytest.mark.parametrize("policy", POLICIES)
def test_another_round_draws_anew(policy: str) -> None:
    leases = [lease(f"d{n}") for n in range(20)]
    rules = msgspec.convert({"policy": policy}, Selection)
    draws = {tuple(ask(leases, rules, count=5, round_number=r)) for r in range(1, 11)}
    assert len(draws) == 10


# -- rest ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_sits_out_the_rounds_after_one_that_it_was_invited_to(policy: str) -> None:
    leases = [lease(f"d{n}") for n in range(6)]
    rules = msgspec.convert({"policy": policy, "min_separation": 2}, Selection)
    pasts = {f"d{n}": Past(invited=1, last_round=7 + n % 3) for n in range(6)}
    assert sorted(ask(leases, rules, count=6, pasts=pasts)) == ["d0", "d3"]


@pytest.mark.parametrize("policy", POLICIES)
def test_rest_is_cut_short_for_a_quorum_and_for_no_more(policy: str) -> None:
    leases = [lease(f"d{n}") for n in range(6)]
    rules = msgspec.convert({"policy": policy, "min_separation": 5}, Selection)
    pasts = {f"d{n}": Past(invited=1, last_round=4 + n) for n in range(1, 6)}
    # d0 was never invited; of the others those come that have rested longest.
    assert sorted(ask(leases, rules, count=6, needed=3, pasts=pasts)) == ["d0", "d1", "d2"]


# -- random --------------------------------------------------------------------------------------


def test_random_gives_everybody_the_same_chance() -> None:
    leases = [lease(f"d{n}") for n in range(10)]
    seen = Counter(
        name for r in range(1_000) for name in ask(leases, ANYBODY, count=3, round_number=r)
    )
    # 300 expected each, deviation 14.5.
    assert len(seen) == 10
    assert all(abs(count - 300) < 5 * 14.5 for count in seen.values())


def test_random_does_not_look_at_who_took_part() -> None:
    leases = [lease(f"d{n}") for n in range(10)]
    often = {f"d{n}": Past(counted=n, delivered=n, last_round=1) for n in range(10)}
    assert ask(leases, ANYBODY, count=5) == ask(leases, ANYBODY, count=5, pasts=often)


# -- availability --------------------------------------------------------------------------------


def chance(past: Past, **changes: float) -> float:
    question = Question(
        rules=Selection(),
        count=1,
        needed=1,
        cohort=1,
        seed=0,
        round_number=10,
        now_s=0.0,
        deadline_at_s=100.0,
    )
    return chance_to_finish(lease("d0", **changes), question, Participation(class_of, {"d0": past}))


def test_who_leaves_before_it_can_be_done_will_not_finish() -> None:
    past = Past(invited=9, delivered=9, counted=9, duration_s=40.0, last_round=9)
    assert chance(past, stays_until_s=1_000.0) > 0.9
    assert chance(past, stays_until_s=30.0) == 0.0
    assert 0.0 < chance(past, stays_until_s=40.0) < 0.6


def test_who_takes_longer_than_the_round_will_not_finish() -> None:
    assert chance(Past(delivered=9, duration_s=200.0, last_round=9)) == 0.0


def test_a_device_of_which_nothing_is_known_is_taken_to_need_the_whole_round() -> None:
    assert chance(Past(), stays_until_s=50.0) == pytest.approx(chance(Past()) / 2)


def test_who_drops_out_is_asked_later_and_after_long_enough_again() -> None:
    good = Past(invited=8, delivered=8, duration_s=10.0, last_round=9)
    bad = Past(invited=8, vanished=8, duration_s=10.0, last_round=9)
    old = msgspec.structs.replace(bad, last_round=0)
    assert chance(bad) < 0.5 * chance(good)
    late = Participation(class_of, {"d0": old}).delivery_rate("d0", 1_000)
    assert late > Participation(class_of, {"d0": bad}).delivery_rate("d0", 10)


def test_availability_prefers_who_stays_then_who_took_part_least() -> None:
    leases = [
        lease("d1", stays_until_s=10.0),
        lease("d2"),
        lease("d3"),
        lease("d4"),
    ]
    pasts = {"d2": Past(counted=5, delivered=5), "d4": Past(counted=1, delivered=1)}
    rules = Selection(participation_floor=0.0)
    for count in range(5):
        assert ask(leases, rules, count=count, pasts=pasts) == ["d3", "d4", "d2", "d1"][:count]


def test_availability_gives_everybody_a_turn() -> None:
    leases = [lease(f"d{n}") for n in range(7)]
    taken_part: Counter[str] = Counter()
    for number in range(1, 71):
        pasts = {name: Past(counted=k, delivered=k, invited=k) for name, k in taken_part.items()}
        taken_part.update(ask(leases, Selection(), count=2, round_number=number, pasts=pasts))
        assert max(taken_part.values()) - min(taken_part[f"d{n}"] for n in range(7)) <= 1


# -- the floor -----------------------------------------------------------------------------------


def kind(device: str) -> str:
    return "slow" if int(device[1:]) < 10 else "fast"


def test_a_class_that_the_policy_does_not_prefer_gets_at_least_half_its_share() -> None:
    """Ten slow devices of thirty would never be asked by merit; with the floor they count."""
    leases = [lease(f"d{n}", stays_until_s=20.0 if n < 10 else 1_000.0) for n in range(30)]
    pasts: dict[str, Past] = {}
    window, counted = FloorWindow(), Counter[str]()
    for number in range(1, 41):
        chosen = ask(
            leases,
            Selection(participation_floor=0.5),
            count=6,
            round_number=number,
            pasts=pasts,
            window=window,
            classes=kind,
        )
        by_kind = Counter(map(kind, chosen))
        counted += by_kind
        window.rounds.append(Shares({"slow": 10, "fast": 20}, by_kind))
    assert counted["slow"] / counted.total() >= 0.5 * 10 / 30
    assert counted["slow"] / counted.total() < 10 / 30

    without = ask(leases, Selection(participation_floor=0.0), count=6, classes=kind)
    assert set(map(kind, without)) == {"fast"}


def test_no_class_is_reserved_more_than_its_share_however_much_it_is_owed() -> None:
    leases = [lease(f"d{n}", stays_until_s=20.0 if n < 10 else 1_000.0) for n in range(30)]
    window = FloorWindow()
    for _ in range(FLOOR_ROUNDS):
        window.rounds.append(Shares({"slow": 10, "fast": 20}, {"fast": 6}))
    chosen = ask(leases, Selection(participation_floor=1.0), count=6, window=window, classes=kind)
    assert Counter(map(kind, chosen))["slow"] == 2


def test_the_floor_forgets_rounds_that_are_long_past() -> None:
    window = FloorWindow()
    for _ in range(100):
        window.rounds.append(Shares({"slow": 10}, {"slow": 6}))
    assert len(window.rounds) == FLOOR_ROUNDS


def test_what_a_device_calls_itself_when_it_checks_in_is_not_its_class() -> None:
    participation = Participation(lambda _device: "enrolled-as")
    assert by_class([lease("d1"), lease("d2")], participation) == {"enrolled-as": 2}


# -- prioritised ---------------------------------------------------------------------------------


def rated(**pasts: Past) -> dict[str, float]:
    question = Question(
        rules=Selection(policy="prioritised"),
        count=2,
        needed=1,
        cohort=2,
        seed=1,
        round_number=50,
        now_s=0.0,
        deadline_at_s=1_000.0,
    )
    participation = Participation(lambda device: device, dict(pasts))
    return utilities([lease(name) for name in pasts], question, participation)


def past(utility: float, duration_s: float = 10.0, seen: int = 49) -> Past:
    return Past(
        delivered=1, duration_s=duration_s, utility=utility, utility_round=seen, last_round=seen
    )


def test_more_loss_on_more_examples_is_worth_more() -> None:
    value = rated(a=past(100.0), b=past(50.0))
    assert value["a"] > value["b"]


def test_a_device_that_is_slower_than_most_is_worth_less() -> None:
    value = rated(**{f"fast{n}": past(100.0) for n in range(9)}, slow=past(100.0, 40.0))
    assert value["slow"] < value["fast0"] / 8


def test_what_has_not_been_tried_for_long_is_worth_more() -> None:
    value = rated(a=past(100.0), old=past(100.0, seen=2))
    assert value["old"] > value["a"]


def test_a_liar_is_worth_no_more_than_the_best_of_the_others() -> None:
    honest = {f"d{n}": past(100.0 + n) for n in range(40)}
    value = rated(**honest, liar=past(1e12))
    assert CLIP_QUANTILE < 1.0
    assert value["liar"] == pytest.approx(max(value[name] for name in honest))


def test_a_share_of_seats_is_for_devices_that_were_never_tried() -> None:
    leases = [lease(f"d{n}") for n in range(40)]
    tried = {f"d{n}": past(100.0) for n in range(20)}
    rules = Selection(policy="prioritised", participation_floor=0.0)
    for number, least in ((1, 18), (10, 14), (1_000, 4)):
        chosen = ask(leases, rules, count=20, round_number=number, pasts=tried)
        assert sum(name not in tried for name in chosen) >= least
        assert sum(name in tried for name in chosen) >= 20 - least - 3
