"""One coordinator as a process: a lock, a store, a broker, a link, and the loop between them.

The link's thread only puts what it hears into a bounded queue (a full one holds the broker back,
not the gateway's memory); this loop takes it, runs timers, and is the only one that touches the
store. It dies by kill -9 at any moment without losing what it has acknowledged.
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from coordinator.broker import BrokerStartError, EmbeddedBroker, free_port
from coordinator.calls import Calls
from coordinator.changes import ConfigChangeError
from coordinator.clock import Clock
from coordinator.config import FederationConfig
from coordinator.handover import Action, Handover
from coordinator.identity import STORE_FILE, load_identity
from coordinator.registry import MODELS_DIR
from coordinator.reload import ReloadDesk
from coordinator.service import Coordinator
from coordinator.spill import Spill
from coordinator.status import Status, take_status
from coordinator.store import Store, StoreError
from wire import (
    BrokerAddress,
    Crypto,
    Manifest,
    MqttLink,
    PotluckError,
    Report,
    TlsFiles,
    coordinator_id,
)
from wire.lock import InstanceLock
from wire.settings import SettingsError

EMBEDDED: Final = "embedded"
EMBEDDED_PORT: Final = "embedded_port"
BROKER_URL: Final = "broker_url"
_FEDERATION: Final = "federation"
_CRYPTO: Final = "crypto"
# The broker of a coordinator that was killed takes a moment to notice and to free its port.
BROKER_RETRY_S: Final = 5.0
BROKER_LOOK_EVERY_S: Final = 1.0
# Releases by other processes, and what the HTTP API's threads may see of this one's memory.
GLANCE_EVERY_S: Final = 1.0
# After the last round: until devices have heard what was settled and released.
LINGER_S: Final = 2.0
LINGER_S_MAX: Final = 15.0
_TURN_S_MAX: Final = 0.5
_QUEUE_MAX: Final = 4_096
_QUEUE_BYTES_MAX: Final = 8_388_608
_ITEMS_A_TURN: Final = 64


class TaskModelError(PotluckError):
    """`task.model()` or `task.test()` did not return what it should."""


def broker_url(store: Store) -> str | None:
    """Where devices find the broker: as the last run used it, or as `init` reserved it."""
    url = store.get(BROKER_URL)
    if url is not None:
        return url.decode()
    port = store.get(EMBEDDED_PORT)
    return None if port is None else f"mqtt://127.0.0.1:{int(port)}"


class Gateway:
    """One federation, running.

    Args:
        config: the federation's file.
        task: the task object; only `model()` and `test()` are called.
        state_dir: made by `init_state`.
        crypto: the signature scheme.
        observe: told every `Report`, on the loop's thread, and of the link on the link's.
        broker: a URL that replaces the file's; "embedded" starts one.
        ca: a CA file for `mqtts://`.
        seed: the federation's public seed; None derives one from the coordinator's key.
        first_gathering: how many devices to hear before the first round, if they come in time.
        reread: reads the federation's file again, when somebody asks for that.

    Raises:
        ConfigChangeError: the file has changed where it may not since the last run.
        StoreError: nobody has run `init` there, or the state is another federation's.
        AlreadyRunningError: another process runs this state directory.
        BrokerMissingError, BrokerStartError, BrokerAddressError: there is no broker to use.
        TaskModelError: the task is not one.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        task: Any,
        state_dir: Path,
        crypto: Crypto,
        observe: Callable[[Report], None],
        broker: str | None = None,
        ca: Path | None = None,
        seed: int | None = None,
        first_gathering: int = 0,
        reread: Callable[[], FederationConfig] | None = None,
    ) -> None:
        manifest, evaluator = _task_parts(task)
        keys = load_identity(state_dir, crypto)
        self.config = config
        self.broker: EmbeddedBroker | None = None
        self._observe = observe
        self._inbox = Handover(_QUEUE_MAX, _QUEUE_BYTES_MAX)
        self._room_said = False
        self._look_at_s = 0.0
        self._glance_at_s = 0.0
        self._calls: Calls | None = None
        self._clock = Clock(self._clock_set)
        self._down_said = ""
        self._stopped = False
        self._state_dir = state_dir
        self._spill: Spill | None = None
        self._lock = InstanceLock(state_dir)
        try:
            self.store = Store(state_dir / STORE_FILE)
            _check_name(self.store, config.federation.name)
            _check_crypto(self.store, crypto.name)
            public_key = keys.signer.public_key
            if seed is None:
                seed = int.from_bytes(bytes.fromhex(coordinator_id(public_key))[:4], "little")
            self.coordinator = Coordinator(
                config=config,
                manifest=manifest,
                evaluator=evaluator,
                store=self.store,
                keys=keys,
                crypto=crypto,
                publish=self._publish,
                observe=observe,
                now_s=time.time(),
                seed=seed,
                first_gathering=first_gathering,
                models_dir=state_dir / MODELS_DIR,
                in_flight_bytes=lambda: self.link.in_flight_bytes,
                disk=self._make_spill,
                free_bytes=lambda: shutil.disk_usage(state_dir).free,
            )
            self.url = self._start_broker(broker or config.broker.url, state_dir)
            address = BrokerAddress.parse(self.url)
            self.link = MqttLink(
                address,
                f"coordinator-{coordinator_id(public_key)}",
                subscriptions=self.coordinator.subscriptions,
                on_message=self._hear,
                on_up=self._link_up,
                on_down=self._link_down,
                packet_bytes_max=config.broker.packet_bytes_max,
                tls=None if ca is None else TlsFiles(str(ca)),
                on_taken=self._taken,
            )
            if self.store.get(BROKER_URL) != self.url.encode():
                self.store.put(BROKER_URL, self.url.encode())
            self._reread = reread
            self._desk = ReloadDesk(state_dir)
        except BaseException:
            self._release()
            raise

    def _make_spill(self, largest_bytes: int) -> Spill:
        self._spill = Spill(self._state_dir, largest_bytes)
        return self._spill

    def _start_broker(self, url: str, state_dir: Path) -> str:
        if url != EMBEDDED:
            return url
        port = self.store.get(EMBEDDED_PORT)
        if port is None:
            # A set-up that was cut short has none: from now on it is this one.
            port = str(free_port()).encode()
            self.store.put(EMBEDDED_PORT, port)
        self.broker = EmbeddedBroker(
            port=int(port),
            state_dir=state_dir / "broker",
            packet_bytes_max=self.config.broker.packet_bytes_max,
        )
        until_s = time.monotonic() + BROKER_RETRY_S
        while True:
            try:
                self.broker.start()
            except BrokerStartError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.1)
            else:
                return self.broker.url

    # -- the link's thread -------------------------------------------------------------------

    def _hear(self, topic: str, data: bytes) -> None:
        self._hand_over(lambda now_s: self.coordinator.on_frame(topic, data, now_s), len(data))

    def _hand_over(self, action: Action, size_bytes: int = 0) -> None:
        """Wait for room in the queue, which holds the broker back, but not for a loop that ends."""
        while not self._stopped:
            if self._inbox.put(action, size_bytes=size_bytes, timeout_s=_TURN_S_MAX):
                return

    def _taken(self) -> None:
        """The broker has room again: wake the loop if it waits for that, and never wait here."""
        if self.coordinator.has_more_to_send and not self._room_said:
            # Where the queue is full the loop is awake as it is.
            self._room_said = self._inbox.put(self._send_more)

    def _send_more(self, _now_s: float) -> None:
        self._room_said = False
        self.coordinator.send_more()

    def _link_up(self, packet_bytes_max: int) -> None:
        self._hand_over(lambda now_s: self._on_link_up(packet_bytes_max, now_s))

    def _link_down(self, reason: str) -> None:
        # Reconnecting says the same again and again: once is enough for people.
        if reason != self._down_said and not self._stopped:
            self._down_said = reason
            self._hand_over(lambda _now_s: self.coordinator.on_link_down())
            self._observe(Report("broker_down", f"{reason}; trying again"))

    # -- the loop ----------------------------------------------------------------------------

    def _on_link_up(self, packet_bytes_max: int, now_s: float) -> None:
        self._down_said = ""
        self._observe(Report("broker_up", self.url))
        self.coordinator.on_link_up(packet_bytes_max, now_s)

    def _clock_set(self, by_s: float) -> None:
        self.coordinator.on_clock_step(by_s, time.time())

    def _publish(self, topic: str, data: bytes) -> None:
        self.link.publish(topic, data)

    def open_calls(self) -> Calls:
        """Take calls from other threads, and keep `status` fresh; before `start`."""
        self._calls = self._calls or Calls(self._wake)
        self._glance(time.monotonic())
        return self._calls

    def _wake(self) -> None:
        # Without room the queue is full, and the loop not asleep.
        self._inbox.put(lambda _now_s: self._look_around())

    def start(self) -> None:
        """Resume or begin; `turn` goes on from here."""
        self.coordinator.start(self._clock.now_s())
        self.link.start()

    def turn(self, wait_s: float = _TURN_S_MAX) -> None:
        """Do what is due, then take what comes within `wait_s`."""
        self._look_after_broker()
        self._look_around()
        if self._desk.asked():
            self._desk.answer(self.reload())
        self.coordinator.wake(self._clock.now_s())
        due_s = self.coordinator.next_wake_s
        if due_s is not None:
            wait_s = min(wait_s, max(due_s - self._clock.now_s(), 0.0))
        action = self._inbox.take(wait_s)
        if action is None:
            return
        with self.coordinator.burst(self._clock.now_s):
            # However many wait: timers and whoever wants to stop have their turn.
            for left in reversed(range(_ITEMS_A_TURN)):
                action(self._clock.now_s())
                action = self._inbox.take() if left else None
                if action is None:
                    break

    def ask_to_reload(self) -> None:
        """Let the loop read the federation's file again; may be called by a signal handler."""
        self._desk.signal()

    def reload(self) -> str:
        """Read the federation's file again; returns why it is not taken, "" if it is.

        What has changed is in force from the next round on. A file that is not taken changes
        nothing.
        """
        if self._reread is None:
            return "this coordinator was not given a file"
        try:
            self.coordinator.reconfigure(self._reread(), self._clock.now_s())
        except (ConfigChangeError, SettingsError) as error:
            self._observe(Report("config_rejected", f"{error}; the old one stays in force"))
            return str(error)
        self._observe(Report("config_read", "in force from the next round on"))
        return ""

    def run(self, stop: Callable[[], bool], *, stay: bool = False) -> None:
        """Turn until `stop()`, or until every round is closed and said, unless told to stay."""
        self.start()
        finished_at_s: float | None = None
        while not stop():
            self.turn()
            if stay or not self.coordinator.finished:
                continue
            finished_at_s = finished_at_s or time.monotonic()
            lingered_s = time.monotonic() - finished_at_s
            said = not self.link.up or self.link.in_flight == 0
            if lingered_s >= LINGER_S_MAX or (lingered_s >= LINGER_S and said):
                return

    def _look_around(self) -> None:
        """Hear of what other processes and threads want."""
        if self._calls is not None:
            self._calls.run(self._clock.now_s())
        steady_s = time.monotonic()
        if steady_s >= self._glance_at_s:
            self.coordinator.releases.tell()
            self._glance(steady_s)

    def _glance(self, steady_s: float) -> None:
        self._glance_at_s = steady_s + GLANCE_EVERY_S
        if self._calls is not None:
            self.status: Status = take_status(
                self.coordinator,
                link_up=self.link.up,
                now_s=self._clock.now_s(),
                steady_s=steady_s,
            )

    def _look_after_broker(self) -> None:
        if self.broker is None or time.monotonic() < self._look_at_s:
            return
        self._look_at_s = time.monotonic() + BROKER_LOOK_EVERY_S
        if not self.broker.running:
            self._observe(Report("broker_down", "the embedded broker ended; starting it again"))
            with contextlib.suppress(BrokerStartError):
                self.broker.start()

    def stop(self) -> None:
        """End in good order: counts are written, the broker goes last."""
        self._stopped = True
        self.coordinator.stop()
        self.link.stop()
        self._release()

    def _release(self) -> None:
        if self.broker is not None:
            self.broker.stop()
        if self._spill is not None:
            self._spill.close()
        if hasattr(self, "store"):
            self.store.close()
        self._lock.release()


