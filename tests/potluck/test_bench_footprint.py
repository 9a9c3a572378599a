"""`potluck bench footprint` as its users meet it: the shape of its JSON, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import footprint
from benchmarks.footprint import Figure
from potluck.__main__ import main

FIELDS = {"part", "what", "measured", "unit", "limit", "note", "within"}


def test_the_json_has_each_figure_with_its_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(tell: footprint.Tell, *, quick: bool) -> list[Figure]:
        tell("looking")
        return [
            Figure("cpu", "idle CPU", 0.02, "%", 0.1, f"quick: {quick}"),
            Figure("cpu", "too much", 2.0, "%", 1.0),
            Figure("cpu", "naps", 0.5, "/s"),
        ]

    monkeypatch.setitem(footprint.PARTS, "cpu", measured)
    assert main(["bench", "footprint", "--part", "cpu", "--quick", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [set(one) for one in found["figures"]] == [FIELDS] * 3
    assert [one["within"] for one in found["figures"]] == [True, False, None]
    assert found["missed"] == ["too much"]
    assert found["quick"] is True
    assert set(found) == {"figures", "missed", "python", "quick", "wall_s"}
    assert "looking" in err
    assert main(["bench", "footprint", "--part", "cpu"]) == 0
    assert "1 of 2 limits missed: too much" in capsys.readouterr().out


def test_a_part_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "footprint", "--part", "battery"])
    assert ended.value.code == 2
    assert "invalid choice: 'battery'" in capsys.readouterr().err


@pytest.mark.live
@pytest.mark.timeout(120)
def test_without_a_package_index_one_line_says_what_the_install_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "potluck", "bench", "footprint", "--part", "install"],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (_progress, error) = done.stderr.strip().splitlines()
    assert "needs pip and a package index" in error


@pytest.mark.live
@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", ["import", "memory", "round", "resume"])
def test_a_part_keeps_its_limits(part: str) -> None:
    """Not the wall clock's, which other programs on the machine may take."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "potluck",
            "bench",
            "footprint",
            "--quick",
            "--json",
            "--part",
            part,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert {one["part"] for one in found["figures"]} == {part}
    assert set(found["missed"]) <= {"import edge_sdk beyond NumPy"}
