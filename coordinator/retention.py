"""What a gateway lets go of, a little at a time, when a round is over: `[retention]`.

One step deletes a bounded number of rows, each kind in a transaction of its own, and says whether
there is more to do. What is open, released or newest is never touched.
"""

from typing import Final

from coordinator.config import Retention
from coordinator.store import Store

ROWS_AT_ONCE: Final = 500
INCIDENTS_MAX: Final = 10_000
_PAGES_AT_ONCE: Final = 2_000
_DAY_S: Final = 86_400.0


class Keeper:
    """Keeps a store to its bounds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def step(self, rules: Retention, latest: int, now_s: float) -> bool:
        """Let go of a little.

        Args:
            rules: how much is kept.
            latest: the newest version.
            now_s: unix seconds.

        Returns:
            Whether there may be more.

        Raises:
            DiskFullError: even deleting needs a little room.
        """
        store = self._store
        dropped = store.drop_deltas(latest, rules.versions, ROWS_AT_ONCE)
        if rules.ledger_days:
            before_s = now_s - rules.ledger_days * _DAY_S
            dropped += store.drop_lines(before_s, ROWS_AT_ONCE)
            dropped += store.drop_reports(before_s, latest, ROWS_AT_ONCE)
        dropped += store.drop_incidents(INCIDENTS_MAX)
        store.give_back_pages(_PAGES_AT_ONCE)
        return dropped > 0
