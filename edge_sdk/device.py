"""The device as an app embeds it: one object, one background thread, nothing that blocks the app.

Everything that goes on while it runs is in `_running`, on threads of its own.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.consent import MODELS_DIR, delete_state, opt_in, opt_out
from edge_sdk.enrolment import EnrolmentError, enrol
from edge_sdk.journal import Enrolment, SqliteJournal, no_room, readable
from edge_sdk.models import FileShelf
from edge_sdk.policy import Policy, Source, conditions_from, sense
from edge_sdk.status import DeviceStatus, read_status
from edge_sdk.trainer import DeviceInfo, Model, Stop, TrainerTask, load_task, read_only
from edge_sdk.user_code import blamed
from wire import (
    Crypto,
    Ed25519,
    Manifest,
    Plan,
    PotluckError,
    Report,
    SecretSource,
    SystemSecrets,
)
from wire.lock import InstanceLock
from wire.token import TokenFileError, read_tokens

if TYPE_CHECKING:
    from edge_sdk._assembly import Kit
    from edge_sdk._running import Running
    from edge_sdk.description import FileDescriptions
    from edge_sdk.example_store import ExampleStore
    from edge_sdk.fine_tuning import FineTuned
    from edge_sdk.release_check import ReleaseCheck

# While an app waits for its fine-tuning, it looks whether the device still runs.
_LOOK_EVERY_S: Final = 0.5
# How long `stop` waits for what it cannot hurry: a farewell, a connection that is being made.
STOP_S_MAX: Final = 15.0
# How long a device without room waits before it starts anew.
NO_ROOM_S: Final = 5.0
_log = logging.getLogger("potluck.device")


class DeviceError(PotluckError):
    """The device cannot run; the text says why and what to do."""


class NoModelYetError(DeviceError):
    """The model comes from the coordinator, and is not here yet: let the device run."""


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
        check_release: the app's own word on a release before it sees it; see `ReleaseCheck`.
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
        examples: "ExampleStore | None" = None,
        check_release: "ReleaseCheck | None" = None,
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
        self._check_release = check_release
        self._crypto = crypto or Ed25519()
        self._secrets = secrets or SystemSecrets()
        self._manifest: Manifest | None = None
        self._model: Model | None = None
        self._model_lock = threading.Lock()
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
        # Nothing but these: it may be called from a signal handler in the middle of anything.
        self._stopping.set()
        if self._current is not None:
            self._current.wake()
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

        Raises:
            NoModelYetError: the task has no model, and none has come from the coordinator yet.
            DeviceError: the task's model is none.
        """
        model = self._model
        if model is None:
            with self._model_lock:  # of two that ask at once, and a device that starts meanwhile
                model = self._model = self._model or self._stored_model()
        return model

    def fine_tune(
        self, plan: Plan | None = None, *, anyway: bool = False, stop: Stop = lambda: False
    ) -> "FineTuned":
        """Train the personal part of the model on the device's own examples; blocks.

        All else is held fixed, nothing is sent, and the app's model has the new part when this
        returns. It takes its turn with the rounds, runs or not, and counts in the day's budgets.

        Args:
            plan: how to train; five epochs if None.
            anyway: whatever the policy says; else a closed gate refuses or stops it.
            stop: asked between batches.

        Raises:
            FineTuningError: it was not trained, and is as it was; `.reason` says why.
            DeviceError: the task cannot say what its model is.
            AlreadyRunningError: another process runs this state directory.
        """
        from edge_sdk import fine_tuning  # noqa: PLC0415 - as `_kit`
        from edge_sdk._assembly import fine_tune_here  # noqa: PLC0415 - as `_kit`

        manifest = self._known_manifest()
        fine_tuning.check_has_personal(manifest)
        plan = fine_tuning.FINE_TUNING_PLAN if plan is None else plan
        running = self._current
        if self.running and running is not None:
            work = fine_tuning.FineTuneWork(
                plan, manifest, self.model, running.driver.make_trainer, anyway, stop
            )
            running.fine_tune(work)
            while not work.done.wait(_LOOK_EVERY_S) and not running.closed:
                pass
            result = work.result or fine_tuning.FineTuningError("stopped")
        else:
            model = self._stored_model()
            result = fine_tune_here(self._kit(), plan, manifest, model, anyway=anyway, stop=stop)
        if isinstance(result, fine_tuning.FineTuningError):
            raise result
        with self._model_lock:
            self._model = running.driver.released if self.running and running else None
        return result

    @property
    def status(self) -> DeviceStatus:
        """What the device did, spent and waits for."""
        return read_status(self.state_dir)

    def opt_out(self) -> None:
        """Send nothing any more, and take no part, until `opt_in`; a restart changes nothing.

        What is not sealed is given up; a sealed update stays here. The app keeps its model.

        Raises:
            JournalError: no device has run here, or its journal cannot be written.
        """
        opt_out(self.state_dir)
        self._tell_running()

    def opt_in(self) -> None:
        """Take part again.

        Raises:
            JournalError: no device has run here, or its journal cannot be written.
        """
        opt_in(self.state_dir)
        self._tell_running()

    def _tell_running(self) -> None:
        if self.running and self._current is not None:
            self._current.ask_owner()

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
        if self._examples is not None:
            from edge_sdk.example_store import ExampleStoreError  # noqa: PLC0415 - as above

            try:
                self._examples.destroy()
            except ExampleStoreError as error:
                _log.warning("examples: %s", error)
        delete_state(self.state_dir)

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

    def _known_manifest(self) -> Manifest:
        """The task's own, or the one that has come from the coordinator.

        Raises:
            NoModelYetError: there is neither.
        """
        manifest = self._task_manifest()
        if manifest is None:
            digest = b""
            with contextlib.suppress(PotluckError):
                digest = bytes.fromhex(read_status(self.state_dir).description)
            manifest = self._descriptions().load(digest) if digest else None
        if manifest is None:
            raise NoModelYetError(
                f"{self.state_dir}: no model yet: it comes from the coordinator, once the device"
                " has run with a link"
            )
        return manifest

    def _stored_model(self) -> Model:
        manifest = self._known_manifest()
        shelf = FileShelf(self.state_dir / MODELS_DIR, manifest.schema)
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

    def _begin(self) -> "Running":
        if self.running:
            raise DeviceError("the device is running already")
        # First of all: a `stop` that comes from now on, by a signal say, is not forgotten.
        self._stopping.clear()
        self._revoked.clear()
        self.error = None
        return self._prepare()

    def _descriptions(self) -> "FileDescriptions":
        # Only a device without a model of its own needs this, and what `_assemble` loads late.
        from edge_sdk.description import FileDescriptions  # noqa: PLC0415 - as above

        return FileDescriptions(self.state_dir / MODELS_DIR)

    def _prepare(self) -> "Running":
        from edge_sdk._assembly import assemble  # noqa: PLC0415 - as `_kit`

        manifest = self._task_manifest()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            lock = InstanceLock(self.state_dir)
            undo.callback(lock.release)
            journal = SqliteJournal(self.state_dir)
            undo.callback(journal.close)
            with readable(journal.path):
                enrolment = journal.enrolment
                if enrolment is None or journal.revoked is not None:
                    why = "is not enrolled"
                    if enrolment is not None:
                        why = f"was revoked ({journal.revoked})"
                    raise DeviceError(
                        f"{self.state_dir}: the device {why}; enrol it with a token first"
                    )
                running = assemble(self._kit(), manifest, enrolment, lock, journal)
            undo.pop_all()
        self._current = running
        with self._model_lock:
            self._model = running.driver.released or self._model
        return running

    def _kit(self) -> "Kit":
        from edge_sdk._assembly import Kit  # noqa: PLC0415 - an app that reads its model needs none

        return Kit(
            task=self.task,
            state_dir=self.state_dir,
            policy=self.policy,
            conditions=self._conditions,
            observe=self._observe,
            device_class=self._device_class,
            info=self._info,
            broker=self._broker,
            check_release=self._check_release,
            crypto=self._crypto,
            key_seed=self._secrets.token(32),
            left_over=None if self._current is None else self._current.training.left_over,
        )

    def _run(self, running: "Running") -> None:
        current: Running | None = running
        try:
            while current is not None:
                current = self._once(current)
        except BaseException as error:  # noqa: BLE001 - the app goes on, whatever ended the device
            # A journal that is gone, say: the device says why it does not go on.
            self.error = DeviceError(f"{self.state_dir}: {blamed(error)[1]}")
            self._observe(Report("device_stopped", blamed(error)[1]))

    def _once(self, running: "Running") -> "Running | None":
        """Run until it ends; what comes after it, if it was the disk that ended it."""
        try:
            running.begin()
            while not self._stopping.is_set():
                running.turn()
                self._model = running.driver.released or self._model
                if running.driver.revoked:
                    self._revoked.set()
                    break
                if running.has_left:
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

    def _again(self) -> "Running | None":
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
