"""A whole federation in virtual time: a day passes in seconds, and a seed repeats it exactly.

The coordinator, the devices and every message are the real ones; time, network, disks and power are
a world's. Training is really computed; how long it takes is the profile's word.
"""

import datetime as dt
import time
from collections.abc import Callable
from typing import Final

from coordinator import Coordinator
from edge_sdk import Policy, ReleaseCheck
from edge_sdk.journal import Journal
from fleet.deeds import unleash
from fleet.device_host import DeviceHost, VirtualDevice
from fleet.devices import device_seed, enrolments, make_devices, profiles
from fleet.faults import assign
from fleet.flapping import Flapping
from fleet.hosts import CoordinatorHost
from fleet.network import Network
from fleet.record import Course, FleetError, FleetRun
from fleet.world import World
from insight import RunRecord
from wire import Report
from wire.limits import PACKET_BYTES_MAX_DEFAULT

STALL_S: Final = 3 * 86_400.0
SETTLE_S: Final = 600.0
# Devices come up within this time, not all at once.
_START_SPREAD_S: Final = 2.0


class VirtualFleet:
    """Everything of one run, before time begins to pass.

    Args:
        run: the federation, its devices, its seed.
        lives_days: whether devices follow their profiles' days; else all are at their chargers.
        policy_of: what the owner of a device allows; by default what the file's selection asks for.
        on_publish: told of everything that the coordinator publishes.
        check_of: a device's own check of releases; by default none has one.
        clocks_are_right: see `DeviceHost`.
        journal_of: a device's journal, None for one in memory.
        flapping_of: what a device's senses say beside its day, None for nothing.
    """

    def __init__(
        self,
        run: FleetRun,
        *,
        lives_days: bool = True,
        policy_of: Callable[[int, Policy], Policy] = lambda _number, usual: usual,
        on_publish: Callable[[str, bytes], None] = lambda _topic, _data: None,
        check_of: Callable[[int], ReleaseCheck | None] = lambda _number: None,
        clocks_are_right: bool = False,
        journal_of: Callable[[int], Journal | None] = lambda _number: None,
        flapping_of: Callable[[int, Policy], Flapping | None] = lambda _number, _policy: None,
    ) -> None:
        self.run = run
        self.world = World(run.seed)
        packet_bytes_max = max(run.config.broker.packet_bytes_max, PACKET_BYTES_MAX_DEFAULT)
        self.network = Network(self.world, packet_bytes_max)
        start_unix_s = _unix_s(run.config.fleet.start)
        make_test = getattr(run.task, "test", None)
        self.devices: list[VirtualDevice] = []
        self.course = Course(run, self.devices)
        self.gateway = CoordinatorHost(
            self.world,
            self.network,
            config=run.config,
            manifest=run.task.model(),
            evaluator=None if make_test is None else make_test(),
            crypto=run.crypto,
            seed=run.seed,
            observe=self._observe,
            start_unix_s=start_unix_s,
            first_gathering=0 if lives_days else run.count,
            on_publish=on_publish,
        )
        selection = run.config.selection
        usual = Policy(
            min_battery=selection.min_battery,
            require_charging=selection.require_charging,
            allow_metered=selection.allow_metered,
            cpu_load_max=0.5 if lives_days else 1.0,
            check_in_s=run.config.fleet.check_in_s,
        )
        self.hosts = [
            DeviceHost(
                self.world,
                self.network,
                name=f"device-{number}",
                profile=profile,
                seed=device_seed(run.seed, number),
                start_unix_s=start_unix_s,
                lives_days=lives_days,
                policy=policy,
                clock_is_right=clocks_are_right,
                journal=journal_of(number),
                flapping=flapping_of(number, policy),
            )
            for number, profile in enumerate(profiles(run.config, run.count, run.seed))
            for policy in (policy_of(number, usual),)
        ]
        self._make_devices(check_of)

    def _make_devices(self, check_of: Callable[[int], ReleaseCheck | None]) -> None:
        run, hosts = self.run, self.hosts
        self.devices += make_devices(
            task=run.task,
            manifest=self.coordinator.models.manifest,
            config=run.config,
            seed=run.seed,
            crypto=run.crypto,
            enrolments=enrolments(
                self.coordinator, run.config, run.count, run.seed, self.gateway.clock()
            ),
            faults=assign(run.faults, run.count, run.seed),
            make_link=lambda device: hosts[device.info.index].make_link(device),
            start_work=lambda device, work: hosts[device.info.index].start_work(device, work),
            make_journal=lambda number: hosts[number].disk,
            make_shelf=lambda number: hosts[number].shelf,
            make_parts=lambda number: hosts[number].parts,
            clock_of=lambda number: hosts[number].clock,
            check_of=check_of,
        )
        for host, device in zip(hosts, self.devices, strict=True):
            host.device = device
            device.means, device.may_send = host.means, host.may_send

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator as it runs now, or as it died."""
        return self.gateway.coordinator

    def start(self) -> None:
        """Power on: the gateway first."""
        self.gateway.start()
        for host in self.hosts:
            self.world.after(
                self.world.uniform(0.1, _START_SPREAD_S), f"start {host.name}", host.start
            )

    def close(self) -> None:
        """Let go of the disk."""
        self.gateway.disk.close()

    def _observe(self, report: Report) -> None:
        self.course.note(report)
        self.run.observe(report)


def run_virtual(run: FleetRun, *, stop: Callable[[], bool] = lambda: False) -> RunRecord:
    """Run a federation in virtual time, to its last round.

    Raises:
        FleetError: for three virtual days no round could open.
    """
    started_s = time.monotonic()
    fleet = VirtualFleet(run, clocks_are_right=True)
    try:
        unleash(fleet, run.events)
        fleet.start()
        _until_over(fleet, stop)
        fleet.coordinator.stop()
        return fleet.course.record(
            fleet.coordinator,
            wall_s=time.monotonic() - started_s,
            trace_digest=fleet.world.trace_digest,
        )
    finally:
        fleet.close()


def _until_over(fleet: VirtualFleet, stop: Callable[[], bool]) -> None:
    world = fleet.world
    progress, progress_s = 0, 0.0
    while not stop():
        world.run(world.now_s + SETTLE_S, over=lambda: fleet.coordinator.finished)
        fleet.course.tell_rounds(fleet.coordinator)
        if fleet.coordinator.finished:
            world.run(world.now_s + SETTLE_S)
            fleet.course.tell_rounds(fleet.coordinator)
            return
        latest = fleet.coordinator.store.last_round()
        if latest != progress:
            progress, progress_s = latest, world.now_s
        elif world.now_s - progress_s > STALL_S:
            what = (
                f"{latest} cannot end"
                if fleet.coordinator.rounds.is_open
                else f"{latest + 1} cannot open"
            )
            raise FleetError(
                f"round {what}: in three days no"
                f" {fleet.run.config.rounds.needed} devices were there at once; lower [rounds]"
                " cohort or quorum, or raise --devices"
            )


def _unix_s(start: str) -> float:
    try:
        return dt.datetime.fromisoformat(start).timestamp()
    except ValueError as error:
        raise FleetError(f"[fleet] start: {start!r}: write it as 2026-01-05T20:00:00Z") from error
