"""What the API's handlers share: where to read, whom to ask, what is told of this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from coordinator.calls import Calls
from coordinator.config import FederationConfig
from coordinator.identity import STORE_FILE
from coordinator.registry import MODELS_DIR, Registry
from coordinator.service import Coordinator
from coordinator.status import Status
from coordinator.store import ClassCounts, Store
from wire.errors import PotluckError

# A commit of a large model takes seconds; whoever waits longer had better look again.
CALL_S_MAX: Final = 10.0
FRESH_S: Final = 1.0
FRESH_FACTOR: Final = 10.0

T = TypeVar("T")


class Fresh(Generic[T]):
    """What is costly to find out, found out once for all who ask within a moment.

    The moment is a second, and longer where finding out takes long: a tenth of the time at most is
    spent on it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s = 0.0
        self._value: T | None = None

    def get(self, make: Callable[[], T]) -> T:
        """What it was a moment ago, or is now."""
        with self._lock:
            value, began_s = self._value, time.monotonic()
            if value is None or began_s >= self._until_s:
                value = self._value = make()
                now_s = time.monotonic()
                self._until_s = now_s + max(FRESH_S, FRESH_FACTOR * (now_s - began_s))
            return value


class NotFoundError(PotluckError):
    """There is nothing of that name."""


@dataclass(frozen=True, slots=True)
class Desk:
    """One coordinator, as the API's threads may touch it.

    Args:
        state_dir: its state; read through connections of its own, never the coordinator's.
        config: the federation's file.
        public_key: what devices believe.
        broker: the broker's URL.
        status: the newest glance at the coordinator's memory.
        calls: into the coordinator's loop.
        coordinator: for actions that the loop runs, and nothing else.
        call_s_max: how long to wait for the loop.
        classes: how much each class takes part, which takes a look at every update.
    """

    state_dir: Path
    config: FederationConfig
    public_key: bytes
    broker: str
    status: Callable[[], Status]
    calls: Calls
    coordinator: Coordinator
    call_s_max: float = CALL_S_MAX
    classes: Fresh[list[ClassCounts]] = field(default_factory=Fresh)

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """The store as it is at one moment, read only, by this thread and request alone."""
        store = Store(self.state_dir / STORE_FILE, read_only=True)
        try:
            with store.snapshot():
                yield store
        finally:
            store.close()

    def registry(self, store: Store) -> Registry:
        """Versions and aliases, as that store has them."""
        return Registry(store, self.state_dir / MODELS_DIR)

    def ask(self, action: Callable[[float], T]) -> T:
        """Have the coordinator's loop do something.

        Raises:
            BusyError: it was not done in time.
        """
        return self.calls.call(action, self.call_s_max)
