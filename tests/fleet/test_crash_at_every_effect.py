"""For small federations: stop after effect k, for every k, on either side; restart; look."""

from typing import Final

import pytest

from fleet.faults import GATEWAY, Event
from fleet.nemesis import Mode, Trial, try_seed

SAFETY: Final[tuple[Mode, ...]] = ("safety", "async_safety")
# A little more than there are: a crash makes some anew.
EFFECTS: Final = {GATEWAY: 180, 0: 80, 1: 80, 2: 80}
BLOCK: Final = 20
BLOCKS: Final = [
    (device, first) for device, last in EFFECTS.items() for first in range(1, last, BLOCK)
]


def small(mode: Mode, *events: Event) -> Trial:
    return try_seed(1, mode, events=events, devices=3, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", SAFETY)
@pytest.mark.parametrize(("device", "first"), BLOCKS)
def test_a_crash_between_any_two_effects_breaks_no_promise(
    device: int, first: int, mode: Mode
) -> None:
    for effect in range(first, first + BLOCK):
        crash = Event(kind="crash_at_effect", at_s=0.0, device=device, amount=float(effect))
        trial = small(mode, crash)
        assert trial.violation is None, f"effect {effect}: {trial.violation}"


@pytest.mark.parametrize("mode", SAFETY)
def test_the_small_federation_has_no_more_effects_than_are_tried(mode: Mode) -> None:
    trial = small(mode)
    assert trial.violation is None
    assert all(0 < have < EFFECTS[number - 1] for number, have in enumerate(trial.effects))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(1, 120, BLOCK))
def test_a_crash_in_the_middle_of_a_transfer_breaks_no_promise(first: int) -> None:
    for effect in range(first, first + BLOCK):
        crash = Event(kind="crash_at_effect", at_s=0.0, device=0, for_s=5.0, amount=float(effect))
        trial = small("transfers", crash)
        assert trial.violation is None, f"effect {effect}: {trial.violation}"
