"""What a fleet's run came to: records for `insight`, from the ledger and from the devices.

Bytes are those of the devices' own links, so that retries and what the broker lost are in them.
"""

import hashlib
import resource
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator import Coordinator, FederationConfig
from coordinator.evaluation import pooled_metrics
from coordinator.store import Store, UpdateRow
from fleet.emulated import EmulatedDevice
from fleet.faults import Event, Fault, describe
from insight import (
    ClassShare,
    DeviceRecord,
    RoundRecord,
    RunRecord,
    Totals,
    participation_by_class,
)
from wire import Crypto, Manifest, PotluckError, Report

ENGINE: Final = "devices"
_CLOSED: Final = ("round_committed", "round_abandoned")


class FleetError(PotluckError):
    """The fleet cannot run; the text says why."""


@dataclass
class FleetRun:
    """A federation that is about to run, or has.

    Args:
        config: the federation's file; `rounds.count` is how many rounds.
        task: the task object.
        count: devices.
        seed: of keys, lots, data splits and faults.
        crypto: `Ed25519()` or `StubCrypto()`.
        faults: what goes wrong on purpose, by round.
        events: what goes wrong on purpose, by time; in virtual time alone.
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
    events: Sequence[Event] = ()
    broker: str | None = None
    state_dir: Path | None = None
    observe: Callable[[Report], None] = lambda _report: None
    on_round: Callable[[RoundRecord], None] = lambda _record: None


@dataclass(frozen=True, slots=True)
class _Mark:
    """Sums over all devices at the end of a round."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    energy_j: float = 0.0


class Course:
    """How a run goes: told of every report, it remembers what had been spent when a round closed.

    Args:
        run: what is run.
        devices: all of them; their counts are read, never changed.
    """

    def __init__(self, run: FleetRun, devices: Sequence[EmulatedDevice[Any]]) -> None:
        self._run = run
        self._devices = devices
        self._marks: dict[int, _Mark] = {}
        self._told = 0

    def note(self, report: Report) -> None:
        """The coordinator says something."""
        if report.what in _CLOSED:
            self._marks[int(report.detail.split()[1].rstrip(":"))] = self._mark()

    def tell_rounds(self, coordinator: Coordinator) -> None:
        """Tell whoever wants to know of the rounds that have closed since."""
        closed = coordinator.store.last_round() - int(coordinator.rounds.is_open)
        while self._told < closed:
            self._told += 1
            self._run.on_round(self._round(coordinator.store, self._told))

    def record(
        self, coordinator: Coordinator, *, wall_s: float, trace_digest: str | None
    ) -> RunRecord:
        """The whole run."""
        run, store, devices = self._run, coordinator.store, self._devices
        self._measure_last(coordinator)
        rounds = tuple(self._round(store, number) for number in range(1, store.last_round() + 1))
        counted = sorted(row.update_id for row in store.updates() if row.counted)
        final = next((r for r in reversed(rounds) if r.accuracy is not None), None)
        parameters = coordinator.models.schema.parameters
        return RunRecord(
            federation=run.config.federation.name,
            task=run.config.federation.task,
            seed=run.seed,
            parameters=parameters,
            uplink_codec=run.config.uplink.spec_for(run.config.rounds.cohort),
            downlink_codec=run.config.downlink.codec,
            rounds=rounds,
            totals=_totals(
                run,
                devices,
                parameters,
                counted=len(counted),
                wall_s=wall_s,
                accuracy=None if final is None else final.accuracy,
                loss=None if final is None else final.loss,
                model_digest=coordinator.models.digest.hex(),
                accepted_ids_digest=hashlib.sha256(b"".join(counted)).hexdigest(),
                trace_digest=trace_digest,
                rounds=rounds,
            ),
            devices=_device_records(store, devices),
            faults=describe(run.faults),
            participation=participation_of(store, coordinator.classes),
            ended=coordinator.rounds.course.ended,
        )

    def _mark(self) -> _Mark:
        return _Mark(
            uplink_bytes=sum(d.link.traffic.sent_bytes for d in self._devices),
            downlink_bytes=sum(d.link.traffic.received_bytes for d in self._devices),
            energy_j=sum(d.energy_j for d in self._devices),
        )

    def _round(self, store: Store, number: int) -> RoundRecord:
        before = self._marks.get(number - 1, _Mark())
        record = round_record(store, number, before, self._marks.get(number, before))
        counted = {row.device for row in store.updates(number) if row.counted}
        spent = {d.name: d.counts.round_s.get(number, 0.0) for d in self._devices}
        return msgspec.structs.replace(
            record,
            device_s=sum(spent.values()),
            wasted_device_s=sum(s for name, s in spent.items() if name not in counted),
        )

    def _measure_last(self, coordinator: Coordinator) -> None:
        """Measure the last version on all hold-outs, where there is no test data.

        The versions before it were measured by the devices of the round after.
        """
        last = coordinator.store.last_round()
        if getattr(self._run.task, "test", None) is not None or not last:
            return
        row = coordinator.store.round(last)
        if row is None or row["status"] != "committed":
            return
        models = coordinator.models
        measured = [d.evaluate(models.version, models.served) for d in self._devices]
        coordinator.store.note_round(last, pooled_metrics([(1, m) for m in measured]), "devices")


