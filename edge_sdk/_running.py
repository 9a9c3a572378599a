"""What exists while a device runs: its loop, and what the link's and the trainer's threads hand it.

Three threads meet here. The link's only puts what it hears into a bounded queue. Training has one
of its own (`_training`), while there is something to train. The loop takes the queue, the timers
and the gate in small turns and is the only one that touches the driver, the journal and the models.
Between them it sleeps until the next is due: a device that has nothing to do costs its owner next
to nothing.
"""

import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from edge_sdk._gatekeeper import Gatekeeper, Moment
from edge_sdk._training import Job, Outcome, TrainingThread
from edge_sdk.consent import LEAVE_EVERY_S, Heard
from edge_sdk.driver import DeviceDriver
from edge_sdk.energy import Energy
from edge_sdk.fine_tuning import FineTuned, FineTuneWork, FineTuningError, blame_gate
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import Conditions, Policy
from edge_sdk.reasons import Reason
from edge_sdk.release_check import CheckWork
from edge_sdk.signals import GateClosed, GateOpened, Spent, TrainingFailed
from edge_sdk.work import TrainingWork, Work, WorkDone, gave_up, round_of
from wire import Report
from wire.lock import InstanceLock

if TYPE_CHECKING:
    from edge_sdk.described import DescribedDriver
    from wire import MqttLink

FAREWELL_S: Final = 2.0
# How long a device that was asked to leave by another process waits for its coordinator.
LEAVE_S: Final = 10.0
QUEUE_MAX: Final = 4_096
# A turn ends after so many items, however many wait: timers, the gate and `stop` have their turn.
_ITEMS_A_TURN: Final = 64
_WAIT_S_MAX: Final = 0.5
_log = logging.getLogger("potluck.device")


class _Inbox(queue.Queue[Callable[["Running"], None]]):
    """A bounded queue on whose items, or on a bell, one thread waits."""

    def __init__(self, items_max: int) -> None:
        super().__init__(items_max)
        # Its `put` may be called from a signal handler in the middle of any other call, this
        # class's not: Python says so of it, and of no other queue.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def _put(self, item: "Callable[[Running], None]") -> None:
        super()._put(item)
        self._bell.put(None)

    def ring(self) -> None:
        """End the wait, or the next one; from any thread or signal handler."""
        self._bell.put(None)

    def wait(self, timeout_s: float) -> None:
        """Until there is an item, the bell rings or time is up."""
        with contextlib.suppress(queue.Empty):
            if timeout_s > 0.0 and self.empty():
                self._bell.get(timeout=timeout_s)
            while True:
                self._bell.get_nowait()


