"""What rounds leave of their devices: histories on disk, and the planner's memory of them."""

from typing import Final

from coordinator.current import CurrentRound
from coordinator.participation import Past
from coordinator.planner import Planner
from coordinator.store import Store

# What comes later than this after its round opened says nothing of how long training takes.
LATE_S_MAX: Final = 86_400.0


class History:
    """Writes histories down first, and remembers them then.

    Args:
        store: where they are.
        planner: who remembers them.
        current: the round that ends.
    """

    def __init__(self, store: Store, planner: Planner, current: CurrentRound) -> None:
        self._store = store
        self._planner = planner
        self._current = current
        self._rejected = 0

    def note_round(self, now_s: float) -> dict[str, Past]:
        """Write the histories that the round changes, in the transaction that ends it."""
        opened, declines = self._current.opened, self._current.declines
        heard = self._store.heard_in(opened)
        # Of a buffer's devices those count that are back: the others are still at work.
        invited = (
            {each.device for each in heard} | set(declines)
            if self._current.fills_buffer
            else opened.invited
        )
        changed = self._planner.participation.after_round(
            opened.round,
            invited,
            heard,
            declines,
            passed_s=max(now_s - opened.opened_at_s, 0.0),
            deadline_passed=now_s >= opened.deadline_at_s,
        )
        self._rejected = sum(not each.honest for each in heard)
        self._store.note_participation(changed)
        return changed

    def adopt_round(self, changed: dict[str, Past], counted: list[str]) -> None:
        """Remember what is on disk."""
        there = self._current.opened.there
        self._planner.round_closed(changed, there, counted, self._rejected)

    def note_too_slow(self, device: str, round_number: int) -> None:
        """A device has had the whole of a round that is over, and was not done."""
        opened = self._store.round_opened(round_number)
        if opened is None or device not in opened.invited:
            return
        whole_s = opened.deadline_at_s - opened.opened_at_s
        self._note(self._planner.participation.after_too_slow(device, whole_s))

    def note_late(self, device: str, round_number: int, now_s: float) -> None:
        """An update came when its round was over: at least it is known how long it took."""
        opened = self._store.round_opened(round_number)
        after_s = 0.0 if opened is None else now_s - opened.opened_at_s
        if not 0.0 < after_s <= LATE_S_MAX:
            return  # of another clock, or of another day
        self._note(self._planner.participation.after_late(device, after_s))

    def _note(self, changed: dict[str, Past]) -> None:
        self._store.note_participation(changed)
        self._planner.participation.adopt(changed)
