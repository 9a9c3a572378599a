"""For a small federation: stop after effect k, for every k, on either side; restart; look."""

import pytest

from fleet.faults import GATEWAY, Event
from fleet.nemesis import try_seed

EFFECTS = 110


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("device", [GATEWAY, 0])
@pytest.mark.parametrize("block", range(11))
def test_a_crash_between_any_two_effects_breaks_no_promise(device: int, block: int) -> None:
    for effect in range(1 + 10 * block, 11 + 10 * block):
        crash = Event(kind="crash_at_effect", at_s=0.0, device=device, amount=float(effect))
        trial = try_seed(1, "safety", events=[crash], devices=3, rounds=2)
        assert trial.violation is None, f"effect {effect}: {trial.violation}"


def test_the_small_federation_has_no_more_effects_than_are_tried() -> None:
    last = Event(kind="crash_at_effect", at_s=0.0, device=GATEWAY, amount=float(EFFECTS + 10_000))
    trial = try_seed(1, "safety", events=[last], devices=3, rounds=2)
    assert trial.violation is None
