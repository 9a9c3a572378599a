import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gateway_process import RoundSeen, environment
from benchmarks.round_floors import sum_s
from benchmarks.round_task import DIGITS_SCHEMA, QuickTask
from benchmarks.rounds import SETTINGS, RoundRow, federation_toml, lines
from coordinator import load_config
from edge_sdk import DeviceInfo, Model
from wire import Plan


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("part", SETTINGS)
def test_every_setting_makes_a_federation_file_that_loads(
    tmp_path: Path, part: str, *, quick: bool
) -> None:
    for setting in SETTINGS[part](quick=quick):
        path = tmp_path / "federation.toml"
        path.write_text(federation_toml(setting))
        config = load_config(path)
        assert config.rounds.to_invite <= setting.devices
        assert setting.parameters in (DIGITS_SCHEMA.parameters, 1_000_000)


def test_each_round_brings_another_update_of_the_same_strength() -> None:
    task = QuickTask(DIGITS_SCHEMA)
    trainer, model = task.trainer(DeviceInfo(index=3)), Model(0, task.model().tensors)
    first, second = (
        trainer.train(model, Plan(seed=seed), stop=lambda: False).tensors["w0"] for seed in (1, 2)
    )
    assert (first != second).any()
    assert abs(first).sum() == pytest.approx(abs(second).sum(), rel=1e-5)
    assert (
        task.trainer(DeviceInfo(index=11))
        .train(model, Plan(seed=1), stop=lambda: False)
        .tensors["w0"]
        .tobytes()
        == first.tobytes()
    )


def test_a_row_is_a_line_and_a_floor_takes_time() -> None:
    spread = (1.0, 0.5, 2.0)
    row = RoundRow(
        "processes", "auto", 32, 32, 10**6, 5, spread, spread, 1.0, 0.3, 1.8, 0.05, 0.1,
        10**8, 10**8, 10**6, 10**6, 0.01, 0.02,
    )  # fmt: skip
    head, line = lines([row])
    assert len(head) == len(line)
    assert "1.00 (0.50-2.00)" in line
    assert sum_s(2, 1_000) > 0.0
    assert RoundSeen(1, 0.0).mark is None


@pytest.mark.slow
@pytest.mark.live
@pytest.mark.timeout(120)
def test_a_quick_benchmark_of_rounds_runs_to_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "potluck", "bench", "round", "--quick", "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert [row["part"] for row in made["rounds"]] == list(SETTINGS)
    for row in made["rounds"]:
        assert 0.0 < row["round_s"][0] <= row["cycle_s"][0] < 20.0
        assert row["coordinator_cpu_s"] > 0.0
        assert row["up_bytes"] > row["cohort"] * 100
        assert row["rss_peak_bytes"] < 150 * 2**20
    assert 0.0 < made["restart"]["ready_s"] < 10.0