def _check_name(store: Store, name: str) -> None:
    """A state directory is one federation's for good: devices know it by its name."""
    known = store.get(_FEDERATION)
    if known is None:
        store.put(_FEDERATION, name.encode())
    elif known != name.encode():
        raise StoreError(
            f"{store.path}: belongs to the federation {known.decode()!r}, and the file says"
            f" {name!r}; use another state directory for it"
        )


def _check_crypto(store: Store, name: str) -> None:
    """Keys that were made for one kind of signature are worth nothing to another."""
    known = store.get(_CRYPTO)
    if known is None:
        store.put(_CRYPTO, name.encode())
    elif known != name.encode():
        raise StoreError(
            f"{store.path}: its devices sign with {known.decode()!r}, not {name!r}; use another"
            " state directory"
        )


def _task_parts(task: Any) -> tuple[Manifest, Any]:
    """What a coordinator needs of a task: the model, and test data if the task has some."""
    try:
        manifest = task.model()
    except Exception as error:
        raise TaskModelError(f"task.model() raised {type(error).__name__}: {error}") from error
    if not isinstance(manifest, Manifest):
        raise TaskModelError(
            f"task.model() returned {type(manifest).__name__}, not a wire.Manifest"
        )
    make_test = getattr(task, "test", None)
    if make_test is None:
        return manifest, None
    try:
        evaluator = make_test()
    except Exception as error:
        raise TaskModelError(f"task.test() raised {type(error).__name__}: {error}") from error
    if evaluator is not None and not callable(getattr(evaluator, "evaluate", None)):
        raise TaskModelError(f"task.test() returned {type(evaluator).__name__}, without evaluate()")
    return manifest, evaluator
