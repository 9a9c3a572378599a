"""The device as an app embeds it: one object, one background thread, nothing that blocks the app.

Three threads meet here. The link's only puts what it hears into a queue. Training has one of its
own, while there is something to train. The device's own takes the queue, the timers and the gate
one after the other and is the only one that touches the driver, the journal and the models.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.driver import DeviceDriver
from edge_sdk.enrolment import EnrolmentError, enrol, tls_files
from edge_sdk.journal import SqliteJournal
from edge_sdk.models import FileShelf
from edge_sdk.policy import SECONDS_PER_DAY, Conditions, Policy, judge, sense
from edge_sdk.session import Phase
from edge_sdk.signals import ForgetUpdate, GateClosed, GateOpened
from edge_sdk.trainer import DeviceInfo, Model, Task, load_task
from edge_sdk.work import TrainingWork
from wire import (
    Crypto,
    Ed25519,
    Manifest,
    PotluckError,
    Report,
    SecretSource,
    SystemSecrets,
)
from wire.lock import InstanceLock
from wire.token import read_tokens

if TYPE_CHECKING:
    from wire import MqttLink

GATE_EVERY_S: Final = 5.0
# What was spent reaches the journal this often: flash wears out by writing.
SPEND_EVERY_S: Final = 60.0
FAREWELL_S: Final = 2.0
_MODELS: Final = "models"
_QUEUE_MAX: Final = 4_096
_log = logging.getLogger("potluck.device")


class DeviceError(PotluckError):
    """The device cannot run; the text says why and what to do."""


@dataclass(frozen=True)
class DeviceStatus:
    """What a device did, spent and waits for, from its journal.

    `spent_bytes_today` are MQTT bytes both ways in the current UTC day.
    """

    device: str | None
    federation: str | None
    revoked: str | None
    boot: int
    model_version: int
    held_version: int
    last_round: int
    sealed_round: int | None
    counted: int
    not_counted: dict[str, int]
    spent_bytes_today: int
    history: tuple[ForgetUpdate, ...]


def read_status(state_dir: Path | str) -> DeviceStatus:
    """Read the journal of a device, running or not.

    Raises:
        JournalError: no device has run there.
    """
    journal = SqliteJournal(Path(state_dir), read_only=True)
    try:
        kept, history = journal.kept(), journal.history()
        today = int(time.time() // SECONDS_PER_DAY)
        reasons: dict[str, int] = {}
        for line in history:
            if not line.counted:
                reasons[line.reason] = reasons.get(line.reason, 0) + 1
        return DeviceStatus(
            device=None if kept.enrolment is None else kept.enrolment.device,
            federation=None if kept.enrolment is None else kept.enrolment.federation,
            revoked=journal.revoked,
            boot=kept.boot,
            model_version=kept.released_version,
            held_version=kept.held_version,
            last_round=kept.last_round,
            sealed_round=None if kept.sealed is None else kept.sealed.round,
            counted=sum(line.counted for line in history),
            not_counted=reasons,
            spent_bytes_today=journal.spent_by_day().get(today, 0),
            history=tuple(history),
        )
    finally:
        journal.close()


class Device:
    """One device of a federation.

    Args:
        task: an object with `model` and `trainer`, or its name, `module:object`.
        state_dir: where key, journal and models are kept; one device each.
        policy: what the owner allows.
        conditions: asked every few seconds what the device is like; the operating system's own
            word by default.
        on_report: told what happens, on the device's thread; keep it short.
        device_class: a class of `device_profiles`, for reports by class.
        info: handed to `task.trainer`.
        broker: a URL that replaces the token's own.
        crypto: the signature scheme.
        secrets: where the device's key comes from.
    """

    def __init__(
        self,
        task: Task | str,
        state_dir: Path | str,
        *,
        policy: Policy | None = None,
        conditions: Callable[[], Conditions] = sense,
        on_report: Callable[[Report], None] | None = None,
        device_class: str = "unknown",
        info: DeviceInfo | None = None,
        broker: str | None = None,
        crypto: Crypto | None = None,
        secrets: SecretSource | None = None,
    ) -> None:
        self.task: Any = load_task(task) if isinstance(task, str) else task
        self.state_dir = Path(state_dir)
        self.policy = policy or Policy()
        self.error: PotluckError | None = None
        self._conditions = conditions
        self._on_report = on_report
        self._device_class = device_class
        self._info = info or DeviceInfo()
        self._broker = broker
        self._crypto = crypto or Ed25519()
        self._secrets = secrets or SystemSecrets()
        self._manifest: Manifest | None = None
        self._model: Model | None = None
        self._thread: threading.Thread | None = None
        self._inbox: queue.Queue[Callable[[_Running], None]] = queue.Queue(_QUEUE_MAX)
        self._stopping = threading.Event()
        self._revoked = threading.Event()

    # -- what an app calls -------------------------------------------------------------------

    def enroll(
        self,
        token_file: Path | str,
        *,
        consent: Callable[[], bool] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Join the federation, once; a device that has joined already stays as it is.

        Args:
            token_file: what `potluck enroll` wrote.
            consent: asked before anything is sent; False leaves everything as it was.
            timeout_s: how long to wait for broker and coordinator.

        Raises:
            EnrolmentError: the owner refused, no token was taken, or nobody answered.
            TokenFileError: the file is not one of tokens.
        """
        journal = SqliteJournal(self.state_dir)
        try:
            if journal.enrolment is not None:
                return
            tokens = read_tokens(Path(token_file))
            if consent is not None and not consent():
                raise EnrolmentError("the owner did not consent; nothing was sent")
            signer = self._crypto.signer(journal.identity_key(self._secrets.token(32)))
            enrolment = enrol(
                tokens,
                signer,
                self._crypto,
                device_class=self._device_class,
                broker=self._broker,
                directory=self.state_dir,
                timeout_s=timeout_s,
            )
            journal.enrol(enrolment)
        finally:
            journal.close()

    def start(self) -> None:
        """Take part in the background, until `stop`.

        Raises:
            DeviceError: not enrolled, or started already.
            AlreadyRunningError: another process runs this state directory.
        """
        if self.running:
            raise DeviceError("the device is running already")
        running = self._prepare()
        self._thread = threading.Thread(
            target=self._run, args=(running,), name="potluck-device", daemon=True
        )
        self._thread.start()

    def run(self) -> None:
        """Take part on this thread; returns after `stop` or when the device is revoked.

        Raises:
            DeviceError: not enrolled, running already, or its state can no longer be written.
        """
        self._run(self._prepare())
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End in good order: work that is not sealed is given up, what is sealed is kept."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._inbox.put_nowait(lambda _running: None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether the background thread is there; it ends by `stop`, revocation or `error`."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def model(self) -> Model:
        """The released model: `.version`, `.tensors`, `.path`. Safe from any thread.

        It changes only when the coordinator releases a version, never in the middle of training.
        """
        if self._model is None:
            self._model = self._stored_model()
        return self._model

    @property
    def status(self) -> DeviceStatus:
        """What the device did, spent and waits for."""
        return read_status(self.state_dir)

    def leave(self, *, timeout_s: float = 10.0) -> bool:
        """Take the device out of the federation and delete everything that it kept.

        Returns:
            Whether the coordinator has confirmed; deleted is it all the same.
        """
        confirmed = False
        with contextlib.suppress(DeviceError):
            if not self.running:
                self.start()
            self._inbox.put(_Running.leave)
            confirmed = self._revoked.wait(timeout_s)
        self.stop()
        import shutil  # noqa: PLC0415 - once in a device's life

        shutil.rmtree(self.state_dir, ignore_errors=True)
        self._model = None
        return confirmed

    # -- the thread --------------------------------------------------------------------------

    def _task_manifest(self) -> Manifest:
        if self._manifest is None:
            self._manifest = self.task.model()
        if not isinstance(self._manifest, Manifest):
            raise DeviceError("task.model() did not return a wire.Manifest")
        return self._manifest

    def _stored_model(self) -> Model:
        manifest = self._task_manifest()
        version = 0
        with contextlib.suppress(PotluckError):
            version = read_status(self.state_dir).model_version
        shelf = FileShelf(self.state_dir / _MODELS, manifest.schema)
        shared = shelf.load(version) if version else None
        own = shelf.personal()
        tensors = {
            name: (shared or {}).get(name, own.get(name, first))
            for name, first in manifest.tensors.items()
        }
        path = shelf.path(version) if shared else None
        return Model(version if shared else 0, tensors, path, manifest.artefact)

    def _prepare(self) -> "_Running":
        from wire import BrokerAddress, MqttLink  # noqa: PLC0415 - paho-mqtt, loaded when it is used

        manifest = self._task_manifest()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        lock = InstanceLock(self.state_dir)
        journal = SqliteJournal(self.state_dir)
        enrolment = journal.enrolment
        if enrolment is None or journal.revoked is not None:
            why = "is not enrolled" if enrolment is None else f"was revoked ({journal.revoked})"
            journal.close()
            lock.release()
            raise DeviceError(f"{self.state_dir}: the device {why}; enrol it with a token first")
        self._stopping.clear()
        self._inbox = queue.Queue(_QUEUE_MAX)
        self.error = None
        running = _Running(
            lock=lock,
            journal=journal,
            inbox=self._inbox,
            conditions=self._conditions,
            policy=self.policy,
            observe=self._observe,
        )
        running.driver = DeviceDriver(
            manifest=manifest,
            make_trainer=lambda: self.task.trainer(self._info),
            journal=journal,
            shelf=FileShelf(self.state_dir / _MODELS, manifest.schema),
            enrolment=enrolment,
            signer=self._crypto.signer(journal.identity_key(self._secrets.token(32))),
            crypto=self._crypto,
            publish=running.publish,
            start_work=running.start_work,
            observe=self._observe,
            device_class=self._device_class,
        )
        address = BrokerAddress.parse(self._broker or enrolment.broker)
        running.link = MqttLink(
            address,
            enrolment.device,
            subscriptions=running.driver.subscriptions,
            on_message=running.hear,
            on_up=running.link_up,
            on_down=running.link_down,
            will=running.driver.will,
            tls=tls_files(address, enrolment.ca, self.state_dir),
        )
        self._model = running.driver.released
        return running

    def _run(self, running: "_Running") -> None:
        import sqlite3  # noqa: PLC0415 - the journal has loaded it

        try:
            running.link.start()
            while not self._stopping.is_set():
                running.turn()
                self._model = running.driver.released
                if running.driver.session.phase is Phase.REVOKED:
                    self._revoked.set()
                    break
            running.farewell()
        except (OSError, sqlite3.Error, PotluckError) as error:
            # A full disk, a journal that is gone: the app goes on, the device says why it does not.
            self.error = DeviceError(f"{self.state_dir}: {error}")
            self._observe(Report("device_stopped", str(error)))
        finally:
            running.close()

    def _observe(self, report: Report) -> None:
        _log.info("%s %s", report.what, report.detail)
        if self._on_report is not None:
            self._on_report(report)


