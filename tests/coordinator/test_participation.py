import sqlite3
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import Rounds
from coordinator.participation import (
    CLASSES_MAX,
    LOSS_MAX,
    OTHER_CLASS,
    Classes,
    Heard,
    Participation,
    Past,
    utility_of,
)
from coordinator.store import Store
from coordinator.store._schema import _FIRST
from tests.support.loopback import Loopback


def heard(device: str, after_s: float = 10.0, reason: str = "counted", use: float = 5.0) -> Heard:
    return Heard(device, after_s, reason, use)


def known(**pasts: Past) -> Participation:
    return Participation(lambda device: device[:1], dict(pasts))


# -- what a round leaves -------------------------------------------------------------------------


def test_each_invitee_is_counted_for_what_became_of_it() -> None:
    participation = known()
    changed = participation.after_round(
        3,
        ["a", "b", "c", "d", "e"],
        [heard("a"), heard("b", reason="round_closed"), heard("e", reason="malformed")],
        {"c": "battery_low"},
        passed_s=60.0,
        deadline_passed=True,
    )
    assert changed["a"] == Past(1, 1, 1, 0, 0, 10.0, 3, 5.0, 3)
    assert changed["b"] == Past(1, 1, 0, 0, 0, 10.0, 3, 5.0, 3)
    assert changed["c"] == Past(1, 0, 0, 1, 0, 0.0, 3)
    assert changed["d"] == Past(1, 0, 0, 0, 1, 0.0, 3)
    # What was wrong with an update also makes its word of its loss worthless.
    assert changed["e"] == Past(1, 1, 0, 0, 0, 10.0, 3)
    assert participation.of("a") == Past(), "nothing is remembered before it is on disk"
    participation.adopt(changed)
    assert participation.of("a").counted == 1


def test_a_device_that_a_full_cohort_cut_short_has_not_vanished_and_is_known_to_be_slower() -> None:
    participation = known(a=Past(2, 2, 2, 0, 0, 10.0, 1))
    changed = participation.after_round(2, ["a", "b"], [], {}, passed_s=40.0, deadline_passed=False)
    assert (changed["a"].vanished, changed["a"].duration_s) == (0, 40.0)
    assert (changed["b"].vanished, changed["b"].duration_s) == (0, 40.0)


def test_sums_of_a_class_are_those_of_its_devices_whatever_changes() -> None:
    participation = known()
    for number in range(1, 20):
        invited = [f"{kind}{number % 5}" for kind in "ab"]
        answers = [heard(device, float(number)) for device in invited if number % 3]
        changed = participation.after_round(
            number, invited, answers, {}, passed_s=60.0, deadline_passed=True
        )
        participation.adopt(changed)
    afresh = Participation(lambda device: device[:1], dict(participation.pasts))
    for device in ("a1", "b9", "c1"):
        assert participation.delivery_rate(device, 20) == pytest.approx(
            afresh.delivery_rate(device, 20)
        )
        assert participation.expected_s(device, 20) == pytest.approx(afresh.expected_s(device, 20))


# -- what may be expected ------------------------------------------------------------------------


def test_a_device_that_is_not_known_is_taken_to_be_like_its_class() -> None:
    participation = known(a1=Past(50, 10, 10, 0, 40, 300.0, 1), b1=Past(50, 50, 50, 0, 0, 20.0, 1))
    assert participation.expected_s("a2", 2) == 300.0
    assert participation.expected_s("b2", 2) == 20.0
    assert participation.expected_s("c2", 2) == 160.0
    assert participation.delivery_rate("a2", 2) < 0.4
    assert participation.delivery_rate("b2", 2) > 0.9


def test_of_nobody_anything_is_expected_that_was_not_measured() -> None:
    assert known().expected_s("a1", 1) is None
    assert known().delivery_rate("a1", 1) == pytest.approx(0.9)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_rates_are_probabilities(delivered: int, lost: int, last: int, now: int) -> None:
    past = Past(delivered + lost, delivered, 0, 0, lost, 1.0, last)
    assert 0.0 <= known(a=past).delivery_rate("a", now) <= 1.0


@given(
    st.dictionaries(st.sampled_from(["train_loss", "base_loss", "x"]), st.floats(allow_nan=True)),
    st.integers(-(10**18), 10**18),
)
def test_whatever_a_device_says_its_utility_is_bounded(
    metrics: dict[str, float], examples: int
) -> None:
    assert 0.0 <= utility_of(metrics, examples, 1_000) <= 1_000 * LOSS_MAX


def test_a_device_cannot_make_classes_without_end() -> None:
    classes = Classes()
    for number in range(10 * CLASSES_MAX):
        classes.enrol(f"d{number}", f"class-{number}")
    assert len({classes(f"d{n}") for n in range(10 * CLASSES_MAX)}) == CLASSES_MAX + 1
    assert classes("d0") == "class-0"
    assert classes(f"d{CLASSES_MAX}") == classes("stranger") == OTHER_CLASS


@pytest.mark.slow
def test_a_hundred_thousand_histories_are_a_few_megabytes() -> None:
    names = [f"{number:016x}" for number in range(100_000)]
    tracemalloc.start()
    pasts = {name: Past(5, 4, 3, 1, 0, 12.5, 900 + n % 9, 3.5, 900) for n, name in enumerate(names)}
    used, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pasts) == 100_000
    assert used < 35e6


# -- the store -----------------------------------------------------------------------------------


def test_histories_outlive_a_restart(tmp_path: Path) -> None:
    loopback = Loopback(
        tmp_path, count=6, rounds=Rounds(count=4, cohort=4, quorum=0.5, deadline_s=60.0)
    )
    loopback.start()
    loopback.play()
    before = loopback.coordinator.rounds.planner.participation
    assert sum(past.counted for past in before.pasts.values()) == 16
    loopback.coordinator.store.close()
    after = loopback.boot_coordinator().rounds.planner.participation
    assert after.pasts == before.pasts
    assert after.delivery_rate("x", 5) == pytest.approx(before.delivery_rate("x", 5))


def test_a_history_is_on_disk_with_the_end_of_its_round_or_not_at_all(tmp_path: Path) -> None:
    loopback = Loopback(
        tmp_path, count=5, rounds=Rounds(count=2, cohort=4, quorum=1.0, deadline_s=60.0)
    )
    loopback.start()
    for _ in range(2_000):
        if not loopback.deliver():
            break
        store = loopback.coordinator.store
        closed = sum(row["status"] != "open" for row in store.rounds())
        assert sum(past.counted for past in store.participation().values()) == 4 * closed


def test_a_file_of_the_first_schema_knows_afterwards_who_delivered(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    db = sqlite3.connect(path)
    db.executescript(_FIRST + "PRAGMA user_version=1;")
    for number, (device, counted) in enumerate([("a", 1), ("a", 0), ("b", 1)]):
        db.execute(
            "INSERT INTO updates VALUES (?, ?, ?, 0, 10, 10, 5, x'00', x'80', 1.0, 2.0, ?, 'c')",
            (bytes([number]), device, number + 1, counted),
        )
    db.commit()
    db.close()
    store = Store(path)
    assert store.participation() == {
        "a": Past(invited=2, delivered=2, counted=1, last_round=2),
        "b": Past(invited=1, delivered=1, counted=1, last_round=3),
    }
    store.close()
