"""Interpreters that are lent: as many as threads train at once, not as many as devices.

An interpreter costs 0.5 to 31 MiB, its weights 18 microseconds to a millisecond to swap. So a
process has a few of each file, and whoever trains puts its own weights into one. None is ever with
two at once: an interpreter in use by two threads is undefined behaviour.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

from edge_sdk._litert_trust import runtime
from wire import Artefact

IDLE_MAX: Final = 4

Runner = Callable[..., dict[str, Any]]


class Opened:
    """An interpreter of a file, and its runners by signature."""

    def __init__(self, artefact: Artefact) -> None:
        _name, interpreter = runtime()
        self._interpreter = interpreter(model_content=artefact.data, num_threads=1)
        self._runners: dict[str, Runner] = {}

    def runner(self, signature: str) -> Runner:
        """The function that runs a signature."""
        found = self._runners.get(signature)
        if found is None:
            found = self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return found


class Pool:
    """Interpreters by the digest of their file. Safe from any thread.

    Args:
        idle_max: how many that nobody uses are kept, of all files; the longest unused go first.
    """

    def __init__(self, idle_max: int = IDLE_MAX) -> None:
        self._idle_max = idle_max
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[bytes, int], Opened] = OrderedDict()
        self._count = 0

    @property
    def idle(self) -> int:
        """How many there are that nobody uses."""
        return len(self._idle)

    @contextlib.contextmanager
    def lent(self, artefact: Artefact) -> Iterator[Opened]:
        """One of the file's interpreters, for this thread alone until it is given back.

        One in which something failed does not come back. The artefact is one that may be opened:
        see `trust`.
        """
        opened = self._take(artefact)
        yield opened
        self._give_back(artefact, opened)

    def _take(self, artefact: Artefact) -> Opened:
        digest = artefact.info.sha256
        with self._lock:
            key = next((key for key in reversed(self._idle) if key[0] == digest), None)
            if key is not None:
                return self._idle.pop(key)
        return Opened(artefact)

    def _give_back(self, artefact: Artefact, opened: Opened) -> None:
        gone: list[Opened] = []  # closed after the lock is free
        with self._lock:
            self._count += 1
            self._idle[artefact.info.sha256, self._count] = opened
            while len(self._idle) > self._idle_max:
                gone.append(self._idle.popitem(last=False)[1])
        gone.clear()

    def clear(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            gone = list(self._idle.values())
            self._idle.clear()
        gone.clear()


pool: Final = Pool()
