"""What exists while a device runs: its loop, and what the link's and the trainer's threads hand it.

Three threads meet here. The link's only puts what it hears into a bounded queue. Training has one
of its own, while there is something to train. The loop takes the queue, the timers and the gate in
small turns and is the only one that touches the driver, the journal and the models.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from edge_sdk._gatekeeper import Gatekeeper, Moment
from edge_sdk._priority import lower_this_thread
from edge_sdk.described import DescribedDriver
from edge_sdk.driver import DeviceDriver
from edge_sdk.energy import Energy
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import Conditions, Policy
from edge_sdk.signals import GateClosed, TrainingFailed
from edge_sdk.work import TrainingWork, Work, WorkDone
from wire import Report
from wire.lock import InstanceLock

if TYPE_CHECKING:
    from wire import MqttLink

FAREWELL_S: Final = 2.0
LEAVE_EVERY_S: Final = 2.0
QUEUE_MAX: Final = 4_096
# A turn ends after so many items, however many wait: timers, the gate and `stop` have their turn.
_ITEMS_A_TURN: Final = 64
_WAIT_S_MAX: Final = 0.5
_log = logging.getLogger("potluck.device")


class Running:
    """What exists while a device runs; everything but the link's callbacks is on one thread."""

    driver: DeviceDriver | DescribedDriver
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
    ) -> None:
        self._lock = lock
        self._journal = journal
        self._inbox: queue.Queue[Callable[[Running], None]] = queue.Queue(QUEUE_MAX)
        self._closing = threading.Event()
        self._training: threading.Thread | None = None
        self._leave_at_s: float | None = None
        self._refused: list[Work] = []
        self._policy = policy
        self.gatekeeper = Gatekeeper(
            policy=policy,
            conditions=conditions,
            journal=journal,
            energy=energy,
            traffic=self._traffic,
        )
        self._work: Work | None = None
        self._down_said = ""
        self.observe = observe

    # -- called by the link's thread: they only hand over ------------------------------------

    def hear(self, topic: str, data: bytes) -> None:
        """A publication has come."""
        self._hand_over(lambda r: r.driver.on_frame(topic, data, time.monotonic()))

    def _hand_over(self, action: "Callable[[Running], None]") -> None:
        """Wait for room in the queue, which holds the broker back, but not for a loop that ends."""
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._inbox.put(action, timeout=_WAIT_S_MAX)
                return

    def link_up(self, packet_bytes_max: int) -> None:
        """The link is up."""
        if self._down_said:
            self._down_said = ""
            self._hand_over(lambda r: r.observe(Report("broker_up")))
        self._hand_over(lambda r: r.driver.on_link_up(packet_bytes_max, time.monotonic()))

    def link_down(self, reason: str) -> None:
        """The link is down, or does not come up."""
        # Reconnecting says the same again and again: once is enough for people.
        if reason != self._down_said:
            self._down_said = reason
            self._hand_over(lambda r: r.observe(Report("broker_down", f"{reason}; trying again")))
        self._hand_over(lambda r: r.driver.on_link_down(time.monotonic()))

    # -- the device's thread -----------------------------------------------------------------

    def publish(self, topic: str, payload: bytes) -> None:
        """Send."""
        self.link.publish(topic, payload)

    def start_work(self, work: Work) -> None:
        """Train or evaluate on a thread of its own."""
        if self._training is not None and self._training.is_alive():
            # A trainer that does not look at `stop`: never two at once on one trainer.
            self._refused.append(work)
            return
        self._work = work
        self.gatekeeper.work_begins(time.monotonic())

        def train() -> None:
            if self._policy.low_priority:
                lower_this_thread()
            event = work.run()
            self._hand_over(lambda r: r.work_done(work, event))

        self._training = threading.Thread(target=train, name="potluck-training", daemon=True)
        self._training.start()

    def work_done(self, work: Work, event: WorkDone) -> None:
        """The thread has come to its end, told to stop or not."""
        now_s = time.monotonic()
        finished = not isinstance(event, TrainingFailed)
        trained = isinstance(work, TrainingWork)
        self.gatekeeper.work_ends(now_s, trained=trained, finished=finished)
        self.driver.work_done(work, event, now_s)

    def ask_to_leave(self) -> None:
        """From any thread: begin to say that the owner takes the device out."""
        self._hand_over(Running.leave)

    def leave(self) -> None:
        """Say that the owner takes the device out; again until the coordinator answers."""
        self._leave_at_s = time.monotonic() + LEAVE_EVERY_S
        self.driver.leave()

    def turn(self) -> None:
        """Do what is due, then wait for what comes."""
        now_s = time.monotonic()
        if now_s >= self.gatekeeper.due_s:
            self._judge()
        if self._leave_at_s is not None and now_s >= self._leave_at_s:
            self.leave()
        while self._refused:
            work = self._refused.pop()
            failed = TrainingFailed(work.order.round, "still_stopping")
            self.driver.work_done(work, failed, now_s)
        self.driver.wake(now_s)
        due = self.driver.next_wake_s
        look_s = self.gatekeeper.due_s
        wait_s = min(look_s, look_s if due is None else due) - time.monotonic()
        with contextlib.suppress(queue.Empty):
            self._inbox.get(timeout=min(max(wait_s, 0.0), _WAIT_S_MAX))(self)
            for _ in range(_ITEMS_A_TURN):
                self._inbox.get_nowait()(self)

    def _judge(self) -> None:
        at = _moment()
        gate = self.gatekeeper.look(at)
        if gate is not None:
            self.driver.on_gate(gate, at.now_s)

    def _traffic(self) -> tuple[int, int]:
        traffic = self.link.traffic
        return traffic.sent_bytes, traffic.received_bytes

    def farewell(self) -> None:
        """Withdraw, and give the broker a moment to take it."""
        stopped = GateClosed("stopped")
        self.driver.on_gate(stopped, time.monotonic())
        self.gatekeeper.note_waits(stopped)
        until_s = time.monotonic() + FAREWELL_S
        while self.link.up and self.link.in_flight and time.monotonic() < until_s:
            time.sleep(0.01)
        self.gatekeeper.spend(_moment(), at_once=True)

    def close(self) -> None:
        """Let go of everything, whatever has happened."""
        self._closing.set()
        if self._work is not None:
            self._work.stop()
        self.link.stop()
        self._journal.close()
        self._lock.release()


def _moment() -> Moment:
    unix_s = time.time()
    local = time.localtime(unix_s)
    local_s = 3_600.0 * local.tm_hour + 60.0 * local.tm_min + local.tm_sec
    return Moment(time.monotonic(), unix_s, local_s)
