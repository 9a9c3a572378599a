"""The processes of a world: what all have in common, and the coordinator's.

They run the very code that gateways and devices run. What is modelled is what lies around it: a
process stops at an effect, its memory is gone, its disk is as it was, and some time later it starts
again from there. A device's is in `fleet.device_host`.
"""

import functools
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from coordinator import (
    Coordinator,
    DiskFullError,
    FederationConfig,
    init_state,
    load_identity,
)
from coordinator.evaluation import Evaluator
from coordinator.identity import Identity
from fleet.clocks import DRIFT_MAX, WallClock
from fleet.crypto import SeededSecrets
from fleet.disk import CoordinatorDisk, Fuse, PowerCutError
from fleet.network import Callbacks, Network, VirtualLink
from fleet.world import World
from wire import Crypto, Manifest, Report

REBOOT_S: Final = 30.0
# What events are rounded to: one that is planned for a clock's time is planned this much later.
MICROSECOND_S: Final = 1e-6
_GATEWAY_BYTES_PER_S: Final = 5e6
_GATEWAY_DELAY_S: Final = 0.002


class Host(ABC):
    """A process that may be up or down.

    Args:
        world: where it lives.
        name: for the trace.

    Attributes:
        wall: its wall clock.
    """

    wall: WallClock

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.fuse = Fuse()
        self.running = False
        self.gone = False
        self.starts = 0
        self.started_at_s = 0.0
        self.crashes = 0
        self.ended_by_its_disk = 0
        self.had_no_room_until_s = 0.0
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

    @abstractmethod
    def step_clock(self, by_s: float) -> None:
        """Somebody sets its wall clock."""

    # -- room --------------------------------------------------------------------------------

    def fill_disk(self) -> None:
        """Nothing more can be written."""
        self.fuse.full = True

    def free_disk(self) -> None:
        """There is room again."""
        if self.fuse.full:
            self.had_no_room_until_s = self.world.now_s
        self.fuse.full = False

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
        except (OSError, sqlite3.Error, DiskFullError):
            # A device ends rather than go on without its disk. So does a coordinator that cannot
            # start; one that runs must not let anything of that kind out.
            self.ended_by_its_disk += self.started_at_s != self.world.now_s
            self.crash()
        else:
            self.plan_ahead()

    def of_this_start(self, action: Callable[[], None]) -> Callable[[], None]:
        """The same, unless the process has died in between."""
        start = self.starts

        def act() -> None:
            if self.starts == start:
                self.enter(action)

        return act

    def plan_ahead(self) -> None:
        """See to it that the next timer is not missed."""
        due_s = self.next_wake_s() if self.running else None
        if due_s is None:
            return
        # A microsecond late, which is what events are rounded to: early, nothing would be due yet.
        due_s = max(due_s, self.world.now_s) + MICROSECOND_S
        if self._wake_at_s is not None and self._wake_at_s <= due_s:
            return
        self._wake_at_s = due_s

        def wake() -> None:
            if self._wake_at_s == due_s:  # else an earlier one has taken its place
                self._wake_at_s = None
                self.wake()

        self.world.after(due_s - self.world.now_s, f"wake {self.name}", self.of_this_start(wake))


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
        self.wall = WallClock(world, start_unix_s, drift=world.uniform(-DRIFT_MAX, DRIFT_MAX))
        self._config = config
        self._manifest = manifest
        self._evaluator = evaluator
        self._crypto = crypto
        self._seed = seed
        self._observe = observe
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
                    lambda: self.coordinator.on_link_up(
                        min(size, config.broker.packet_bytes_max), self.clock()
                    )
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
        return self.wall.now_s()

    def step_clock(self, by_s: float) -> None:
        """Somebody sets the clock."""
        self.wall.step(by_s)
        self._wake_at_s = None
        self.enter(lambda: self.coordinator.on_clock_step(by_s, self.clock()))

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
            free_bytes=self.disk.free_bytes,
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
        return None if due_s is None else self.wall.world_s(due_s)

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