def round_record(store: Store, number: int, before: _Mark, after: _Mark) -> RoundRecord:
    """One round, from the ledger and from what devices had spent before and after it."""
    row = store.round(number)
    if row is None:
        raise FleetError(f"the store has lost round {number}")
    opened = store.round_opened(number)
    if opened is None:
        raise FleetError(f"the store has lost round {number}")
    rows = store.updates(number)
    metrics: dict[str, float] = (
        {} if row["metrics"] is None else msgspec.msgpack.decode(row["metrics"])
    )
    declined = store.declines(number)
    not_counted = Counter(line.reason or "" for line in rows if line.counted is False)
    heard = store.devices_heard(number) | set(declined)
    behind = [opened.base_version - line.base_version for line in rows if line.counted]
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
        staleness=sum(behind) / len(behind) if behind and opened.mode == "async" else None,
        metrics_source=row["metrics_source"] or "",
    )


def participation_of(store: Store, class_of: Callable[[str], str]) -> tuple[ClassShare, ...]:
    """Who took part, by class, from the ledger."""
    there: defaultdict[str, float] = defaultdict(float)
    invited: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    updates = store.counted_by_round(1)
    for row in store.rounds():
        opened = store.round_opened(row["round"])
        if opened is None:
            continue
        took_part = updates.get(row["round"], [])
        counted.update(map(class_of, took_part))
        invited.update(map(class_of, opened.invited))
        for name, number in opened.there.items():
            there[name] += len(took_part) * number / sum(opened.there.values())
    return participation_by_class(there, invited, counted)


def _device_records(
    store: Store, devices: Sequence[EmulatedDevice[Any]]
) -> tuple[DeviceRecord, ...]:
    rows: defaultdict[str, list[UpdateRow]] = defaultdict(list)
    for row in store.updates():
        rows[row.device].append(row)
    incidents: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for incident in store.incidents():
        incidents[incident["device"]][incident["reason"]] = int(incident["count"])
    return tuple(_device_record(d, rows[d.name], incidents[d.name]) for d in devices)


def _device_record(
    device: EmulatedDevice[Any], rows: Sequence[UpdateRow], incidents: dict[str, int]
) -> DeviceRecord:
    settled = Counter(row.reason or "" for row in rows if row.counted is False)
    counts = device.counts
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


def _totals(
    run: FleetRun,
    devices: Sequence[EmulatedDevice[Any]],
    parameters: int,
    *,
    counted: int,
    wall_s: float,
    accuracy: float | None = None,
    loss: float | None = None,
    model_digest: str = "",
    accepted_ids_digest: str = "",
    trace_digest: str | None = None,
    rounds: Sequence[RoundRecord] = (),
) -> Totals:
    sent = sum(device.counts.trained for device in devices)
    return Totals(
        accuracy=accuracy,
        loss=loss,
        uplink_bytes=sum(d.link.traffic.sent_bytes for d in devices),
        downlink_bytes=sum(d.link.traffic.received_bytes for d in devices),
        uplink_bytes_float32=4 * parameters * sent,
        device_updates=sent,
        wasted_updates=sent - counted,
        wall_s=wall_s,
        updates_per_s=sent / wall_s if wall_s else 0.0,
        peak_rss_bytes=peak_rss_bytes(),
        model_digest=model_digest,
        accepted_ids_digest=accepted_ids_digest,
        trace_digest=trace_digest,
        crypto=run.crypto.name,
        engine=ENGINE,
        epsilon=None,
        energy_j=sum(d.energy_j for d in devices),
        device_s=sum(sum(d.counts.round_s.values()) for d in devices),
        wasted_device_s=sum(r.wasted_device_s or 0.0 for r in rounds) if rounds else None,
    )


def joined_record(
    run: FleetRun,
    manifest: Manifest,
    devices: Sequence[EmulatedDevice[Any]],
    wall_s: float,
) -> RunRecord:
    """What the devices know; rounds, accuracy and digests are the coordinator's to tell."""
    parameters = manifest.schema.shared.parameters
    counted = sum(device.counts.counted for device in devices)
    return RunRecord(
        federation=run.config.federation.name,
        task=run.config.federation.task,
        seed=run.seed,
        parameters=parameters,
        uplink_codec=run.config.uplink.spec_for(run.config.rounds.cohort),
        downlink_codec=run.config.downlink.codec,
        rounds=(),
        totals=_totals(run, devices, parameters, counted=counted, wall_s=wall_s),
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