class Running:
    """What exists while a device runs; everything but the link's callbacks is on one thread."""

    driver: "DeviceDriver | DescribedDriver"
    link: "MqttLink"

    def __init__(
        self,
        *,
        lock: InstanceLock,
        journal: SqliteJournal,
        conditions: Callable[[], Conditions],
        policy: Policy,
        energy: Energy,
        observe: Callable[[Report], None],
        left_over: threading.Thread | None = None,
    ) -> None:
        self._lock = lock
        self._journal = journal
        self._inbox = _Inbox(QUEUE_MAX)
        self._closing = threading.Event()
        self.training = TrainingThread(
            lambda job, outcome: self._hand_over(lambda r: r.ended(job, outcome)),
            low_priority=policy.low_priority,
            left_over=left_over,
        )
        self._heard = Heard(journal)
        self._hung_up = threading.Event()
        self._leave_at_s: float | None = None
        self._room_said = False
        self._leave_until_s = math.inf
        self._refused: list[Work] = []
        self.tunings: deque[FineTuneWork] = deque()
        self._tuning: FineTuneWork | None = None
        self._working: Job | None = None
        self._behind: Work | None = None
        self.gatekeeper = Gatekeeper(
            policy=policy,
            conditions=conditions,
            journal=journal,
            energy=energy,
            traffic=self._traffic,
        )
        self.gatekeeper.trainer_hung = self.training.hung
        self._down_said = ""
        self._waits_said: str | None = None
        self._connected = False
        self._begun = False
        self.observe = observe

    # -- called by the link's thread: they only hand over ------------------------------------

    def hear(self, topic: str, data: bytes) -> None:
        """A publication has come."""
        self._from_link(lambda r: r.driver.on_frame(topic, data, time.monotonic()))

    def _hand_over(
        self, action: "Callable[[Running], None]", *, unless: threading.Event | None = None
    ) -> None:
        """Wait for room in the queue, which holds the broker back, but not for a loop that ends."""
        while not self._closing.is_set() and not (unless is not None and unless.is_set()):
            with contextlib.suppress(queue.Full):
                self._inbox.put(action, timeout=_WAIT_S_MAX)
                return

    def taken(self) -> None:
        """The broker has room: wake the loop if an upload waits for that, and never wait here."""
        if self.driver.has_more_to_send and not self._room_said:
            self._room_said = True
            with contextlib.suppress(queue.Full):  # then the loop is awake, and looks by itself
                self._inbox.put_nowait(lambda _r: None)

    def _from_link(self, action: "Callable[[Running], None]") -> None:
        """Nothing is heard of a link that was hung up, which waits for this thread to end."""
        self._hand_over(action, unless=self._hung_up)

    def link_up(self, packet_bytes_max: int) -> None:
        """The link is up."""
        if self._down_said:
            self._down_said = ""
            self._from_link(lambda r: r.observe(Report("broker_up")))
        self._from_link(lambda r: r.is_up(packet_bytes_max))

    def link_down(self, reason: str) -> None:
        """The link is down, or does not come up."""
        # Reconnecting says the same again and again: once is enough for people.
        if reason != self._down_said:
            self._down_said = reason
            self._from_link(lambda r: r.observe(Report("broker_down", f"{reason}; trying again")))
        self._from_link(lambda r: r.driver.on_link_down(time.monotonic()))

    # -- the device's thread -----------------------------------------------------------------

    def is_up(self, packet_bytes_max: int) -> None:
        """The link has come up: whoever leaves says so first, and nothing else if it is silent."""
        if not self._connected:
            return  # it was hung up since
        if self._leave_at_s is not None:
            self.leave()
        if not self._is_silent:
            self.driver.on_link_up(packet_bytes_max, time.monotonic())

    def publish(self, topic: str, payload: bytes) -> None:
        """Send."""
        self.link.publish(topic, payload)

    def room(self, most: int) -> int:
        """How many more chunks the link can use."""
        return self.link.room(most)

    def start_work(self, work: Work) -> None:
        """Train or evaluate on a thread of its own."""
        if self._tuning is not None:
            self._behind = work
            return
        if self._is_working:
            # A trainer that does not look at `stop`: never two at once on one trainer.
            self._refused.append(work)
            return
        self._start(work)

    @property
    def _is_working(self) -> bool:
        """Whether something is trained, or was and its end is not heard yet."""
        return self.training.busy or self._working is not None

    def _start(self, job: Job) -> None:
        self._working = job
        self.gatekeeper.work_begins(time.monotonic())
        self.training.start(job)

    def fine_tune(self, work: FineTuneWork) -> None:
        """From any thread: train the personal part when nothing else is trained."""
        self._hand_over(lambda r: r.tunings.append(work))

    def _tune(self) -> None:
        """Begin to fine-tune, if somebody asked for it and the thread is free."""
        while self.tunings and self.training.hung:
            self.tunings.popleft().end(FineTuningError(Reason.TRAINER_HUNG))
        while self.tunings and not self._is_working:
            work = self.tunings.popleft()
            if not work.anyway and isinstance(self.gatekeeper.allowed, GateClosed):
                work.end(FineTuningError(self.gatekeeper.allowed.reason))
            else:
                self._tuning = work
                self._start(work)

    def _tuned(self, work: FineTuneWork, result: FineTuned | FineTuningError) -> None:
        """It is over: keep what it made, and begin what waited behind it."""
        took = self.gatekeeper.work_ends(time.monotonic(), trained=False, finished=False)
        self._say_cost(took)
        self._tuning = None
        if not work.done.is_set():  # else it hung, and the app has been told so
            if work.new_personal:
                self.driver.personalise(work.new_personal)
            work.end(blame_gate(result, work, self.gatekeeper.allowed))
        behind, self._behind = self._behind, None
        if behind is not None and not behind.stopped:
            self.start_work(behind)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """The training thread has come to its end, told to stop or not."""
        self.training.join(_WAIT_S_MAX)  # it has nothing left to do, and others may begin at once
        self._working = None
        if isinstance(job, FineTuneWork):
            self._tuned(job, cast("FineTuned | FineTuningError", outcome))
        else:
            self.work_done(job, cast("WorkDone", outcome))

    def work_done(self, work: Work, event: WorkDone) -> None:
        """A piece of the session's work is over."""
        now_s = time.monotonic()
        # A check costs what it costs, and says nothing of what an evaluation does.
        finished = not isinstance(event, TrainingFailed) and not isinstance(work, CheckWork)
        trained = isinstance(work, TrainingWork)
        head_alone = isinstance(work, TrainingWork) and work.head_alone
        took = self.gatekeeper.work_ends(
            now_s, trained=trained, finished=finished, head_alone=head_alone
        )
        self._say_cost(took)
        self.driver.work_done(work, event, now_s)

    def ask_to_leave(self) -> None:
        """From any thread: begin to say that the owner takes the device out."""
        self._hand_over(Running.leave)

    def begin(self) -> None:
        """Connect, unless the owner has opted out or the day's bytes are spent."""
        out = self.gatekeeper.opted_out = self._heard.opted_out
        self._judge()
        if out:
            self.observe(Report("opted_out"))
        self._begun = True
        self._heed()

    @property
    def closed(self) -> bool:
        """Whether it is over, and does nothing that it is asked; from any thread."""
        return self._closing.is_set()

    @property
    def has_left(self) -> bool:
        """Whether the owner has asked for the end, and the coordinator had time to hear of it."""
        return time.monotonic() >= self._leave_until_s

    def ask_owner(self) -> None:
        """From any thread: look at once for what the owner has said."""
        self._hand_over(lambda r: r.look_for_owner(at_once=True))

    def look_for_owner(self, *, at_once: bool = False) -> None:
        """Do what the owner has said since the last look."""
        if self._heard.look(time.monotonic(), at_once=at_once):
            self._heed()

    def _heed(self) -> None:
        """Hang up or connect, as the owner wants it."""
        was_out, out = self.gatekeeper.opted_out, self._heard.opted_out
        self.gatekeeper.opted_out = out
        if out != was_out:
            self._judge()
            self.observe(Report("opted_out") if out else Report("opted_in"))
        self._mind_link()
        if self._heard.leaving and self._leave_until_s == math.inf:
            self._leave_until_s = time.monotonic() + LEAVE_S
            self.leave()

    def _mind_link(self) -> None:
        """Nothing comes or goes once the owner is out, or the day's bytes are spent.

        Unless the owner takes the device out: that is said whatever it costs.
        """
        leaves = self._heard.leaving or self._leave_at_s is not None
        if self._is_silent and not leaves:
            self._hang_up()
        else:
            self._connect()

    @property
    def _is_silent(self) -> bool:
        return self._heard.opted_out or self.gatekeeper.hangs_up

    def _connect(self) -> None:
        if not self._connected:
            self._hung_up.clear()
            self._connected = True
            self.link.start()

    def _hang_up(self) -> None:
        """Let the broker have the withdrawal, but no more of an update, and close the link."""
        if self._connected:
            if not self.driver.is_uploading:
                self._drain()
            self._hung_up.set()
            self.link.stop()
            self._connected = False
            self.driver.on_link_down(time.monotonic())

    def wake(self) -> None:
        """End the loop's wait; from any thread, and from a signal handler."""
        self._inbox.ring()

    def leave(self) -> None:
        """Say that the owner takes the device out; again until the coordinator answers."""
        self._leave_at_s = time.monotonic() + LEAVE_EVERY_S
        self._mind_link()
        self.driver.leave()

    def turn(self) -> None:
        """Do what is due, then wait for what comes."""
        self.look_for_owner()
        now_s = time.monotonic()
        self._mind_trainer(now_s)
        if now_s >= self.gatekeeper.due_s:
            self._judge()
        if self._leave_at_s is not None and now_s >= self._leave_at_s:
            self.leave()
        while self._refused:
            work = self._refused.pop()
            self.driver.work_done(work, gave_up(work, "still_stopping"), now_s)
        self._tune()
        self.driver.wake(now_s)
        self._room_said = False
        self.driver.send_more(now_s)
        self._inbox.wait(self._wait_s())
        with contextlib.suppress(queue.Empty):
            for _ in range(_ITEMS_A_TURN):
                self._inbox.get_nowait()(self)

    def _wait_s(self) -> float:
        """How long there is nothing to do, if nothing comes."""
        if self._refused:
            return 0.0
        due = (
            self.gatekeeper.due_s,
            self.driver.next_wake_s,
            self._leave_at_s,
            self._leave_until_s,
        )
        return min(at_s for at_s in due if at_s is not None) - time.monotonic()

    def _judge(self) -> None:
        at = moment()
        gate = self.gatekeeper.look(at)
        tuning, closed = self._tuning, isinstance(self.gatekeeper.allowed, GateClosed)
        if tuning is not None and closed and not tuning.anyway:
            tuning.stop()
        if gate is not None:
            self._say_gate(gate)
            self.driver.on_gate(gate, at.now_s)
            if self._begun:
                self._mind_link()

    def _mind_trainer(self, now_s: float) -> None:
        """Say it once when a trainer does not stop, and once when it has."""
        work = self.training.work
        if not self.training.look(now_s):
            return
        self.gatekeeper.trainer_hung = self.training.hung
        self.gatekeeper.due_s = now_s
        number = 0 if work is None or isinstance(work, FineTuneWork) else round_of(work)
        about = f"round {number}" if number else ""
        if not self.training.hung:
            self.observe(Report("trainer_back", about))
            return
        self.observe(Report("trainer_hung", about))
        if self._tuning is not None:
            self._tuning.end(FineTuningError(Reason.TRAINER_HUNG))
        if number:
            self.driver.trainer_hung(number)

    def _say_gate(self, gate: GateOpened | GateClosed) -> None:
        """Tell people why nothing is begun, once for each reason, and when something may be."""
        waits = gate.reason if isinstance(gate, GateClosed) else ""
        if waits == self._waits_said:
            return
        self._waits_said = waits
        self.observe(Report("waits", waits) if waits else Report("ready"))

    def _say_cost(self, took: Spent) -> None:
        what = f"{took.training_s:.3f} s, {took.joules:.2f} J"
        self.observe(Report("worked", what))

    def _traffic(self) -> tuple[int, int]:
        traffic = self.link.traffic
        return traffic.sent_bytes, traffic.received_bytes

    def farewell(self) -> None:
        """Withdraw, and give the broker a moment to take it."""
        stopped = GateClosed("stopped")
        self.driver.on_gate(stopped, time.monotonic())
        self.gatekeeper.note_waits(stopped)
        self._drain()
        self.gatekeeper.spend(moment(), at_once=True)

    def _drain(self) -> None:
        """Wait a moment for the broker to take what was sent."""
        until_s = time.monotonic() + FAREWELL_S
        while self.link.up and self.link.in_flight and time.monotonic() < until_s:
            time.sleep(0.01)

    def close(self) -> None:
        """Let go of everything, whatever has happened."""
        self._closing.set()
        self.training.stop()
        for tuning in (*self.tunings, *(() if self._tuning is None else (self._tuning,))):
            tuning.stop()
            tuning.end(FineTuningError("stopped"))
        try:
            self.link.stop()
        finally:
            self._journal.close()
            self._lock.release()


def moment() -> Moment:
    """What the clocks say."""
    unix_s = time.time()
    local = time.localtime(unix_s)
    local_s = 3_600.0 * local.tm_hour + 60.0 * local.tm_min + local.tm_sec
    return Moment(time.monotonic(), unix_s, local_s)
