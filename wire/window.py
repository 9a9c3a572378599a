"""How much may be under way on a link: a window that grows by ones and shrinks by halves.

What is published and not acknowledged is in memory here and lost when the link breaks, so it should
be no more than keeps the link busy. That is a matter of time: while acknowledgements come within a
second there is room for more, and when one takes two, bytes only wait in a queue. On a slow link a
single chunk takes that long, and the window is one chunk; next to the broker it is as large as the
broker allows.

    Additive increase, multiplicative decrease: Chiu and Jain, "Analysis of the Increase and
    Decrease Algorithms for Congestion Avoidance in Computer Networks" (1989), section 3.
"""

from typing import Final

from wire import limits

QUICK_S: Final = 1.0
SLOW_S: Final = 2.0
_START: Final = 2.0


class Window:
    """A number of publications, by what became of those before.

    No clock and no link: whoever has them says how long an acknowledgement took.
    """

    def __init__(self) -> None:
        self._most = limits.CHUNKS_IN_FLIGHT_MAX
        self._size = _START
        self._spared = 0

    @property
    def size(self) -> int:
        """How many may be under way, 1 to `limits.CHUNKS_IN_FLIGHT_MAX`."""
        return max(1, int(min(self._size, self._most)))

    def allow(self, receive_maximum: int) -> None:
        """A connection is there, and its server takes so many at once (MQTT 5.0, 3.2.2.3.3)."""
        self._most = max(1, min(receive_maximum, limits.CHUNKS_IN_FLIGHT_MAX))
        self._size = min(self._size, float(self._most))
        self._spared = 0

    def taken(self, waited_s: float, under_way: int) -> None:
        """One was acknowledged.

        Args:
            waited_s: since it was published.
            under_way: how many there were, this one included; a window that is not used up says
                nothing about a larger one.
        """
        self._spared = max(self._spared - 1, 0)
        if waited_s > SLOW_S:
            self._shrink()
        elif waited_s <= QUICK_S and under_way >= self.size:
            self._size = min(self._size + 1.0 / self.size, float(self._most))

    def lost(self) -> None:
        """The link broke, and what was under way is lost."""
        self._spared = 0
        self._shrink()

    def _shrink(self) -> None:
        # Those that were under way by then took as long for the same reason: once for all of them.
        if not self._spared:
            self._spared = self.size
            self._size = max(self._size / 2.0, 1.0)