class _Running:
    """What exists while a device runs; everything but the link's callbacks is on one thread."""

    driver: DeviceDriver
    link: "MqttLink"

    def __init__(
        self,
        *,
        lock: InstanceLock,
        journal: SqliteJournal,
        inbox: "queue.Queue[Callable[[_Running], None]]",
        conditions: Callable[[], Conditions],
        policy: Policy,
        observe: Callable[[Report], None],
    ) -> None:
        self._lock = lock
        self._journal = journal
        self._inbox = inbox
        self._conditions = conditions
        self._policy = policy
        self._gate_at_s = 0.0
        self._spend_at_s = 0.0
        self._gate: GateOpened | GateClosed | None = None
        self._counted_bytes = 0
        self._work: TrainingWork | None = None
        self._down_said = ""
        self.observe = observe

    # -- called by the link's thread: they only hand over ------------------------------------

    def hear(self, topic: str, data: bytes) -> None:
        """A publication has come."""
        self._inbox.put(lambda r: r.driver.on_frame(topic, data, time.monotonic()))

    def link_up(self, packet_bytes_max: int) -> None:
        """The link is up."""
        if self._down_said:
            self._down_said = ""
            self._inbox.put(lambda r: r.observe(Report("broker_up")))
        self._inbox.put(lambda r: r.driver.on_link_up(packet_bytes_max, time.monotonic()))

    def link_down(self, reason: str) -> None:
        """The link is down, or does not come up."""
        # Reconnecting says the same again and again: once is enough for people.
        if reason != self._down_said:
            self._down_said = reason
            self._inbox.put(lambda r: r.observe(Report("broker_down", f"{reason}; trying again")))
        self._inbox.put(lambda r: r.driver.on_link_down(time.monotonic()))

    # -- the device's thread -----------------------------------------------------------------

    def publish(self, topic: str, payload: bytes) -> None:
        """Send."""
        self.link.publish(topic, payload)

    def start_work(self, work: TrainingWork) -> None:
        """Train on a thread of its own."""
        self._work = work

        def train() -> None:
            event = work.run()
            self._inbox.put(lambda r: r.driver.work_done(work, event, time.monotonic()))

        threading.Thread(target=train, name="potluck-training", daemon=True).start()

    def leave(self) -> None:
        """Say that the owner takes the device out; again until the coordinator answers."""
        self.driver.leave()

    def turn(self) -> None:
        """Do what is due, then wait for what comes."""
        now_s = time.monotonic()
        if now_s >= self._gate_at_s:
            self._judge(now_s)
        self.driver.wake(now_s)
        due = self.driver.next_wake_s
        wait_s = min(self._gate_at_s, self._gate_at_s if due is None else due) - time.monotonic()
        with contextlib.suppress(queue.Empty):
            self._inbox.get(timeout=max(wait_s, 0.0))(self)
            while True:
                self._inbox.get_nowait()(self)

    def _judge(self, now_s: float) -> None:
        self._gate_at_s = now_s + GATE_EVERY_S
        gate: GateOpened | GateClosed
        try:
            gate = judge(
                self._policy,
                self._conditions(),
                spent_bytes_today=self._spend(now_s),
                was_open=isinstance(self._gate, GateOpened),
            )
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            # The app's own source failed: nothing is known, so nothing is done.
            _log.warning("conditions: %s", error)
            gate = GateClosed("conditions_unknown")
        if gate != self._gate:
            self._gate = gate
            self.driver.on_gate(gate, now_s)

    def _spend(self, now_s: float, *, at_once: bool = False) -> int:
        """The day's bytes so far; written down once a minute."""
        traffic = self.link.traffic
        total = traffic.sent_bytes + traffic.received_bytes
        new, today = total - self._counted_bytes, int(time.time() // SECONDS_PER_DAY)
        if (new and now_s >= self._spend_at_s) or at_once:
            self._spend_at_s = now_s + SPEND_EVERY_S
            self._counted_bytes = total
            return self._journal.spend(today, new)
        return self._journal.spent_by_day().get(today, 0) + new

    def farewell(self) -> None:
        """Withdraw, and give the broker a moment to take it."""
        self.driver.on_gate(GateClosed("stopped"), time.monotonic())
        until_s = time.monotonic() + FAREWELL_S
        while self.link.up and self.link.in_flight and time.monotonic() < until_s:
            time.sleep(0.01)
        self._spend(time.monotonic(), at_once=True)

    def close(self) -> None:
        """Let go of everything, whatever has happened."""
        if self._work is not None:
            self._work.stop()
        self.link.stop()
        self._journal.close()
        self._lock.release()
