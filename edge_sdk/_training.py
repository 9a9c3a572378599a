"""The one thread that trains, and whether it heeds `stop`.

A thread cannot be ended from outside. One that does not look at `stop` is left alone: it is a
daemon, so the interpreter does not wait for it; nothing else is trained while it lives, and nobody
ever waits for it.
"""

import threading
from collections.abc import Callable
from typing import Final

from edge_sdk._priority import lower_this_thread
from edge_sdk.fine_tuning import FineTuned, FineTuneWork, FineTuningError
from edge_sdk.user_code import blamed
from edge_sdk.work import Work, WorkDone, gave_up

# A batch may take long. Who has not looked at `stop` after this is not going to.
HUNG_S: Final = 10.0


Job = Work | FineTuneWork
Outcome = WorkDone | FineTuned | FineTuningError


class TrainingThread:
    """Runs one piece of work at a time.

    Args:
        done: told of its end, on the thread that trained.
        low_priority: see `Policy`.
        left_over: a thread of before that may still train.

    Attributes:
        work: the last one that was started.
        hung: whether the thread goes on long after it was told to stop.
    """

    def __init__(
        self,
        done: Callable[[Job, Outcome], None],
        *,
        low_priority: bool = False,
        left_over: threading.Thread | None = None,
    ) -> None:
        self.work: Job | None = None
        self.hung = left_over is not None and left_over.is_alive()
        self._done = done
        self._low_priority = low_priority
        self._thread = left_over
        self._told_at_s: float | None = None

    @property
    def left_over(self) -> threading.Thread | None:
        """The thread, if it is still there."""
        return self._thread if self.busy else None

    @property
    def busy(self) -> bool:
        """Whether something is trained, wanted or not."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Job) -> None:
        """Run it; the caller has looked at `busy`."""
        self.work, self._told_at_s = work, None
        self._thread = threading.Thread(
            target=self._run, args=(work,), name="potluck-training", daemon=True
        )
        self._thread.start()

    def _run(self, work: Job) -> None:
        event: Outcome
        try:
            if self._low_priority:
                lower_this_thread()
            event = work.run()
        except BaseException as error:  # noqa: BLE001 - user code: nobody interrupts this thread
            about = blamed(error)
            if isinstance(work, FineTuneWork):
                event = FineTuningError(*about)
            else:
                event = gave_up(work, *about)
        self._done(work, event)

    def join(self, at_most_s: float) -> None:
        """Wait for a thread that has handed over what it made."""
        if self._thread is not None:
            self._thread.join(at_most_s)

    def stop(self) -> None:
        """Tell it to, and do not wait."""
        if self.work is not None:
            self.work.stop()

    def look(self, now_s: float) -> bool:
        """See what has become of a thread that was told to stop; whether `hung` is another now."""
        was_hung = self.hung
        if self.hung:
            self.hung = self.busy
        elif self.work is not None and self.work.stopped and self.busy:
            if self._told_at_s is None:
                self._told_at_s = now_s
            self.hung = now_s - self._told_at_s >= HUNG_S
        return self.hung != was_hung
