import numpy as np
import pytest

from benchmarks.secagg_rounds import AdaptiveClip, Words, main, run_unweighted
from benchmarks.workloads import Workload, workload


@pytest.fixture(scope="module")
def task() -> Workload:
    return workload("digits-mlp", 0)


def test_with_all_kept_and_many_levels_only_clipping_is_lost(task: Workload) -> None:
    clipped = run_unweighted(task, None, AdaptiveClip(), seed=1, rounds=2)
    summed = run_unweighted(task, Words(24, 1.0), AdaptiveClip(), seed=1, rounds=2)
    for name, values in clipped.tensors.items():
        np.testing.assert_allclose(summed.tensors[name], values, atol=1e-4)


def test_accuracy_rises_with_a_seventh_of_the_coordinates(task: Workload) -> None:
    result = run_unweighted(task, Words(6, 0.14), seed=0, rounds=5)
    assert result.accuracy[-1] > task.accuracy(task.initial) + 0.1
    words = -(-14 * task.schema.parameters // 100)
    assert result.uplink_bytes.tolist() == [task.cohort * -(-words * 6 // 8)] * 5


def test_the_clip_norm_finds_its_quantile() -> None:
    clip = AdaptiveClip(clip_norm=50.0, quantile=0.8, rate=0.5)
    norms = np.linspace(0.1, 1.0, 10)
    for _round in range(100):
        clip.follow(int((norms <= clip.clip_norm).sum()), len(norms))
    assert 0.7 <= clip.clip_norm <= 0.9


def test_a_modulus_without_room_for_the_cohort_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--workload", "A", "--bits", "4", "--keep", "1", "--seeds", "1", "--rounds", "1"]
    assert main(arguments) == 2
    assert "no room for 10 devices" in capsys.readouterr().err


def test_the_table_has_a_line_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--workload", "A", "--bits", "8", "--keep", ".1", "--seeds", "2", "--rounds", "1"]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + 1
