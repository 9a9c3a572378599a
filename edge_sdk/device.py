"""The device as an app embeds it: one object, one background thread, nothing that blocks the app.

Everything that goes on while it runs is in `_running`, on threads of its own.
"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_sdk._running import Running
from edge_sdk.described import DescribedDriver
from edge_sdk.description import FileDescriptions
from edge_sdk.driver import DeviceDriver
from edge_sdk.energy import energy_of
from edge_sdk.enrolment import CA_FILE, EnrolmentError, enrol, tls_files
from edge_sdk.example_store import ExampleStore, ExampleStoreError
from edge_sdk.journal import JOURNAL_FILE, Enrolment, SqliteJournal
from edge_sdk.models import FileShelf
from edge_sdk.newcomer import Newcomer
from edge_sdk.parts import PartFiles
from edge_sdk.policy import SECONDS_PER_DAY, Policy, Source, conditions_from, sense
from edge_sdk.signals import ForgetUpdate
from edge_sdk.trainer import DeviceInfo, Model, TrainerTask, load_task, read_only
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

_MODELS: Final = "models"
# In it: what has arrived of a description.
_PARTS: Final = "description"
_log = logging.getLogger("potluck.device")


class DeviceError(PotluckError):
    """The device cannot run; the text says why and what to do."""


class NoModelYetError(DeviceError):
    """The model comes from the coordinator, and is not here yet: let the device run."""


@dataclass(frozen=True)
class DeviceStatus:
    """What a device did, spent and waits for, from its journal.

    `spent_bytes_today` are MQTT bytes both ways in the current UTC day, `spent_joules_today` the
    estimated energy beyond idling, `spent_training_s_today` seconds of training and evaluation.
    `waits` is why it begins nothing, a word of `edge_sdk.reasons`, as of its last look at its
    rules; empty when it may. `description` is the digest (hex) of the description that the model is
    from; empty when the task has a model of its own, or nothing has come yet.
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
    description: str = ""


def read_status(state_dir: Path | str) -> DeviceStatus:
    """Read the journal of a device, running or not.

    Raises:
        JournalError: no device has run there.
    """
    journal = SqliteJournal(Path(state_dir), read_only=True)
    try:
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
            description=journal.description().hex(),
        )
    finally:
        journal.close()


class Device:
    """One device of a federation.

    Args:
        task: an object with `trainer` and, unless the model comes from the coordinator, `model`; or
            its name, `module:object`.
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
        task: TrainerTask | str,
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
        self.task: Any = task
        if isinstance(task, str):
            self.task = load_task(task, needs_model=False)
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
        # Nothing but this: it may be called from a signal handler in the middle of anything.
        self._stopping.set()
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

        Raises:
            NoModelYetError: the task has no model, and none has come from the coordinator yet.
            DeviceError: the task's model is none.
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

    def _task_manifest(self) -> Manifest | None:
        """The task's own; None when the model comes from the coordinator."""
        make = getattr(self.task, "model", None)
        if self._manifest is None and make is not None:
            try:
                self._manifest = make()
            except Exception as error:
                raise DeviceError(f"task.model() raised {type(error).__name__}: {error}") from error
        if self._manifest is not None and not isinstance(self._manifest, Manifest):
            raise DeviceError("task.model() did not return a wire.Manifest")
        return self._manifest

    def _stored_model(self) -> Model:
        manifest = self._task_manifest()
        version, digest = 0, ""
        with contextlib.suppress(PotluckError):
            status = read_status(self.state_dir)
            version, digest = status.model_version, status.description
        if manifest is None:
            manifest = self._descriptions().load(bytes.fromhex(digest)) if digest else None
        if manifest is None:
            raise NoModelYetError(
                f"{self.state_dir}: no model yet: it comes from the coordinator, once the device"
                " has run with a link"
            )
        shelf = FileShelf(self.state_dir / _MODELS, manifest.schema)
        shared = shelf.load(version) if version else None
        tensors = manifest.complete(shared or {}, shelf.personal())
        path = shelf.path(version) if shared else None
        return Model(version if shared else 0, read_only(tensors), path, manifest.artefact)

    def _descriptions(self) -> FileDescriptions:
        return FileDescriptions(self.state_dir / _MODELS)

    def _prepare(self) -> Running:
        manifest = self._task_manifest()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            lock = InstanceLock(self.state_dir)
            undo.callback(lock.release)
            journal = SqliteJournal(self.state_dir)
            undo.callback(journal.close)
            running = self._assemble(manifest, lock, journal)
            undo.pop_all()
        self._stopping.clear()
        self._revoked.clear()
        self.error = None
        self._current = running
        self._model = running.driver.released or self._model
        return running

    def _assemble(
        self, manifest: Manifest | None, lock: InstanceLock, journal: SqliteJournal
    ) -> Running:
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
        )
        signer = self._crypto.signer(journal.identity_key(self._secrets.token(32)))

        def make_driver(manifest: Manifest, description_digest: bytes = b"") -> DeviceDriver:
            info = dataclasses.replace(self._info, manifest=manifest)
            return DeviceDriver(
                manifest=manifest,
                make_trainer=lambda: self.task.trainer(info),
                journal=journal,
                shelf=FileShelf(self.state_dir / _MODELS, manifest.schema),
                enrolment=enrolment,
                signer=signer,
                crypto=self._crypto,
                publish=running.publish,
                start_work=running.start_work,
                observe=self._observe,
                device_class=self._device_class,
                means=running.gatekeeper.means,
                description_digest=description_digest,
            )

        def make_newcomer(have_digest: bytes) -> Newcomer:
            return Newcomer(
                have_digest=have_digest,
                journal=journal,
                descriptions=self._descriptions(),
                enrolment=enrolment,
                signer=signer,
                crypto=self._crypto,
                publish=running.publish,
                observe=self._observe,
                means=running.gatekeeper.means,
                parts=PartFiles(self.state_dir / _MODELS / _PARTS),
            )

        if manifest is not None:
            running.driver = make_driver(manifest)
        else:
            running.driver = DescribedDriver(
                journal=journal,
                descriptions=self._descriptions(),
                make_driver=make_driver,
                make_newcomer=make_newcomer,
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
        try:
            running.link.start()
            while not self._stopping.is_set():
                running.turn()
                self._model = running.driver.released or self._model
                if running.driver.revoked:
                    self._revoked.set()
                    break
            running.farewell()
        except Exception as error:  # noqa: BLE001 - the app goes on, whatever ended the device
            # A full disk, a journal that is gone: the device says why it does not go on.
            self.error = DeviceError(f"{self.state_dir}: {error}")
            self._observe(Report("device_stopped", str(error)))
        finally:
            running.close()

    def _observe(self, report: Report) -> None:
        _log.info("%s %s", report.what, report.detail)
        if self._on_report is not None:
            try:
                self._on_report(report)
            except Exception:  # noqa: BLE001 - the app's own code
                _log.exception("on_report raised")
