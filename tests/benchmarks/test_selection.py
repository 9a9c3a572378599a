"""The comparison of policies: its arithmetic, and that the file which it names is as it says."""

from typing import Any

import msgspec
import pytest

from benchmarks.selection import (
    DEVICES,
    TARGETS,
    VARIANTS,
    config_for,
    play,
    summary,
    table,
    task,
    to_target_s,
)
from insight import RoundRecord, RunRecord, Totals


def run_of(accuracies: list[float], **totals: Any) -> RunRecord:
    empty: dict[str, Any] = {
        field.name: 0 for field in msgspec.structs.fields(Totals) if field.required
    }
    rounds = tuple(
        RoundRecord(n + 1, "committed", 22, 20, accuracy, 1.0, 0, 0, None, 300.0)
        for n, accuracy in enumerate(accuracies)
    )
    return RunRecord("d", "t", 1, 1, "auto", "auto", rounds, Totals(**(empty | totals)))


def test_time_to_accuracy_is_that_of_five_rounds_and_not_of_a_lucky_one() -> None:
    run = run_of([0.5, 0.9, 0.5, 0.5, 0.5, 0.5, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert to_target_s(run, 900.0, 0.8) == 10 * 900.0 + 300.0
    assert to_target_s(run, 900.0, 0.81) is None
    # A round that lasts longer than the interval delays the next one.
    assert to_target_s(run, 100.0, 0.8) == 10 * 300.0 + 300.0


def test_a_line_says_how_many_times_fewer_than_the_baseline() -> None:
    run = run_of([0.9] * 6, wasted_device_s=50.0, device_s=200.0)
    row = summary("availability", [run], 150.0)
    assert (row.wasted_by_baseline, row.wasted_share) == (3.0, 0.25)
    assert list(row.to_target_s) == [f"{target:g}" for target in TARGETS]
    lines = table([row]).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_variants_differ_by_policy_and_over_selection_alone() -> None:
    first = config_for("random", adapt=False)
    for _name, policy, adapt in VARIANTS:
        other = config_for(policy, adapt=adapt)
        assert other.rounds == first.rounds
        assert other.fleet == first.fleet
    assert task.model().flops_per_example is not None


@pytest.mark.slow
def test_availability_wastes_less_than_random_within_an_evening() -> None:
    wasted = {
        policy: play(policy, 1, adapt=adapt, rounds=14, devices=DEVICES // 2).totals.wasted_device_s
        for policy, adapt in (("random", False), ("availability", True))
    }
    assert wasted["random"] is not None
    assert wasted["availability"] is not None
    assert wasted["availability"] < wasted["random"]
