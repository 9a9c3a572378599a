"""The device as an app embeds it: one object, one background thread, nothing that blocks the app.

Everything that goes on while it runs is in `_running`, on threads of its own.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_sdk._running import Running
from edge_sdk.driver import DeviceDriver
from edge_sdk.energy import energy_of
from edge_sdk.enrolment import CA_FILE, EnrolmentError, enrol, tls_files
from edge_sdk.example_store import ExampleStore, ExampleStoreError
from edge_sdk.journal import JOURNAL_FILE, Enrolment, SqliteJournal, no_room, readable
from edge_sdk.models import FileShelf
from edge_sdk.policy import SECONDS_PER_DAY, Policy, Source, conditions_from, sense
from edge_sdk.session import Phase
from edge_sdk.signals import ForgetUpdate
from edge_sdk.trainer import DeviceInfo, Model, Task, load_task, read_only
from edge_sdk.work import blamed
from wire import (
    Crypto,
    Ed25519,
    Manifest,
    PotluckError,
    Report,
    SecretSource,
    SystemSecrets,
)
from wire.lock import LOCK_FILE, InstanceLock
from wire.token import TokenFileError, read_tokens

# How long `stop` waits for what it cannot hurry: a farewell, a connection that is being made.
STOP_S_MAX: Final = 15.0
# How long a device without room waits before it starts anew.
NO_ROOM_S: Final = 5.0
_MODELS: Final = "models"
_log = logging.getLogger("potluck.device")


class DeviceError(PotluckError):
    """The device cannot run; the text says why and what to do."""


@dataclass(frozen=True)
class DeviceStatus:
    """What a device did, spent and waits for, from its journal.

    `spent_bytes_today` are MQTT bytes both ways in the current UTC day, `spent_joules_today` the
    estimated energy beyond idling, `spent_training_s_today` seconds of training and evaluation.
    `waits` is why it begins nothing, a word of `edge_sdk.reasons`, as of its last look at its
    rules; empty when it may.
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
    waits: str
    spent_bytes_today: int
    spent_joules_today: float
    spent_training_s_today: float
    history: tuple[ForgetUpdate, ...]


def read_status(state_dir: Path | str) -> DeviceStatus:
    """Read the journal of a device, running or not.

    Raises:
        JournalError: no device has run there, or its journal cannot be read.
    """
    journal = SqliteJournal(Path(state_dir), read_only=True)
    try:
        with readable(journal.path):
            return _status_in(journal)
    finally:
        journal.close()


