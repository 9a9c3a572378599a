"""Virtual time: a heap of events and a stream of chance, and nothing else that could surprise.

Everything in a world happens in an event, one after the other. Events of the same time happen in
the order in which they were planned. A world's *trace* is a digest of every event's time and name:
the same seed gives the same trace, in any process, on any machine.
"""

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Final

_MICROSECOND: Final = 6


class World:
    """Time, chance, and what is planned.

    Args:
        seed: of every choice that is made in this world.
    """

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.events = 0
        self.after_event: Callable[[], None] = lambda: None
        self.tell: Callable[[World, str], None] | None = None
        # Names of the hosts that have done something since somebody last looked, for checkers.
        self.stirred: dict[str, None] = {}
        # Only `random()` is used: that stream is the same in every version of Python.
        self._chance = random.Random(seed)  # noqa: S311 - a simulation's dice, not a key
        self._heap: list[tuple[float, int, str, Callable[[], None]]] = []
        self._planned = 0
        self._trace = hashlib.sha256()

    # -- chance ------------------------------------------------------------------------------

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * self._chance.random()

    def below(self, count: int) -> int:
        """A whole number from 0 to `count` - 1."""
        return min(int(self._chance.random() * count), count - 1)

    # -- time --------------------------------------------------------------------------------

    def after(self, delay_s: float, name: str, action: Callable[[], None]) -> None:
        """Plan an event."""
        self._planned += 1
        at_s = round(self.now_s + max(delay_s, 0.0), _MICROSECOND)
        heapq.heappush(self._heap, (at_s, self._planned, name, action))

    def run(self, until_s: float, *, over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass to `until_s`, or until `over()`, asked after every event."""
        while self._heap and self._heap[0][0] <= until_s:
            at_s, _number, name, action = heapq.heappop(self._heap)
            self.now_s = at_s
            self.events += 1
            self._trace.update(f"{at_s:.6f} {name}\n".encode())
            if self.tell is not None:
                self.tell(self, name)
            action()
            self.after_event()
            if over():
                return
        self.now_s = max(self.now_s, until_s)

    @property
    def trace_digest(self) -> str:
        """SHA-256 (hex) of everything that has happened."""
        return self._trace.copy().hexdigest()
