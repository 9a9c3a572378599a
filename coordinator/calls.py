"""Calls from other threads into the loop that owns the coordinator: queued, answered, bounded.

A call waits its turn like a message from the broker. Whoever made it gives up after a while; one
that nobody waits for any more is dropped unless it has begun.
"""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from wire.errors import PotluckError

CALLS_WAITING_MAX: Final = 16

T = TypeVar("T")


class BusyError(PotluckError):
    """The loop has not answered in time, or has too much to do; try again later."""


class Calls:
    """A bounded queue of calls. `run` belongs to the loop, `call` to everybody else.

    Args:
        wake: tells the loop that something waits; must not block.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.Queue[Callable[[float], None]] = queue.Queue(CALLS_WAITING_MAX)

    def call(self, action: Callable[[float], T], timeout_s: float) -> T:
        """Have the loop do something, and wait for what comes of it.

        Args:
            action: told the time, unix seconds; what it raises is raised here.
            timeout_s: how long to wait.

        Raises:
            BusyError: too many wait already, or it was not done in time; if it had begun it may
                still be done.
        """
        future: Future[T] = Future()

        def act(now_s: float) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action(now_s))
            except Exception as error:  # noqa: BLE001 - it is raised where the call was made
                future.set_exception(error)

        try:
            self._waiting.put_nowait(act)
        except queue.Full:
            raise BusyError("too many requests wait for the coordinator; try again later") from None
        self._wake()
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.cancel() or not future.done():
                raise BusyError(
                    f"the coordinator has not answered within {timeout_s:g} s; look whether it was"
                    " done before you try again"
                ) from None
            return future.result()

    def run(self, now_s: float) -> None:
        """Do what waits; no more than what waited when it began."""
        for _ in range(self._waiting.qsize()):
            self._waiting.get_nowait()(now_s)
