from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.__main__ import main
from tests.support.http_api import Api

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one


@pytest.fixture
def state(tmp_path: Path) -> str:
    """Of a federation at its end: versions 0 to 3, of which 3 is stable."""
    return str(Api(tmp_path).play().desk.state_dir)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["model", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_list_marks_aliases_and_what_is_kept(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(capsys, "list", state)
    lines = out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2", "3"]
    assert lines[-1].split()[-2:] == ["yes", "stable"]
    assert lines[2].split()[-1] == "-"


def test_show_says_where_a_version_comes_from_and_who_released_it(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = said(capsys, "show", state, "stable")
    assert "version 3, from version 2, round 3" in out
    assert "promote by run_over" in out
    assert "the task's own" in said(capsys, "show", state, "0")[1]


def test_promote_and_rollback_say_what_was_before(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "promote", state, "2")[1] == "stable is version 2, before it was 3\n"
    assert "already; nothing was changed" in said(capsys, "promote", state, "2")[1]
    assert said(capsys, "rollback", state)[1] == "stable is version 3, before it was 2\n"


def test_a_candidate_is_promoted_by_its_name(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "promote", state, "2", "--alias", "candidate")
    assert said(capsys, "promote", state, "candidate")[1].startswith("stable is version 2")


def test_export_writes_what_numpy_reads_and_overwrites_nothing(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.npz"
    assert said(capsys, "export", state, "3", "-o", str(output))[0] == 0
    with np.load(output) as arrays:
        assert all(array.dtype == np.float32 for array in arrays.values())
    status, _, error = said(capsys, "export", state, "3", "-o", str(output))
    assert (status, error) == (
        1,
        f"potluck: {output}: exists already; choose another file\n",
    )
    assert [path.name for path in tmp_path.glob(".model*")] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "STATE", "9"], "version 9: no such version; the latest is 3"),
        (["show", "STATE", "best"], "'best' is no version: write its number, or stable or cand"),
        (["show", "STATE", "-1"], "'-1' is no version"),
        (["show", "STATE", "²"], "is no version"),
        (["show", "STATE", "9" * 40], "no such version"),
        (["show", "STATE", "candidate"], "candidate: no version was ever promoted to it"),
        (["promote", "STATE", "1"], "version 1: its tensors are no longer kept; these versions'"),
        (["export", "STATE", "1"], "no longer kept"),
        (["rollback", "STATE"], "stable: version 3 is the first; nothing was before it"),
        (["rollback", "STATE", "--alias", "candidate"], "candidate: nothing was ever promoted"),
        (["list", "nowhere"], "nowhere: no coordinator here"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_what_can(
    state: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = [state if word == "STATE" else word for word in arguments]
    status, out, error = said(capsys, *words)
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert says in error
