"""A release on its way to the app: fetched, checked when there is time for it, then used or not.

One at a time, the last that was offered. A check runs between other work and with an open gate,
unless the owner's policy says otherwise; work that is asked for meanwhile begins behind it, so that
no trainer is ever called twice at once. A gate that closes stops a check, which begins anew later.
What a restart interrupts is offered again by the coordinator.

It has neither threads nor a clock, and is called where the driver is.
"""

from collections.abc import Callable
from typing import Final

from edge_sdk.reasons import Reason
from edge_sdk.release_check import CHECK_S_MAX, Checked, CheckWork, ReleaseCheck, Veto
from edge_sdk.signals import Adopt, Vetoed
from edge_sdk.trainer import Model, Trainer
from edge_sdk.work import StartWork, Work, WorkDone

RELEASE_CHECK: Final = "release_check"
# A trainer that has not yet looked at `stop` of earlier work gets a while.
CHECK_AGAIN_S: Final = 30.0


class Adoption:
    """The release that an app is to use next.

    Args:
        check: the app's own, None to use whatever is released.
        at_once: whether a check may run while the gate is closed.
        make_trainer: for a check that wants one.
        start_work: runs work somewhere.
        timers: the driver's, of which one is this one's.

    Attributes:
        wanted: what is on its way.
        is_here: whether it has been fetched, and waits for its check.
    """

    def __init__(
        self,
        *,
        check: ReleaseCheck | None,
        at_once: bool,
        make_trainer: Callable[[], Trainer],
        start_work: StartWork,
        timers: dict[str, float],
    ) -> None:
        self.wanted: Adopt | None = None
        self.is_here = False
        self._check = check
        self._at_once = at_once
        self._make_trainer = make_trainer
        self._start_work = start_work
        self._timers = timers
        self._running: CheckWork | None = None
        self._behind: Work | None = None

    @property
    def wanted_version(self) -> int | None:
        """The version on its way."""
        return None if self.wanted is None else self.wanted.version

    def want(self, release: Adopt, *, is_here: bool) -> bool:
        """A release is to be used; True when it may be, without more ado."""
        if self.wanted is not None and self.wanted != release:
            self.drop()
        free = is_here and self._check is None
        self.wanted, self.is_here = (None, False) if free else (release, is_here)
        return free

    def drop(self) -> None:
        """It was taken back or overtaken, or cannot be had."""
        self.wanted, self.is_here = None, False
        self._end_check()

    def start(self, work: Work) -> None:
        """Start the session's work, behind a check that is under way."""
        if self._running is not None and not self._running.stopped:
            self._behind = work
        else:
            self._start_work(work)

    def next_check(
        self,
        *,
        gate_is_open: bool,
        is_working: bool,
        models: Callable[[int], tuple[Model, Model] | None],
        now_s: float,
    ) -> Adopt | None:
        """Begin a check if there is one to do and time for it; stop one that the gate forbids.

        `models` makes candidate and current of the candidate's version.

        Returns:
            The release, if it was damaged while it waited: it has to be fetched again.
        """
        may = gate_is_open or self._at_once
        if self._running is not None:
            if not may:
                self._end_check()
            return None
        if self.wanted is None or not self.is_here or self._check is None:
            return None
        if not may or is_working or RELEASE_CHECK in self._timers:
            return None
        found = models(self.wanted.version)
        if found is None:
            self.is_here = False
            return self.wanted
        candidate, current = found
        self._running = CheckWork(self.wanted, self._check, candidate, current, self._make_trainer)
        self._timers[RELEASE_CHECK] = now_s + CHECK_S_MAX
        self._start_work(self._running)
        return None

    def check_done(self, work: Work, event: WorkDone, now_s: float) -> Adopt | Vetoed | None:
        """A check is over: what is to be done about the release, if anything."""
        if work is not self._running:
            return None  # it was stopped, and what it said is of no use
        order = self._running.order
        self._running = None
        if not isinstance(event, Checked):
            self._timers[RELEASE_CHECK] = now_s + CHECK_AGAIN_S
            return None
        self._timers.pop(RELEASE_CHECK, None)
        return self._verdict(order, event.veto)

    def woke(self) -> Vetoed | None:
        """The timer is due: a check has taken too long, or may be tried again."""
        if self._running is None:
            return None
        order = self._running.order
        self._running.stop()
        self._running = None
        verdict = self._verdict(order, Veto(Reason.CHECK_TIMED_OUT))
        return verdict if isinstance(verdict, Vetoed) else None

    def start_what_waits(self) -> None:
        """Start the work that waits behind a check that is over, if it is still wanted."""
        if self._running is None and self._behind is not None:
            work, self._behind = self._behind, None
            if not work.stopped:
                self._start_work(work)

    def _verdict(self, order: Adopt, veto: Veto | None) -> Adopt | Vetoed:
        self.wanted, self.is_here = None, False
        if veto is None:
            return order
        return Vetoed(order.version, order.digest, veto.reason, veto.detail, veto.metrics)

    def _end_check(self) -> None:
        """Stop it; the release, if it is still wanted, is checked anew."""
        if self._running is not None:
            self._running.stop()
            self._running = None
            self._timers.pop(RELEASE_CHECK, None)
