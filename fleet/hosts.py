"""The processes of a world: the coordinator's and one for each device, with disk, clock and power.

They run the very code that gateways and devices run. What is modelled is what lies around it: a
process stops at an effect, its memory is gone, its disk is as it was, and some time later it starts
again from there.
"""

import functools
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from coordinator import Coordinator, FederationConfig, init_state, load_identity
from coordinator.evaluation import Evaluator
from coordinator.identity import Identity
from device_profiles import DeviceProfile, conditions_at, training_seconds
from edge_sdk import Conditions, Policy
from edge_sdk.policy import judge
from edge_sdk.signals import GateClosed, GateOpened
from edge_sdk.work import TrainingWork
from fleet.crypto import SeededSecrets
from fleet.disk import CoordinatorDisk, DeviceDisk, Fuse, PowerCutError
from fleet.emulated import EmulatedDevice
from fleet.network import Callbacks, Network, VirtualLink
from fleet.world import World
from wire import Crypto, Manifest, Report

VirtualDevice = EmulatedDevice[VirtualLink]

GATE_EVERY_S: Final = 300.0
REBOOT_S: Final = 30.0
_MICROSECOND_S: Final = 1e-6
_FAILED_TRAINING_S: Final = 1.0
_GATEWAY_BYTES_PER_S: Final = 5e6
_GATEWAY_DELAY_S: Final = 0.002
_MBIT_BYTES: Final = 125_000.0
_DEVICE_DELAY_S: Final = (0.01, 0.08)


class Host(ABC):
    """A process that may be up or down.

    Args:
        world: where it lives.
        name: for the trace.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.fuse = Fuse()
        self.running = False
        self.gone = False
        self.starts = 0
        self.started_at_s = 0.0
        self.crashes = 0
        self._wake_at_s: float | None = None

    # -- what a kind of host adds ------------------------------------------------------------

    @abstractmethod
    def boot(self) -> None:
        """Start from what is on disk."""

    @abstractmethod
    def end_link(self, *, silent: bool) -> None:
        """The process is gone, and its connection with it."""

    @abstractmethod
    def next_wake_s(self) -> float | None:
        """When a timer is due, in the world's time."""

    @abstractmethod
    def wake(self) -> None:
        """Run the timers that are due."""

    # -- life and death ----------------------------------------------------------------------

    def start(self) -> None:
        """Power is on."""
        if self.running or self.gone:
            return
        self.running = True
        self.world.stirred[self.name] = None
        self.starts += 1
        self.started_at_s = self.world.now_s
        self._wake_at_s = None
        self.enter(self.boot)

    def crash(self, *, down_s: float = REBOOT_S, silent: bool = False) -> None:
        """Power is off, and comes back after a while."""
        if not self.running:
            return
        self.running = False
        self.world.stirred[self.name] = None
        self.crashes += 1
        self.fuse.blows_at = None
        self.end_link(silent=silent)
        if not self.gone:
            self.world.after(down_s, f"start {self.name}", self.start)

    def enter(self, action: Callable[[], None]) -> None:
        """Let the process do something; power may go, or the disk be full, in the middle of it."""
        if not self.running:
            return
        self.world.stirred[self.name] = None
        try:
            action()
        except PowerCutError:
            self.crash()
        except (OSError, sqlite3.Error):
            # Both drivers let a failing disk end the process rather than go on without it.
            self.crash()
        else:
            self._plan_wake()

    def of_this_start(self, action: Callable[[], None]) -> Callable[[], None]:
        """The same, unless the process has died in between."""
        start = self.starts

        def act() -> None:
            if self.starts == start:
                self.enter(action)

        return act

    def _plan_wake(self) -> None:
        due_s = self.next_wake_s() if self.running else None
        if due_s is None:
            return
        # A microsecond late, which is what events are rounded to: early, nothing would be due yet.
        due_s = max(due_s, self.world.now_s) + _MICROSECOND_S
        if self._wake_at_s is not None and self._wake_at_s <= due_s:
            return
        self._wake_at_s = due_s

        def wake() -> None:
            if self._wake_at_s == due_s:  # else an earlier one has taken its place
                self._wake_at_s = None
                self.wake()

        self.world.after(due_s - self.world.now_s, f"wake {self.name}", self.of_this_start(wake))


