"""Worlds whose devices have their model from the coordinator keep every promise, too."""

from typing import Final

import pytest

from edge_sdk import newcomer
from edge_sdk.newcomer import Newcomer
from fleet.faults import Event
from fleet.nemesis import MODES, Mode, try_seed

DEVICE: Final = 1
# A little more than a device has from its start to the end.
EFFECTS: Final = 100
BLOCK: Final = 20


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_breaks_no_promise_is_broken(seed: int, mode: Mode) -> None:
    assert try_seed(seed, mode, described=True).violation is None


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, EFFECTS, BLOCK))
def test_a_crash_between_any_two_effects_of_a_device_breaks_no_promise(first: int) -> None:
    for effect in range(first, first + BLOCK):
        crash = Event(kind="crash_at_effect", at_s=0.0, device=DEVICE, amount=float(effect))
        trial = try_seed(1, "safety", events=[crash], devices=3, rounds=2, described=True)
        assert trial.violation is None, f"effect {effect}: {trial.violation}"


@pytest.mark.slow
def test_a_device_has_no_more_effects_than_are_tried() -> None:
    trial = try_seed(1, "safety", events=[], devices=3, rounds=2, described=True)
    assert trial.violation is None
    assert 0 < trial.effects[1 + DEVICE] < EFFECTS


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trace() -> None:
    one, two = (try_seed(3, "safety", described=True) for _ in range(2))
    assert one.trace_digest == two.trace_digest


@pytest.mark.slow
def test_the_nemesis_notices_a_newcomer_that_asks_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(newcomer, "ANSWER_S_MAX", 1e9)
    monkeypatch.setattr(newcomer, "ANSWER_S_MIN", 1e9)
    monkeypatch.setattr(Newcomer, "on_link_up", _asks_nothing)
    assert any(try_seed(seed, "safety", described=True).violation for seed in range(2))


def _asks_nothing(self: Newcomer, _packet_bytes_max: int, _now_s: float) -> None:
    self._chunk_bytes = 1_000
