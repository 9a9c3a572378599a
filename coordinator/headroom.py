"""Room on the disk: asked before something is taken on, so that what was begun can be ended.

An update is taken in only while enough stays free to close the round with it: two forms of the
model, the way to it, a settlement for each update. What finds no room all the same is refused or
waits; it never ends the process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from coordinator.store import DiskFullError
from wire import Report

# Tables grow by pages and the log is copied later: both take a little more than what is written.
RESERVE_BYTES_MIN: Final = 8 * 1_048_576
# Everything is written to the log first and to its place in the file later.
_WRITTEN_TWICE: Final = 2
# served, exact and a delta that is not smaller: float32 each.
_BYTES_PER_PARAMETER: Final = 12
_BYTES_PER_UPDATE: Final = 512
_MB: Final = 1e6


def plenty() -> int:
    """Free bytes of a disk that nobody has measured."""
    return 2**62


class Headroom:
    """Whether there is room, said once when there is none and once when there is again.

    Args:
        free_bytes: measures what is free where the state directory is.
        parameters: of the model's shared part.
        updates: that a round may receive.
        observe: told `disk_full` and `disk_has_room`.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int],
        *,
        parameters: int,
        updates: int,
        observe: Callable[[Report], None],
    ) -> None:
        self._free_bytes = free_bytes
        self._observe = observe
        self._full = False
        self._parameters = parameters
        self.reserve_for(updates)

    def reserve_for(self, updates: int) -> None:
        """A round may receive so many updates from now on."""
        commit_bytes = self._parameters * _BYTES_PER_PARAMETER + updates * _BYTES_PER_UPDATE
        self.reserve_bytes = RESERVE_BYTES_MIN + _WRITTEN_TWICE * commit_bytes

    def has_room(self, payload_bytes: int) -> bool:
        """Whether a payload of this size leaves the reserve alone."""
        needed = self.reserve_bytes + _WRITTEN_TWICE * payload_bytes
        free = self._free_bytes()
        if free < needed:
            self.ran_out(f"{free / _MB:.0f} MB are free, {needed / _MB:.0f} MB are needed: ")
            return False
        self.found()
        return True

    def ran_out(self, why: str = "") -> None:
        """Something found no room."""
        if not self._full:
            self._full = True
            self._observe(Report("disk_full", f"{why}updates wait until there is room"))

    def found(self) -> None:
        """There is room."""
        if self._full:
            self._full = False
            self._observe(Report("disk_has_room"))

    @contextmanager
    def or_not(self) -> Iterator[None]:
        """Around a write that nothing depends on: without room it is left out."""
        try:
            yield
        except DiskFullError:
            self.ran_out()
