"""Every seed that has ever found a bug, played again."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet.faults import Event
from fleet.nemesis import try_seed

BUGS: list[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("track_record.toml").read_text(encoding="utf-8")
)["bug"]


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug['mode']}-{bug['seed']}")
def test_a_bug_that_was_found_stays_away(bug: dict[str, Any]) -> None:
    assert bug["cause"]
    events = msgspec.convert(bug.get("events"), type=tuple[Event, ...] | None)
    assert try_seed(bug["seed"], bug["mode"]).violation is None
    assert try_seed(bug["seed"], bug["mode"], events=events).violation is None
