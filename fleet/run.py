"""A whole federation on one machine, over a real broker: coordinator, broker, devices.

The coordinator runs on the caller's thread, the devices on the fleet's. The state directory is a
real one: with `state_dir` given it stays, and `potluck ledger` reads it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from coordinator import Gateway, init_state
from edge_sdk.enrolment import enrol
from fleet.crypto import SeededSecrets
from fleet.devices import device_key, enrolments, make_devices, profiles
from fleet.faults import assign
from fleet.loop import FleetLoop, LiveDevice
from fleet.record import Course, FleetError, FleetRun, joined_record
from insight import RunRecord
from wire import BrokerAddress, MqttLink, Report
from wire.token import Token

STALL_S: Final = 150.0
BROKER_S: Final = 20.0


def run_live(run: FleetRun, *, stop: Callable[[], bool] = lambda: False) -> RunRecord:
    """Run a federation over a real broker, to its last round.

    Raises:
        FleetError: too few devices for the file's quorum, or all of them are gone.
        PotluckError: whatever the coordinator, the broker or the task could not do.
    """
    if run.events:
        raise FleetError("[[event]] tables are for virtual time: use --wire virtual")
    if run.count < run.config.rounds.needed:
        raise FleetError(
            f"{run.count} devices cannot make a quorum of {run.config.rounds.needed}"
            f" ({run.config.rounds.quorum:g} of a cohort of {run.config.rounds.cohort}):"
            " raise --devices, or lower [rounds] cohort"
        )
    state_dir = run.state_dir or Path(tempfile.mkdtemp(prefix="potluck-fleet-"))
    try:
        init_state(state_dir, SeededSecrets(run.seed, "coordinator"))
        return _Live(run, state_dir).play(stop)
    finally:
        if run.state_dir is None:
            shutil.rmtree(state_dir, ignore_errors=True)


class _Live:
    """One run over a real broker."""

    def __init__(self, run: FleetRun, state_dir: Path) -> None:
        self.run = run
        self.loop = FleetLoop()
        self.started_s = time.monotonic()
        self.devices: list[LiveDevice] = []
        self.course = Course(run, self.devices)
        self.gateway = Gateway(
            config=run.config,
            task=run.task,
            state_dir=state_dir,
            crypto=run.crypto,
            observe=self._observe,
            broker=run.broker,
            seed=run.seed,
            first_gathering=run.count,
        )

    def play(self, stop: Callable[[], bool]) -> RunRecord:
        """From the first check-in to the last settlement."""
        gateway = self.gateway
        try:
            run = self.run
            self.devices += make_devices(
                task=run.task,
                manifest=gateway.coordinator.models.manifest,
                config=run.config,
                seed=run.seed,
                crypto=run.crypto,
                enrolments=enrolments(
                    gateway.coordinator, run.config, run.count, run.seed, time.time()
                ),
                faults=assign(run.faults, run.count, run.seed),
                make_link=live_link(
                    BrokerAddress.parse(gateway.url), run.config.broker.packet_bytes_max
                ),
                start_work=self.loop.start_work,
            )
            gateway.start()
            give_up_at_s = time.monotonic() + BROKER_S
            while not gateway.link.up and not stop():
                gateway.turn(0.05)
                if time.monotonic() > give_up_at_s:
                    raise FleetError(f"no broker answers at {gateway.url}: is it running?")
            self.started_s = time.monotonic()
            self.loop.start(self.devices)
            self._until_over(stop)
            self.loop.stop()
            gateway.coordinator.stop()
            wall_s = time.monotonic() - self.started_s
            return self.course.record(gateway.coordinator, wall_s=wall_s, trace_digest=None)
        finally:
            self.loop.stop()
            gateway.stop()

    def _until_over(self, stop: Callable[[], bool]) -> None:
        gateway, coordinator = self.gateway, self.gateway.coordinator
        progress, progress_s = (0, 0, 0), time.monotonic()
        finished_s: float | None = None
        while not stop():
            gateway.turn(0.1)
            self.course.tell_rounds(coordinator)
            if self.loop.error is not None:
                raise FleetError(
                    f"the fleet's loop failed: {self.loop.error!r}"
                ) from self.loop.error
            if coordinator.finished:
                finished_s = finished_s or time.monotonic()
                if self._all_heard() or time.monotonic() - finished_s > 2.0:  # noqa: PLR2004 - stragglers
                    return
            is_open, state = coordinator.rounds.is_open, coordinator.rounds.round
            latest = (coordinator.store.last_round(), int(is_open), len(state.updates))
            # Whom nothing came of is invited to a buffer again when its time is over.
            patience_s = STALL_S + (self.run.config.rounds.deadline_s if is_open else 0.0)
            waits = coordinator.rounds.current.waits_for_somebody_new
            if latest != progress:
                progress, progress_s = latest, time.monotonic()
            elif waits and time.monotonic() - progress_s > patience_s:
                what = f"{latest[0]} cannot end" if is_open else f"{latest[0] + 1} cannot open"
                raise FleetError(
                    f"round {what}: {coordinator.leases.heard} devices were"
                    f" heard, {sum(d.gone for d in self.devices)} are gone, and"
                    f" {self.run.config.rounds.needed} are needed"
                )

    def _all_heard(self) -> bool:
        """Whether every device that is there uses the released model and owes nothing."""
        version = self.gateway.coordinator.models.version
        return all(
            device.gone
            or (device.driver.released.version == version and device.driver.session.sealed is None)
            for device in self.devices
        )

    def _observe(self, report: Report) -> None:
        self.course.note(report)
        self.run.observe(report)


def live_link(address: BrokerAddress, packet_bytes_max: int) -> Callable[[LiveDevice], MqttLink]:
    """Makes links to a real broker."""
    return lambda device: MqttLink(
        address,
        device.name,
        subscriptions=device.driver.subscriptions,
        on_message=device.on_message,
        on_up=device.on_link_up,
        on_down=device.on_link_down,
        will=device.will,
        packet_bytes_max=packet_bytes_max,
    )


def join(
    run: FleetRun, tokens: Sequence[Token], *, stop: Callable[[], bool] = lambda: False
) -> RunRecord:
    """Bring devices to a coordinator that runs elsewhere, until a model is released or `stop()`.

    Raises:
        FleetError: fewer tokens than devices.
        EnrolmentError: a token was not taken.
    """
    if len(tokens) < run.count:
        raise FleetError(
            f"{len(tokens)} tokens for {run.count} devices: make more with `potluck enroll`"
        )
    broker = run.broker or tokens[0].broker
    described = profiles(run.config, run.count, run.seed)
    with tempfile.TemporaryDirectory(prefix="potluck-fleet-") as directory:
        enrolled = [
            enrol(
                [tokens[number]],
                run.crypto.signer(device_key(run.seed, number)),
                run.crypto,
                device_class=described[number].name,
                broker=broker,
                directory=Path(directory),
            )
            for number in range(run.count)
        ]
        manifest = run.task.model()
        loop = FleetLoop()
        started_s = time.monotonic()
        devices = make_devices(
            task=run.task,
            manifest=manifest,
            config=run.config,
            seed=run.seed,
            crypto=run.crypto,
            enrolments=enrolled,
            faults=assign(run.faults, run.count, run.seed),
            make_link=live_link(BrokerAddress.parse(broker), run.config.broker.packet_bytes_max),
            start_work=loop.start_work,
        )
        loop.start(devices)
        try:
            while not stop() and not all(
                d.gone or d.counts.run_is_over or d.driver.released.version > 0 for d in devices
            ):
                if loop.error is not None:
                    raise FleetError(f"the fleet's loop failed: {loop.error!r}") from loop.error
                time.sleep(0.1)
        finally:
            loop.stop()
    return joined_record(run, manifest, devices, time.monotonic() - started_s)
