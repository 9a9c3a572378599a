"""The benchmark of asynchronous rounds: what it calls reached, and that it runs."""

import msgspec
import pytest

from benchmarks import asynchrony
from benchmarks.asynchrony import FILE, async_table, line, reached_at_s, run
from coordinator import load_config


def test_one_lucky_round_is_not_the_target() -> None:
    measured = [(1.0, 0.5), (2.0, 0.95), (3.0, 0.6), (4.0, 0.9), (5.0, 0.9), (6.0, 0.9), (7.0, 1.0)]
    assert reached_at_s(measured, 0.9) == 6.0
    assert reached_at_s(measured, 0.99) is None
    assert reached_at_s(measured[:2], 0.1) is None


def test_the_file_that_is_named_is_committed_and_asynchronous() -> None:
    assert load_config(FILE).rounds.mode == "async"


@pytest.mark.slow
@pytest.mark.parametrize("mode", asynchrony.MODES)
def test_a_small_fleet_reaches_an_easy_target(mode: asynchrony.Mode) -> None:
    config = load_config(FILE)
    rounds = msgspec.structs.replace(config.rounds, mode=mode, cohort=5, count=6)
    course = run(msgspec.structs.replace(config, rounds=rounds), 30, 1, 0.3)
    assert course.hours is not None
    assert course.training_h > 0.0
    assert f"seed 1  {mode}" in line(course)


def test_the_table_puts_the_modes_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def quickly(config: object, devices: int, seed: int, target: float) -> asynchrony.Course:
        mode = config.rounds.mode  # type: ignore[attr-defined] # a FederationConfig
        hours = None if seed == 2 else {"sync": 6.0, "async": 2.0}[mode]
        return asynchrony.Course(mode, seed, hours, devices, 1, 1, target, 0.0, 0.5, 0.0)

    monkeypatch.setattr(asynchrony, "run", quickly)
    told: list[asynchrony.Course] = []
    table = async_table(quick=False, tell=told.append)
    assert table["sooner"] == [3.0, 3.0, None]
    assert len(told) == 6
    assert "not reached" in line(told[-1])
