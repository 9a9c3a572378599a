"""docs/how-to/monitor.md and models.md say what the API, the metrics and the commands give."""

import json
import re
from pathlib import Path

import pytest

from coordinator.http import METRICS, ROUTES
from coordinator.http._app import _WORDS
from coordinator.registry import ALIASES, RELEASES_KEPT
from potluck.__main__ import main
from tests.support.http_api import Api

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
MONITOR = (HOW_TO / "monitor.md").read_text(encoding="utf-8")
MODELS = (HOW_TO / "models.md").read_text(encoding="utf-8")
COMMAND_LINE = (HOW_TO / "command-line.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of the table that begins a text, without its head."""
    table = text.lstrip().partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return cells[2:]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def after(mark: str) -> str:
    return MONITOR.partition(f"<!-- {mark} -->\n")[2]


def section(command: str) -> str:
    return COMMAND_LINE.partition(f"## {command}\n")[2].partition("\n## ")[0]


def test_every_route_is_there_and_no_other() -> None:
    for mark, method in (("routes: read", "GET"), ("routes: write", "POST")):
        stated = [row[0].strip("`") for row in rows(after(mark))]
        assert stated == [route.path for route in ROUTES if route.method == method]


def test_every_body_is_there_with_its_fields_and_defaults() -> None:
    stated = {row[0].strip("`"): row[1] for row in rows(after("routes: write"))}
    for route in ROUTES:
        if route.writes:
            body = route.body
            fields = [] if body is None else [x for n in body.__struct_fields__ for x in
                                              (n, getattr(body(), n))]  # fmt: skip
            assert quoted(stated[route.path]) == fields, route.path


def test_every_metric_is_there_with_kind_labels_and_what_it_is() -> None:
    assert rows(after("metrics")) == [
        [
            f"`{metric.name}`",
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.says,
        ]
        for metric in METRICS
    ]


def test_alerts_name_metrics_that_exist() -> None:
    named = set(re.findall(r"potluck_[a-z_]+", MONITOR))
    assert named <= {metric.name for metric in METRICS}


def test_every_error_is_there() -> None:
    stated = {
        int(status): row[1].strip("`")
        for row in rows(MONITOR.partition("and `detail`, a sentence:\n")[2])
        for status in row[0].split(",")
    }
    for status, word in _WORDS.items():
        assert stated[status] == word


def test_every_alias_is_there_and_how_far_back_it_goes() -> None:
    assert [row[0].strip("`") for row in rows(MODELS.partition("none yet.\n")[2])] == list(ALIASES)
    assert "up to five steps" in MODELS
    assert RELEASES_KEPT == 5


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("list", []),
        ("show", ["2"]),
        ("promote", ["2"]),
        ("rollback", []),
        ("export", ["stable"]),
    ],
)
def test_every_field_that_a_model_command_prints_is_there(
    tmp_path: Path, command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api(tmp_path).play()
    if command == "rollback":
        api.loopback.coordinator.registry.promote(2, now_s=1.0)
    assert main(["model", command, str(api.desk.state_dir), *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    text = section(f"potluck model {command}")
    for other in ("list", "promote"):
        if f"`potluck model {other}`" in text:
            text += section(f"potluck model {other}")
    if command in {"promote", "rollback"}:
        text += section("potluck model show")
    fields = set(printed) | {field for row in printed.get("versions", []) for field in row}
    assert fields <= set(quoted(text))
