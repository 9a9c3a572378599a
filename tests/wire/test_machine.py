from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import IllegalStepError, LocalProtocolError, Report, Rule, Table, advance, draw
from wire.machine import Step


class Phase(Enum):
    SHUT = "shut"
    OPEN = "open"
    BROKEN = "broken"


@dataclass(frozen=True)
class Door:
    phase: Phase = Phase.SHUT
    opened: int = 0


class Push:
    pass


class Kick:
    pass


class HardKick(Kick):
    pass


def _swing(door: Door, _event: Push, now_s: float) -> Step[Door]:
    if door.phase is Phase.OPEN:
        return replace(door, phase=Phase.SHUT), ()
    after = replace(door, phase=Phase.OPEN, opened=door.opened + 1)
    return after, (Report("opened", str(now_s)), Report("bell"))


def _break(door: Door, _event: Kick, _now_s: float) -> Step[Door]:
    return replace(door, phase=Phase.BROKEN), ()


def _stray(door: Door, _event: Kick, _now_s: float) -> Step[Door]:
    return replace(door, phase=Phase.SHUT), ()


TABLE: Table[Door] = {
    Phase.SHUT: {Push: Rule(_swing, (Phase.OPEN,)), Kick: Rule(_break, (Phase.BROKEN,))},
    Phase.OPEN: {Push: Rule(_swing, (Phase.SHUT,)), Kick: Rule(_stray, (Phase.OPEN,))},
}


def test_a_step_gives_the_next_record_and_its_effects_in_order() -> None:
    door = Door()
    after, effects = advance(TABLE, door, Push(), 2.5)
    assert after == Door(Phase.OPEN, 1)
    assert effects == (Report("opened", "2.5"), Report("bell"))
    assert door == Door()


@pytest.mark.parametrize(
    ("door", "event"),
    [
        (Door(Phase.BROKEN), Push()),
        (Door(Phase.BROKEN), Kick()),
        (Door(), object()),
        (Door(), Push),
        (Door(), None),
    ],
)
def test_what_the_table_lacks_is_illegal_and_changes_nothing(door: Door, event: object) -> None:
    with pytest.raises(IllegalStepError) as caught:
        advance(TABLE, door, event, 0.0)
    assert caught.value.phase is door.phase
    assert caught.value.event is event
    assert door.phase.name in str(caught.value)


def test_an_event_is_looked_up_by_its_very_type() -> None:
    with pytest.raises(IllegalStepError):
        advance(TABLE, Door(), HardKick(), 0.0)


def test_an_action_that_leaves_its_row_is_a_bug() -> None:
    with pytest.raises(LocalProtocolError, match="Kick led from OPEN to SHUT") as caught:
        advance(TABLE, Door(Phase.OPEN), Kick(), 0.0)
    assert not isinstance(caught.value, IllegalStepError)


@given(st.lists(st.sampled_from([Push, Kick]), max_size=20))
def test_no_walk_leaves_the_table(walk: list[Callable[[], object]]) -> None:
    door = Door()
    for make in walk:
        event, before = make(), door
        try:
            door, _ = advance(TABLE, door, event, 0.0)
        except LocalProtocolError:
            assert door is before
            continue
        assert door.phase in TABLE[before.phase][type(event)].to


def test_the_drawing_has_every_arrow_but_loops() -> None:
    assert draw(TABLE).splitlines() == [
        "stateDiagram-v2",
        "    SHUT --> OPEN: Push",
        "    SHUT --> BROKEN: Kick",
        "    OPEN --> SHUT: Push",
    ]