def _status_in(journal: SqliteJournal) -> DeviceStatus:
    kept, history = journal.kept(), journal.history()
    spent = journal.spent(int(time.time() // SECONDS_PER_DAY))
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
        waits=journal.waits,
        spent_bytes_today=spent.traffic_bytes,
        spent_joules_today=round(spent.joules, 3),
        spent_training_s_today=round(spent.training_s, 3),
        history=tuple(history),
    )


class Device:
    """One device of a federation.

    Args:
        task: an object with `model` and `trainer`, or its name, `module:object`.
        state_dir: where key, journal and models are kept; one device each.
        policy: what the owner allows.
        conditions: asked every few seconds what the device is like; the operating system's own
            word by default. A function, or a mapping from fields of `Conditions` to values or
            functions, which leaves the rest to the system.
        on_report: told what happens, on the device's thread; keep it short.
        device_class: a class of `device_profiles`, for reports by class and estimates of energy.
        info: handed to `task.trainer`.
        broker: a URL that replaces the token's own.
        examples: the app's own store of examples, which `leave` deletes too.
        crypto: the signature scheme.
        secrets: where the device's key comes from.
    """

    def __init__(
        self,
        task: Task | str,
        state_dir: Path | str,
        *,
        policy: Policy | None = None,
        conditions: Source = sense,
        on_report: Callable[[Report], None] | None = None,
        device_class: str = "unknown",
        info: DeviceInfo | None = None,
        broker: str | None = None,
        examples: ExampleStore | None = None,
        crypto: Crypto | None = None,
        secrets: SecretSource | None = None,
    ) -> None:
        self.task: Any = load_task(task) if isinstance(task, str) else task
        self.state_dir = Path(state_dir)
        self.policy = policy or Policy()
        self.error: PotluckError | None = None
        self._conditions = conditions_from(conditions, self.state_dir)
        self._on_report = on_report
        self._device_class = device_class
        self._info = info or DeviceInfo()
        self._broker = broker
        self._examples = examples
        self._crypto = crypto or Ed25519()
        self._secrets = secrets or SystemSecrets()
        self._manifest: Manifest | None = None
        self._model: Model | None = None
        self._thread: threading.Thread | None = None
        self._current: Running | None = None
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
            known = journal.enrolment
            if known is not None and journal.revoked is None:
                self._refuse_strangers(known, Path(token_file))
                return
            tokens = read_tokens(Path(token_file))
            if known is not None:
                journal.reset()  # revoked: a new key, a new name, a new beginning
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

    def _refuse_strangers(self, known: Enrolment, token_file: Path) -> None:
        """A device has one coordinator; another's tokens are a mistake that somebody should see."""
        with contextlib.suppress(TokenFileError):
            keys = {bytes.fromhex(token.coordinator_key) for token in read_tokens(token_file)}
            if known.coordinator_key not in keys:
                raise EnrolmentError(
                    f"{self.state_dir}: is enrolled with another coordinator; use another state"
                    " directory, or leave() first"
                )

    def start(self) -> None:
        """Take part in the background, until `stop`.

        Raises:
            DeviceError: not enrolled, or started already.
            AlreadyRunningError: another process runs this state directory.
        """
        if self.running:
            raise DeviceError("the device is running already")
        running = self._begin()
        self._thread = threading.Thread(
            target=self._run, args=(running,), name="potluck-device", daemon=True
        )
        self._thread.start()

    def run(self) -> None:
        """Take part on this thread; returns after `stop` or when the device is revoked.

        Raises:
            DeviceError: not enrolled, running already, or its state can no longer be written.
        """
        self._run(self._begin())
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End in good order: work that is not sealed is given up, what is sealed is kept.

        Returns within seconds, also when a trainer does not: its thread is then left alone.
        """
        # Nothing but this: it may be called from a signal handler in the middle of anything.
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_S_MAX)
            if self._thread.is_alive():
                # Something of the app's own does not return to it; it ends with the process.
                _log.warning("%s: the device has not stopped yet", self.state_dir)
                return
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
            if self._current is not None:
                self._current.ask_to_leave()
            confirmed = self._revoked.wait(timeout_s)
        self.stop()
        self._delete()
        self._model = None
        return confirmed

    def _delete(self) -> None:
        """Remove what this class has made, and the examples; what else is there is not ours."""
        import shutil  # noqa: PLC0415 - once in a device's life

        if self._examples is not None:
            try:
                self._examples.destroy()
            except ExampleStoreError as error:
                _log.warning("examples: %s", error)
        shutil.rmtree(self.state_dir / _MODELS, ignore_errors=True)
        for pattern in (f"{JOURNAL_FILE}*", CA_FILE, f"{LOCK_FILE}*"):
            for path in self.state_dir.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.state_dir.rmdir()

    # -- the thread --------------------------------------------------------------------------

    def _task_manifest(self) -> Manifest:
        if self._manifest is None:
            try:
                self._manifest = self.task.model()
            except Exception as error:
                raise DeviceError(f"task.model() raised {type(error).__name__}: {error}") from error
        if not isinstance(self._manifest, Manifest):
            raise DeviceError("task.model() did not return a wire.Manifest")
        return self._manifest

    def _stored_model(self) -> Model:
        manifest = self._task_manifest()
        shelf = FileShelf(self.state_dir / _MODELS, manifest.schema)
        version = 0
        try:
            version = read_status(self.state_dir).model_version
        except PotluckError:
            # Without a journal: of those that are kept, the app's is the oldest.
            version = next((v for v in shelf.versions() if shelf.load(v)), 0)
        shared = shelf.load(version) if version else None
        tensors = manifest.complete(shared or {}, shelf.personal())
        path = shelf.path(version) if shared else None
        return Model(version if shared else 0, read_only(tensors), path, manifest.artefact)

    def _begin(self) -> Running:
        running = self._prepare()
        self._stopping.clear()
        self._revoked.clear()
        self.error = None
        return running

    def _prepare(self) -> Running:
        manifest = self._task_manifest()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            lock = InstanceLock(self.state_dir)
            undo.callback(lock.release)
            journal = SqliteJournal(self.state_dir)
            undo.callback(journal.close)
            with readable(journal.path):
                running = self._assemble(manifest, lock, journal)
            undo.pop_all()
        self._current = running
        self._model = running.driver.released
        return running

    def _assemble(self, manifest: Manifest, lock: InstanceLock, journal: SqliteJournal) -> Running:
        from wire import BrokerAddress, MqttLink  # noqa: PLC0415 - paho-mqtt, loaded when it is used

        enrolment = journal.enrolment
        if enrolment is None or journal.revoked is not None:
            why = "is not enrolled" if enrolment is None else f"was revoked ({journal.revoked})"
            raise DeviceError(f"{self.state_dir}: the device {why}; enrol it with a token first")
        running = Running(
            lock=lock,
            journal=journal,
            conditions=self._conditions,
            policy=self.policy,
            energy=energy_of(self._device_class),
            observe=self._observe,
            left_over=None if self._current is None else self._current.training.left_over,
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
            means=running.gatekeeper.means,
            may_send=running.gatekeeper.may_send,
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
        return running

    def _run(self, running: Running) -> None:
        current: Running | None = running
        try:
            while current is not None:
                current = self._once(current)
        except BaseException as error:  # noqa: BLE001 - the app goes on, whatever ended the device
            # A journal that is gone, say: the device says why it does not go on.
            self.error = DeviceError(f"{self.state_dir}: {blamed(error)[1]}")
            self._observe(Report("device_stopped", blamed(error)[1]))

    def _once(self, running: Running) -> Running | None:
        """Run until it ends; what comes after it, if it was the disk that ended it."""
        try:
            running.link.start()
            while not self._stopping.is_set():
                running.turn()
                self._model = running.driver.released
                if running.driver.session.phase is Phase.REVOKED:
                    self._revoked.set()
                    break
            running.farewell()
        except Exception as error:
            if not no_room(error):
                raise
            self._observe(Report("no_room", f"{error}; trying again"))
        else:
            return None
        finally:
            running.close()
        return self._again()

    def _again(self) -> Running | None:
        """Start anew from what the disk holds, as after a crash, once it can be written."""
        while not self._stopping.wait(NO_ROOM_S):
            try:
                running = self._prepare()
            except Exception as error:
                if not no_room(error.__cause__ or error):
                    raise
                continue
            self._observe(Report("room_again"))
            return running
        return None

    def _observe(self, report: Report) -> None:
        _log.info("%s %s", report.what, report.detail)
        if self._on_report is not None:
            try:
                self._on_report(report)
            except (Exception, SystemExit):  # noqa: BLE001 - the app's own code
                _log.exception("on_report raised")
