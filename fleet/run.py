"""A whole federation on one machine: coordinator, broker, devices; and the record of what happened.

The coordinator runs on the caller's thread, the devices on the fleet's. The state directory is a
real one: with `state_dir` given it stays, and `potluck ledger` reads it.
"""

import hashlib
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator import FederationConfig, Gateway, init_state
from coordinator.signals import RoundOpened
from coordinator.store import Store
from device_profiles import DeviceProfile, load_mix
from edge_sdk import DeviceInfo
from edge_sdk.enrolment import enrol
from edge_sdk.journal import Enrolment
from fleet.crypto import SeededSecrets
from fleet.emulated import EmulatedDevice
from fleet.faults import Fault, assign, describe
from fleet.loop import FleetLoop
from insight import DeviceRecord, RoundRecord, RunRecord, Totals
from quantization import resolve_downlink, resolve_uplink
from wire import BrokerAddress, Crypto, Manifest, PotluckError, Report
from wire.token import Token

ENGINE: Final = "devices"
STALL_S: Final = 30.0


class FleetError(PotluckError):
    """The fleet cannot run; the text says why."""


@dataclass(slots=True)
class _Mark:
    """Sums over all devices at the end of a round."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    energy_j: float = 0.0


@dataclass
class FleetRun:
    """A federation that is about to run, or has.

    Args:
        config: the federation's file; `rounds.count` is how many rounds.
        task: the task object.
        count: devices.
        seed: of keys, lots, data splits and faults.
        crypto: `Ed25519()` or `StubCrypto()`.
        faults: what goes wrong on purpose.
        broker: a URL; None takes the file's, and "embedded" starts one.
        state_dir: where the coordinator's state stays; None is a temporary directory.
        observe: told every `Report` of the coordinator.
        on_round: told of every round when it is closed.
    """

    config: FederationConfig
    task: Any
    count: int
    seed: int
    crypto: Crypto
    faults: Sequence[Fault] = ()
    broker: str | None = None
    state_dir: Path | None = None
    observe: Callable[[Report], None] = lambda _report: None
    on_round: Callable[[RoundRecord], None] = lambda _record: None


def run_live(run: FleetRun, *, stop: Callable[[], bool] = lambda: False) -> RunRecord:
    """Run a federation over a real broker, to its last round.

    Raises:
        FleetError: too few devices for the file's quorum, or all of them are gone.
        PotluckError: whatever the coordinator, the broker or the task could not do.
    """
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
        self.devices: list[EmulatedDevice] = []
        self._marks: dict[int, _Mark] = {}
        self._told = 0
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
            self.devices = make_devices(
                task=self.run.task,
                manifest=gateway.coordinator.models.manifest,
                config=self.run.config,
                seed=self.run.seed,
                crypto=self.run.crypto,
                address=BrokerAddress.parse(gateway.url),
                enrolments=self._enrolments(),
                faults=assign(self.run.faults, self.run.count, self.run.seed),
                loop=self.loop,
            )
            gateway.start()
            while not gateway.link.up and not stop():
                gateway.turn(0.05)
            self.started_s = time.monotonic()
            self.loop.start(self.devices)
            self._until_over(stop)
            self.loop.stop()
            gateway.coordinator.stop()
            return self._record()
        finally:
            self.loop.stop()
            gateway.stop()

    def _enrolments(self) -> list[Enrolment]:
        """Names without the ceremony of tokens: the fleet is on both sides of the table."""
        coordinator = self.gateway.coordinator
        return [
            Enrolment(
                device=coordinator.admit(signer.public_key, profile.name, time.time()),
                federation=self.run.config.federation.name,
                coordinator_key=coordinator.public_key,
                broker=self.gateway.url,
                ca="",
                certificate=b"",
            )
            for number, profile in enumerate(
                profiles(self.run.config, self.run.count, self.run.seed)
            )
            for signer in (self.run.crypto.signer(device_key(self.run.seed, number)),)
        ]

    def _until_over(self, stop: Callable[[], bool]) -> None:
        gateway, coordinator = self.gateway, self.gateway.coordinator
        progress, progress_s = (0, 0), time.monotonic()
        finished_s: float | None = None
        while not stop():
            gateway.turn(0.1)
            self._tell_rounds()
            if self.loop.error is not None:
                raise FleetError(
                    f"the fleet's loop failed: {self.loop.error!r}"
                ) from self.loop.error
            if coordinator.finished:
                finished_s = finished_s or time.monotonic()
                if self._all_heard() or time.monotonic() - finished_s > 2.0:  # noqa: PLR2004 - stragglers
                    return
            latest = (coordinator.store.last_round(), int(coordinator.rounds.is_open))
            if latest != progress:
                progress, progress_s = latest, time.monotonic()
            elif not coordinator.rounds.is_open and time.monotonic() - progress_s > STALL_S:
                raise FleetError(
                    f"round {latest[0] + 1} cannot open: {coordinator.leases.heard} devices were"
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

    # -- what happened -----------------------------------------------------------------------

    def _observe(self, report: Report) -> None:
        if report.what in ("round_committed", "round_abandoned"):
            number = int(report.detail.split()[1].rstrip(":"))
            self._marks[number] = self._mark()
        self.run.observe(report)

    def _mark(self) -> _Mark:
        return _Mark(
            uplink_bytes=sum(d.link.traffic.sent_bytes for d in self.devices),
            downlink_bytes=sum(d.link.traffic.received_bytes for d in self.devices),
            energy_j=sum(d.energy_j for d in self.devices),
        )

    def _tell_rounds(self) -> None:
        closed = self.gateway.store.last_round() - int(self.gateway.coordinator.rounds.is_open)
        while self._told < closed:
            self._told += 1
            self.run.on_round(self._round(self._told))

    def _round(self, number: int) -> RoundRecord:
        before = self._marks.get(number - 1, _Mark())
        after = self._marks.get(number, before)
        return round_record(self.gateway.store, number, before, after)

    def _record(self) -> RunRecord:
        wall_s = time.monotonic() - self.started_s
        run, store = self.run, self.gateway.store
        coordinator = self.gateway.coordinator
        rounds = tuple(self._round(number) for number in range(1, store.last_round() + 1))
        rows = store.updates()
        counted = sorted(row.update_id for row in rows if row.counted)
        sent = sum(device.counts.trained for device in self.devices)
        total = self._mark()
        final = next((r for r in reversed(rounds) if r.accuracy is not None), None)
        return RunRecord(
            federation=run.config.federation.name,
            task=run.config.federation.task,
            seed=run.seed,
            parameters=coordinator.models.schema.parameters,
            uplink_codec=resolve_uplink(run.config.uplink.codec),
            downlink_codec=resolve_downlink(run.config.downlink.codec),
            rounds=rounds,
            totals=Totals(
                accuracy=None if final is None else final.accuracy,
                loss=None if final is None else final.loss,
                uplink_bytes=total.uplink_bytes,
                downlink_bytes=total.downlink_bytes,
                uplink_bytes_float32=4 * coordinator.models.schema.parameters * sent,
                device_updates=sent,
                wasted_updates=sent - len(counted),
                wall_s=wall_s,
                updates_per_s=sent / wall_s if wall_s else 0.0,
                peak_rss_bytes=peak_rss_bytes(),
                model_digest=coordinator.models.digest.hex(),
                accepted_ids_digest=hashlib.sha256(b"".join(counted)).hexdigest(),
                trace_digest=None,
                crypto=run.crypto.name,
                engine=ENGINE,
                epsilon=None,
                energy_j=total.energy_j,
            ),
            devices=tuple(self._device(device) for device in self.devices),
            faults=describe(run.faults),
        )

    def _device(self, device: EmulatedDevice) -> DeviceRecord:
        rows = [row for row in self.gateway.store.updates() if row.device == device.name]
        settled = Counter(row.reason or "" for row in rows if row.counted is False)
        counts = device.counts
        incidents = {
            row["reason"]: int(row["count"])
            for row in self.gateway.store.incidents()
            if row["device"] == device.name
        }
        return DeviceRecord(
            device=device.name,
            device_class=device.profile.name,
            invited=counts.invited,
            counted=sum(row.counted is True for row in rows),
            not_counted=dict(sorted(settled.items())),
            declined=dict(sorted(counts.declined.items())),
            missing=max(counts.invited - len(rows) - sum(counts.declined.values()), 0),
            num_examples=max((row.num_examples for row in rows), default=0),
            uplink_bytes=device.link.traffic.sent_bytes,
            downlink_bytes=device.link.traffic.received_bytes,
            energy_j=device.energy_j,
            incidents=incidents,
        )


def round_record(store: Store, number: int, before: _Mark, after: _Mark) -> RoundRecord:
    """One round, from the ledger and from what devices had spent before and after it."""
    row = store.rounds()[number - 1]
    opened = msgspec.msgpack.decode(row["record"], type=RoundOpened)
    rows = store.updates(number)
    metrics: dict[str, float] = (
        {} if row["metrics"] is None else msgspec.msgpack.decode(row["metrics"])
    )
    declined = store.declines(number)
    not_counted = Counter(line.reason or "" for line in rows if line.counted is False)
    heard = {line.device for line in rows} | set(declined)
    closed_at = row["closed_at"]
    return RoundRecord(
        number=number,
        status=row["status"],
        invited=len(opened.invited),
        accepted=sum(line.counted is True for line in rows),
        accuracy=metrics.get("accuracy"),
        loss=metrics.get("loss"),
        uplink_bytes=after.uplink_bytes - before.uplink_bytes,
        downlink_bytes=after.downlink_bytes - before.downlink_bytes,
        energy_j=after.energy_j - before.energy_j,
        duration_s=(row["opened_at"] if closed_at is None else closed_at) - row["opened_at"],
        reason=row["reason"] or "",
        declined=dict(sorted(Counter(declined.values()).items())),
        not_counted=dict(sorted(not_counted.items())),
        missing=len(set(opened.invited) - heard),
    )


# -- what both kinds of fleet need ---------------------------------------------------------------


def device_key(seed: int, number: int) -> bytes:
    """The private key of an emulated device."""
    return SeededSecrets(seed, f"device/{number}").token(32)


def device_seed(seed: int, number: int) -> int:
    """The seed of an emulated device, for whatever chance its trainer needs."""
    return int.from_bytes(SeededSecrets(seed, f"data/{number}").token(4), "little")


def profiles(config: FederationConfig, count: int, seed: int) -> list[DeviceProfile]:
    """The profile of each device."""
    return load_mix(config.fleet.mix).assign(count, seed)


def make_devices(
    *,
    task: Any,
    manifest: Manifest,
    config: FederationConfig,
    seed: int,
    crypto: Crypto,
    address: BrokerAddress,
    enrolments: Sequence[Enrolment],
    faults: dict[int, Fault],
    loop: FleetLoop,
) -> list[EmulatedDevice]:
    """The devices of a fleet, not yet connected."""
    count = len(enrolments)
    described = profiles(config, count, seed)
    return [
        EmulatedDevice(
            info=DeviceInfo(
                index=number,
                count=count,
                seed=device_seed(seed, number),
                profile=described[number],
                partition=config.fleet.partition,
            ),
            profile=described[number],
            task=task,
            manifest=manifest,
            enrolment=enrolment,
            signer=crypto.signer(device_key(seed, number)),
            crypto=crypto,
            address=address,
            packet_bytes_max=config.broker.packet_bytes_max,
            start_work=loop.start_work,
            clock=time.monotonic,
            fault=faults.get(number),
        )
        for number, enrolment in enumerate(enrolments)
    ]


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
        enrolments = [
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
            address=BrokerAddress.parse(broker),
            enrolments=enrolments,
            faults=assign(run.faults, run.count, run.seed),
            loop=loop,
        )
        loop.start(devices)
        try:
            while not stop() and not all(d.gone or d.driver.released.version > 0 for d in devices):
                if loop.error is not None:
                    raise FleetError(f"the fleet's loop failed: {loop.error!r}") from loop.error
                time.sleep(0.1)
        finally:
            loop.stop()
    return _joined_record(run, manifest, devices, time.monotonic() - started_s)


def _joined_record(
    run: FleetRun, manifest: Manifest, devices: Sequence[EmulatedDevice], wall_s: float
) -> RunRecord:
    """What the devices know; rounds, accuracy and digests are the coordinator's to tell."""
    sent = sum(device.counts.trained for device in devices)
    counted = sum(device.counts.counted for device in devices)
    parameters = manifest.schema.shared.parameters
    return RunRecord(
        federation=run.config.federation.name,
        task=run.config.federation.task,
        seed=run.seed,
        parameters=parameters,
        uplink_codec=resolve_uplink(run.config.uplink.codec),
        downlink_codec=resolve_downlink(run.config.downlink.codec),
        rounds=(),
        totals=Totals(
            accuracy=None,
            uplink_bytes=sum(d.link.traffic.sent_bytes for d in devices),
            downlink_bytes=sum(d.link.traffic.received_bytes for d in devices),
            uplink_bytes_float32=4 * parameters * sent,
            device_updates=sent,
            wasted_updates=sent - counted,
            wall_s=wall_s,
            updates_per_s=sent / wall_s if wall_s else 0.0,
            peak_rss_bytes=peak_rss_bytes(),
            model_digest="",
            accepted_ids_digest="",
            trace_digest=None,
            crypto=run.crypto.name,
            engine=ENGINE,
            epsilon=None,
            energy_j=sum(d.energy_j for d in devices),
        ),
        devices=tuple(
            DeviceRecord(
                device=d.name,
                device_class=d.profile.name,
                invited=d.counts.invited,
                counted=d.counts.counted,
                not_counted=dict(d.counts.not_counted),
                declined=dict(d.counts.declined),
                uplink_bytes=d.link.traffic.sent_bytes,
                downlink_bytes=d.link.traffic.received_bytes,
                energy_j=d.energy_j,
            )
            for d in devices
        ),
        faults=describe(run.faults),
    )


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
