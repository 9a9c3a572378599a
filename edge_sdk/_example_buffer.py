"""What waits for the disk, bounded in bytes and in examples: the oldest is dropped when full."""

import itertools
import threading
from collections import deque
from typing import Final, NamedTuple

BUFFER_BYTES_MAX: Final = 4 << 20
BUFFER_EXAMPLES_MAX: Final = 4_096


class Waiting(NamedTuple):
    """An example that is in no file yet. `lived_s` is the boot clock since the store was made."""

    lived_s: float
    at_s: float
    group: str | None
    data: bytes


class Buffer:
    """Taken from and put into by any thread; its lock is held for moments.

    Args:
        example_bytes: length of one example's bytes.
    """

    def __init__(self, example_bytes: int) -> None:
        self.examples_max = max(min(BUFFER_BYTES_MAX // example_bytes, BUFFER_EXAMPLES_MAX), 1)
        self.dropped = 0
        self.closed = False
        self._waiting: deque[Waiting] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, example: Waiting) -> int:
        """Add one; returns how many wait now, 0 when the buffer is closed."""
        with self._lock:
            if self.closed:
                return 0
            self._waiting.append(example)
            self._bound()
            return len(self._waiting)

    def take(self) -> deque[Waiting]:
        """All that waits; it waits no longer."""
        with self._lock:
            taken, self._waiting = self._waiting, deque()
            return taken

    def put_back(self, examples: deque[Waiting]) -> None:
        """What could not be written waits again, before what has come meanwhile."""
        with self._lock:
            if examples and not self.closed:
                examples.extend(self._waiting)
                self._waiting = examples
                self._bound()

    def close(self) -> None:
        """Take nothing any more."""
        with self._lock:
            self.closed = True

    def _bound(self) -> None:
        while len(self._waiting) > self.examples_max:
            self._waiting.popleft()
            self.dropped += 1


def first(waiting: deque[Waiting], count: int) -> list[Waiting]:
    """The oldest of them."""
    return list(itertools.islice(waiting, count))
