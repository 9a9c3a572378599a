"""How far a federation has come: the file in force, its rounds so far, and what they have cost."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from coordinator import sizing
from coordinator.config import FederationConfig
from coordinator.epochs import Numbering
from coordinator.headroom import Headroom
from coordinator.store import Store
from wire import Report

BYTE_BUDGET_SPENT: Final = "byte_budget_spent"


class Course:
    """The rounds and the bytes of one federation.

    Args:
        config: the federation's file.
        store: where both are written down.
        headroom: whether there is room on the disk.
        traffic: (sent, received) bytes of this process so far.
        observe: told when the byte budget is spent.

    Attributes:
        config: the file that is in force.
        last_round: the number of the round that was opened last.
        ended: why the federation is over before its last round; empty while it is not.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        store: Store,
        headroom: Headroom,
        traffic: Callable[[], tuple[int, int]],
        observe: Callable[[Report], None],
    ) -> None:
        self.config = config
        self.last_round = store.last_round()
        self.ended = ""
        self._store = store
        self._headroom = headroom
        self._traffic = traffic
        self._observe = observe
        self._numbering = Numbering.read(store)
        # Sent and received: up to the last round's end, and in this one before a restart.
        self._traffic_before = (0, 0)
        self._traffic_carried = (0, 0)
        closed_bytes = store.closed_bytes()
        self._closed_bytes = sum(closed_bytes)
        self._last_bytes = deque(closed_bytes, maxlen=sizing.BUDGET_ROUNDS)

    # -- rounds ------------------------------------------------------------------------------

    @property
    def next_round(self) -> int:
        """The number of the round that opens next."""
        return self._numbering.next_round(self.last_round)

    @property
    def all_done(self) -> bool:
        """Whether the last round has been opened."""
        return self.is_last(self.last_round)

    def is_last(self, round_number: int) -> bool:
        """Whether no round follows this one."""
        return self._numbering.rounds_done(round_number) >= self.config.rounds.count

    # -- bytes -------------------------------------------------------------------------------

    @property
    def spent_bytes(self) -> int:
        """What the coordinator has sent and received, over restarts too."""
        return self._closed_bytes + sum(self._round_traffic())

    def can_pay(self) -> bool:
        """Whether the federation's byte budget has room for another round; said when it has not."""
        bytes_max, spent = self.config.rounds.bytes_max, self.spent_bytes
        if sizing.budget_allows(bytes_max, spent, self._last_bytes):
            self.ended = ""
        elif not self.ended:
            self.ended = BYTE_BUDGET_SPENT
            self._observe(
                Report(
                    BYTE_BUDGET_SPENT,
                    f"{spent} bytes of {bytes_max} are spent and another round may not fit; raise"
                    " [rounds] bytes_max to go on",
                )
            )
        return not self.ended

    def recall(self, round_number: int) -> None:
        """A round goes on that an earlier run opened."""
        self._traffic_carried = self._store.traffic(round_number)

    def note_traffic(self, round_number: int) -> None:
        """Write down what the open round has cost so far, for whoever starts after a crash."""
        self._store.note_traffic(round_number, *self._round_traffic())

    def round_over(self, round_number: int, declines: Mapping[str, str]) -> None:
        """Write down what a report wants to know of a round that is over."""
        sent, received = self._round_traffic()
        with self._headroom.or_not(), self._store.transaction():
            self._store.note_declines(round_number, declines)
            self._store.note_traffic(round_number, sent, received)
        self._closed_bytes += sent + received
        self._last_bytes.append(sent + received)
        self._traffic_before, self._traffic_carried = self._traffic(), (0, 0)

    def _round_traffic(self) -> tuple[int, int]:
        """Sent and received since the last round ended."""
        (sent, received), (sent_0, received_0) = self._traffic(), self._traffic_before
        carried = self._traffic_carried
        return carried[0] + sent - sent_0, carried[1] + received - received_0
