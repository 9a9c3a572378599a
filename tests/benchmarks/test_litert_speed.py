"""`potluck bench litert`: that it runs, and what it says."""

import json

import pytest

from potluck.__main__ import main


@pytest.mark.live
def test_a_quick_run_has_every_contestant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "litert", "--part", "speed", "--quick", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["speed"]
    names = {(row["model"], row["by"]) for row in table["rows"]}
    assert {("mlp", "NumpyTrainer"), ("cnn", "LiteRTTrainer"), ("cnn", "bare interpreter")} <= names
    assert not table["tensorflow"]
    speeds = {(row["model"], row["by"]): row["against"] for row in table["rows"]}
    # Others use this machine; the figures that count are those of a run without --quick.
    assert speeds["mlp", "LiteRTTrainer"]["bare interpreter"] > 0.7
    assert table["author_s"] < 3.0
    assert table["devices_s"] < 3.0


@pytest.mark.live
def test_adapters_send_far_less_than_all_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "litert", "--part", "lora", "--quick", "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out)["lora"]
    assert case["same_cohorts"]
    assert case["parameter_ratio"] >= 20.0
    assert case["byte_ratio"] > 10.0
    assert case["adapters"]["accuracy"][0] > case["before"]
