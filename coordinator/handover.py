"""A queue between the link's thread and the loop, bounded in bytes as well as in number.

A frame may be a hundred bytes or a whole packet; bounded in number alone, what a slow disk leaves
waiting here is hundreds of megabytes. A full queue makes the link's thread wait, which holds the
broker back.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

Action: TypeAlias = Callable[[float], None]


class Handover:
    """First in, first out, from any thread to one.

    Args:
        items_max: how many may wait.
        bytes_max: how many bytes may wait; one item may be larger and waits alone.
    """

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._items: deque[tuple[Action, int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._went = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait."""
        return self._bytes

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._items_max and self._bytes + size_bytes <= self._bytes_max

    def put(self, action: Action, *, size_bytes: int = 0, timeout_s: float = 0.0) -> bool:
        """Hand over; False when there was no room within `timeout_s`."""
        with self._lock:
            if not self._went.wait_for(lambda: self._has_room(size_bytes), timeout_s):
                return False
            self._items.append((action, size_bytes))
            self._bytes += size_bytes
            self._came.notify()
            return True

    def take(self, timeout_s: float = 0.0) -> Action | None:
        """The oldest, or None when nothing came within `timeout_s`."""
        with self._lock:
            if not self._items and timeout_s > 0.0:
                # A notification may be another's leftover: what counts is the time that is left.
                until_s = time.monotonic() + timeout_s
                while not self._items and (left_s := until_s - time.monotonic()) > 0.0:
                    self._came.wait(left_s)
            if not self._items:
                return None
            action, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            self._went.notify()
            return action