class DeviceHost(Host):
    """A device: its driver, its journal, its link, and the day that its profile gives it.

    Args:
        world: where it lives.
        network: of the broker.
        make: makes the device on a journal and a link.
        profile: what it is like.
        seed: of its days.
        start_unix_s: when the world's time is 0.
        lives_days: whether conditions follow the profile's day; else it is always at its charger.
        policy: what its owner allows.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        *,
        name: str,
        profile: DeviceProfile,
        seed: int,
        start_unix_s: float,
        lives_days: bool,
        policy: Policy,
    ) -> None:
        super().__init__(world, name)
        self.profile = profile
        self.policy = policy
        self.disk = DeviceDisk(self.fuse)
        self.drift = world.uniform(-1e-4, 1e-4)
        self.closed_until_s = 0.0
        self.device: VirtualDevice
        self._network = network
        self._seed = seed
        self._start_unix_s = start_unix_s
        self._lives_days = lives_days
        self._gate_is_open = False
        self._counted_bytes = 0

    def make_link(self, device: VirtualDevice) -> VirtualLink:
        """The device's link, at its profile's rates."""
        low, high = _DEVICE_DELAY_S
        return VirtualLink(
            self._network,
            device.name,
            Callbacks(
                filters=lambda: device.driver.subscriptions,
                will=device.will,
                on_up=lambda size: self.enter(lambda: device.on_link_up(size)),
                on_down=lambda reason: self.enter(lambda: device.on_link_down(reason)),
                on_message=lambda topic, data: self.enter(lambda: device.on_message(topic, data)),
            ),
            self.fuse,
            delay_s=self.world.uniform(low, high),
            up_bytes_per_s=self.profile.up_mbps * _MBIT_BYTES,
            down_bytes_per_s=self.profile.down_mbps * _MBIT_BYTES,
        )

    def clock(self) -> float:
        """Monotonic seconds, a little fast or slow."""
        return self.world.now_s * (1.0 + self.drift)

    def boot(self) -> None:
        """Start from what the journal holds."""
        if self.starts > 1:
            self.device.boot()
        self._gate_is_open = False
        self._judge()
        self.device.link.allowed = True
        self.device.link.connect()

    def end_link(self, *, silent: bool) -> None:
        """The process is gone, and its connection with it."""
        self.device.link.end(silent=silent)

    def next_wake_s(self) -> float | None:
        """When a timer is due, in the world's time."""
        due_s = self.device.driver.next_wake_s
        return None if due_s is None else due_s / (1.0 + self.drift)

    def wake(self) -> None:
        """Run the timers that are due."""
        self.device.driver.wake(self.clock())

    def start_work(self, device: VirtualDevice, work: TrainingWork) -> None:
        """Train now, and be done when the profile says."""
        device.strike(work.order.round)
        if device.gone:
            self.gone = True
            self.crash()
            return
        if device.gate_opens_at_s is not None:
            delay_s = device.gate_opens_at_s - self.clock()
            self.world.after(delay_s, f"gate {self.name}", self.of_this_start(device.open_gate))
            device.gate_opens_at_s = None
        event = work.run()
        seconds = _FAILED_TRAINING_S
        if work.examples_seen:
            flops = device.driver.manifest.step_flops * work.examples_seen
            seconds = max(training_seconds(self.profile, flops), 0.001)
        self.world.after(
            seconds,
            f"trained {self.name} {type(event).__name__}",
            self.of_this_start(lambda: device.work_done(work, event)),
        )

    # -- the gate ----------------------------------------------------------------------------

    @property
    def unix_s(self) -> float:
        """The time of day where the device is."""
        return self._start_unix_s + self.world.now_s

    def close_gate(self, for_s: float) -> None:
        """Its owner picks it up: no work for a while."""
        self.closed_until_s = self.world.now_s + for_s
        self.enter(self._judge_once)
        opens_s = for_s + _MICROSECOND_S
        self.world.after(opens_s, f"gate {self.name}", lambda: self.enter(self._judge_once))

    def _judge(self) -> None:
        self._judge_once()
        if self._lives_days or self.policy.bytes_per_day_max:
            self.world.after(GATE_EVERY_S, f"gate {self.name}", self.of_this_start(self._judge))

    def _judge_once(self) -> None:
        gate: GateOpened | GateClosed = judge(
            self.policy,
            self._conditions(),
            spent_bytes_today=self._spend(),
            was_open=self._gate_is_open,
        )
        if self.world.now_s < self.closed_until_s:
            gate = GateClosed("in_use")
        is_open = isinstance(gate, GateOpened)
        if is_open != self._gate_is_open or self.world.now_s == self.started_at_s:
            self._gate_is_open = is_open
            self.device.driver.on_gate(gate, self.clock())

    def _conditions(self) -> Conditions:
        if not self._lives_days:
            return Conditions(window_s=86_400.0)
        now = conditions_at(self.profile, self._seed, self.unix_s)
        link = self.device.link
        if now.online != link.allowed and now.online:
            link.allowed = True
            link.connect()
        elif not now.online:
            link.allowed = False
            link.broken("offline")
        return Conditions(
            battery_fraction=now.battery_fraction,
            charging=now.charging,
            metered=now.metered,
            cpu_load=0.0 if now.idle or self.profile.on_mains else 1.0,
            window_s=3_600.0,
        )

    def _spend(self) -> int:
        traffic = self.device.link.traffic
        total = traffic.sent_bytes + traffic.received_bytes
        new, self._counted_bytes = total - self._counted_bytes, total
        return self.disk.spend(int(self.unix_s // 86_400.0), new)


class CoordinatorHost(Host):
    """The gateway: coordinator, store, wall clock.

    Args:
        world: where it lives.
        network: of the broker.
        config: the federation's file.
        manifest: of the task.
        evaluator: `task.test()`, or None.
        crypto: the signature scheme.
        seed: the federation's public seed.
        observe: told every `Report`.
        start_unix_s: when the world's time is 0.
        first_gathering: how many devices to hear before the first round.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        *,
        config: FederationConfig,
        manifest: Manifest,
        evaluator: Evaluator | None,
        crypto: Crypto,
        seed: int,
        observe: Callable[[Report], None],
        start_unix_s: float,
        first_gathering: int,
        on_publish: Callable[[str, bytes], None] = lambda _topic, _data: None,
    ) -> None:
        super().__init__(world, "coordinator")
        self.disk = CoordinatorDisk(self.fuse)
        self.clock_offset_s = 0.0
        self._config = config
        self._manifest = manifest
        self._evaluator = evaluator
        self._crypto = crypto
        self._seed = seed
        self._observe = observe
        self._start_unix_s = start_unix_s
        self._first_gathering = first_gathering
        self._on_publish = on_publish
        self._keys = _identity(crypto)
        self.coordinator = self._make()
        self.link = VirtualLink(
            network,
            self.name,
            Callbacks(
                filters=lambda: self.coordinator.subscriptions,
                will=lambda: None,
                on_up=lambda size: self.enter(
                    lambda: self.coordinator.on_link_up(size, self.clock())
                ),
                on_down=lambda _reason: self.enter(self.coordinator_link_down),
                on_message=lambda topic, data: self.enter(
                    lambda: self.coordinator.on_frame(topic, data, self.clock())
                ),
            ),
            self.fuse,
            delay_s=_GATEWAY_DELAY_S,
            up_bytes_per_s=_GATEWAY_BYTES_PER_S,
            down_bytes_per_s=_GATEWAY_BYTES_PER_S,
        )

    def coordinator_link_down(self) -> None:
        """The broker is gone."""
        self.coordinator.on_link_down()

    def clock(self) -> float:
        """Unix seconds, as far as the gateway knows."""
        return self._start_unix_s + self.world.now_s + self.clock_offset_s

    def step_clock(self, by_s: float) -> None:
        """Somebody sets the clock."""
        self.clock_offset_s += by_s
        self._wake_at_s = None
        self.enter(lambda: None)

    def _make(self) -> Coordinator:
        return Coordinator(
            config=self._config,
            manifest=self._manifest,
            evaluator=self._evaluator,
            store=self.disk.open(),
            keys=self._keys,
            crypto=self._crypto,
            publish=self._publish,
            observe=self._observe,
            now_s=self.clock(),
            seed=self._seed,
            first_gathering=self._first_gathering,
        )

    def _publish(self, topic: str, data: bytes) -> None:
        self._on_publish(topic, data)
        self.link.publish(topic, data)

    def boot(self) -> None:
        """Start from what the store holds."""
        if self.starts > 1:
            self.coordinator = self._make()
        self.coordinator.start(self.clock())
        self.link.allowed = True
        self.link.connect()

    def end_link(self, *, silent: bool) -> None:
        """The process is gone, and its connection with it; so is what it had not committed."""
        self.disk.lose_uncommitted()
        self.link.end(silent=silent)

    def next_wake_s(self) -> float | None:
        """When a timer is due, in the world's time."""
        due_s = self.coordinator.next_wake_s
        return None if due_s is None else due_s - self._start_unix_s - self.clock_offset_s

    def wake(self) -> None:
        """Run the timers that are due."""
        self.coordinator.wake(self.clock())


@functools.cache
def _identity_of(name: str, crypto_class: type[Any]) -> Identity:
    with tempfile.TemporaryDirectory(prefix=f"potluck-world-{name}-") as directory:
        init_state(Path(directory), SeededSecrets(0, "world"))
        return load_identity(Path(directory), crypto_class())


def _identity(crypto: Crypto) -> Identity:
    """Keys of a world's coordinator: the same in every world."""
    return _identity_of(crypto.name, type(crypto))
