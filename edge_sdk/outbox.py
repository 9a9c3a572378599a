"""The sealed update on its way up: which chunks are still to be sent, and which not again.

An answer to an offer says which chunks had arrived when the offer did. What was sent after the
offer may be on its way still, and is not sent again before the next one: a connection keeps order,
so whatever was sent before an offer and is not in its answer is lost.
"""

from collections.abc import Iterator
from typing import Final

from edge_sdk.signals import SendChunks
from wire import chunk_count, limits
from wire.chunks import missing

# A link that breaks loses what was under way. Of an update of many chunks that is this part at the
# most, whatever the link could carry.
_LOST_SHARE: Final = 12
_UNDER_WAY_MIN: Final = 2


def under_way_max(count: int) -> int:
    """How many of `count` chunks may be sent and not acknowledged."""
    return min(max(count // _LOST_SHARE, _UNDER_WAY_MIN), limits.CHUNKS_IN_FLIGHT_MAX)


class Outbox:
    """Chunks of one update; empty before `begin` and after the last.

    Attributes:
        update_id: whose.
        chunk_bytes: their size.
        under_way_max: how many may be sent and not acknowledged.
        under_way_bytes_max: and how many bytes that is.
    """

    def __init__(self) -> None:
        self.update_id = b""
        self.chunk_bytes = 0
        self.under_way_max = 0
        self.under_way_bytes_max = 0
        self._left: Iterator[int] = iter(())
        self._next: int | None = None
        self._sent: set[int] = set()

    @property
    def waits(self) -> bool:
        """Whether something is to be sent."""
        return self._next is not None

    def offered(self) -> None:
        """An offer leaves: what its answer lacks of all before has not arrived."""
        self._sent.clear()

    def begin(self, order: SendChunks, payload_bytes: int) -> None:
        """Send what is missing, but for what has left since the last offer."""
        if (order.update_id, order.chunk_bytes) != (self.update_id, self.chunk_bytes):
            self._sent.clear()
        self.update_id, self.chunk_bytes = order.update_id, order.chunk_bytes
        count = chunk_count(payload_bytes, order.chunk_bytes)
        self.under_way_max = under_way_max(count)
        self.under_way_bytes_max = min(self.under_way_max * order.chunk_bytes, payload_bytes)
        self._left = missing(order.received, count)
        self._advance()

    def take(self) -> int:
        """The next chunk's index; it counts as sent."""
        index = self._next
        if index is None:
            raise IndexError("nothing waits")
        self._sent.add(index)
        self._advance()
        return index

    def _advance(self) -> None:
        self._next = next((index for index in self._left if index not in self._sent), None)

    def link_lost(self) -> None:
        """What waits is asked for again when the link is back; what was under way is lost."""
        self._left, self._next = iter(()), None
        self._sent.clear()

    def done(self, update_id: bytes) -> None:
        """The update is stored, or forgotten: nothing of it is to be sent."""
        if update_id == self.update_id:
            self.link_lost()
