"""Figures for Prometheus, made when they are asked for: nothing is counted on the round's path.

What the store knows is read from it; what is in memory comes from the newest glance. Labels take
few values, whatever devices send: never a device's name, and of classes and reasons only the
commonest, the others being added up as "other".
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from coordinator.http._desk import Desk, Fresh
from coordinator.identity import STORE_FILE
from coordinator.status import Status
from coordinator.store import Store

MEDIA: Final = CONTENT_TYPE_PLAIN_0_0_4
LABEL_VALUES_MAX: Final = 32
_OTHER: Final = "other"
_ROUND_STATUSES: Final = ("committed", "abandoned")

Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: docs/how-to/monitor.md has the same table."""

    name: str
    kind: Literal["counter", "gauge"]
    says: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    Metric("potluck_info", "gauge", "Always 1.", ("version", "federation")),
    Metric("potluck_broker_up", "gauge", "1 while the link to the broker is there."),
    Metric("potluck_paused", "gauge", "1 while no new round opens."),
    Metric("potluck_finished", "gauge", "1 when every round is closed."),
    Metric("potluck_loop_age_seconds", "gauge", "Since the coordinator's loop last looked around."),
    Metric("potluck_rounds_total", "counter", "Rounds that are closed.", ("status",)),
    Metric("potluck_round_open", "gauge", "1 while a round is open."),
    Metric("potluck_round_number", "gauge", "The latest round's number, 0 before the first."),
    Metric("potluck_round_age_seconds", "gauge", "Since the open round began; 0 if none is open."),
    Metric("potluck_round_invited", "gauge", "Devices invited to the open round."),
    Metric("potluck_round_accepted", "gauge", "Updates in the open round's sum."),
    Metric("potluck_round_needed", "gauge", "Updates without which it is abandoned."),
    Metric("potluck_updates_total", "counter", "Updates settled: counted, or why not.",
           ("reason",)),
    Metric("potluck_updates_open", "gauge", "Updates receipted and not settled yet."),
    Metric("potluck_update_bytes_total", "counter", "Payload bytes of all receipted updates."),
    Metric("potluck_partial_updates", "gauge", "Updates of which some chunks are here."),
    Metric("potluck_mqtt_bytes_total", "counter", "MQTT bytes of this process.", ("direction",)),
    Metric("potluck_devices", "gauge", "Devices.", ("device_class", "state")),
    Metric("potluck_leases_valid", "gauge", "Devices that may be invited now."),
    Metric("potluck_spool_payloads", "gauge", "Payloads that wait for their round to close."),
    Metric("potluck_spool_bytes", "gauge", "Their bytes."),
    Metric("potluck_incidents_total", "counter", "Errors that devices and strangers caused.",
           ("reason",)),
    Metric("potluck_model_version", "gauge", "The latest version, and what aliases mean.",
           ("alias",)),
    Metric("potluck_release_vetoes", "gauge", "Devices whose own check was against that version.",
           ("alias",)),
    Metric("potluck_model_accuracy", "gauge", "Of the newest version that was measured."),
    Metric("potluck_model_loss", "gauge", "Of the newest version that was measured."),
    Metric("potluck_store_bytes", "gauge", "The store's file and its log."),
    Metric("potluck_disk_free_bytes", "gauge", "Free on the state directory's disk."),
    Metric("process_resident_memory_bytes", "gauge", "Memory that the process holds."),
    Metric("process_cpu_seconds_total", "counter", "CPU time of the process."),
    Metric("process_start_time_seconds", "gauge", "When the process began, unix seconds."),
)  # fmt: skip


def few(counts: Mapping[str, float]) -> dict[str, float]:
    """The commonest values, and all others as one."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[:LABEL_VALUES_MAX])
    others = sum(count for _, count in ranked[LABEL_VALUES_MAX:])
    if others:
        kept[_OTHER] = kept.get(_OTHER, 0) + others
    return kept


class Scrape(Collector):
    """All figures of one coordinator, in a registry of their own.

    Args:
        desk: where to look.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._process = psutil.Process()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._text: Fresh[bytes] = Fresh()

    def text(self) -> bytes:
        """In Prometheus' text format; a moment old, however many scrape."""
        return self._text.get(lambda: generate_latest(self._registry))

    def describe(self) -> Iterable[Any]:
        """Nothing: the registry need not scrape to know what there is."""
        return ()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Every metric of the table, in its order."""
        samples = self.samples()
        for metric in METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.says, labels=metric.labels)
            for values, figure in samples.get(metric.name, ()):
                family.add_metric(list(values), figure)
            yield family

    def samples(self) -> dict[str, list[Sample]]:
        """Name to (label values, figure)."""
        status = self._desk.status()
        with self._desk.reading() as store:
            stored = _stored(store, self._desk)
        return {**_from_memory(status), **stored, **self._from_process(status)}

    def _from_process(self, status: Status) -> dict[str, list[Sample]]:
        cpu = self._process.cpu_times()
        directory = self._desk.state_dir
        return _plain(
            potluck_loop_age_seconds=max(time.monotonic() - status.steady_s, 0.0),
            potluck_store_bytes=_file_bytes(directory),
            potluck_disk_free_bytes=shutil.disk_usage(directory).free,
            process_resident_memory_bytes=self._process.memory_info().rss,
            process_cpu_seconds_total=cpu.user + cpu.system,
            process_start_time_seconds=self._process.create_time(),
        ) | {
            "potluck_info": [((version("potluck"), self._desk.config.federation.name), 1.0)],
        }


def _plain(**figures: float) -> dict[str, list[Sample]]:
    return {name: [((), float(figure))] for name, figure in figures.items()}


def _by_label(counts: Mapping[str, float]) -> list[Sample]:
    return [((value,), float(count)) for value, count in sorted(counts.items())]


def _from_memory(status: Status) -> dict[str, list[Sample]]:
    current = status.round
    return _plain(
        potluck_broker_up=status.link_up,
        potluck_paused=status.paused,
        potluck_finished=status.finished,
        potluck_round_open=current is not None,
        potluck_round_age_seconds=max(status.at_s - current.opened_at_s, 0.0) if current else 0.0,
        potluck_round_invited=current.invited if current else 0,
        potluck_round_accepted=current.accepted if current else 0,
        potluck_round_needed=current.needed if current else 0,
        potluck_partial_updates=status.partial_updates,
        potluck_leases_valid=sum(lease.until_s > status.at_s for lease in status.leases.values()),
    ) | {
        "potluck_mqtt_bytes_total": _by_label(
            {"sent": status.sent_bytes, "received": status.received_bytes}
        ),
    }


def _stored(store: Store, desk: Desk) -> dict[str, list[Sample]]:
    rounds = store.rounds_by_status()
    outcomes = store.updates_by_reason()
    updates: dict[str, float] = {reason: count for reason, (count, _) in outcomes.items()}
    still_open = updates.pop("open", 0)
    spool_payloads, spool_bytes = store.spooled()
    aliases = desk.registry(store).aliases()
    latest = store.latest_version()
    versions: dict[str, float] = dict(aliases)
    if latest is not None:
        versions["latest"] = latest
    measured = store.last_measured()
    vetoes = store.vetoes_by_version()
    made = _plain(
        potluck_round_number=store.last_round(),
        potluck_updates_open=still_open,
        potluck_update_bytes_total=sum(size for _, size in outcomes.values()),
        potluck_spool_payloads=spool_payloads,
        potluck_spool_bytes=spool_bytes,
    ) | {
        "potluck_rounds_total": _by_label(
            {status: rounds.get(status, 0) for status in _ROUND_STATUSES}
        ),
        "potluck_updates_total": _by_label(few(updates)),
        "potluck_incidents_total": _by_label(few(dict(store.incidents_by_reason()))),
        "potluck_model_version": _by_label(versions),
        "potluck_release_vetoes": _by_label(
            {
                alias: float(sum(vetoes.get(version, {}).values()))
                for alias, version in aliases.items()
            }
        ),
        "potluck_devices": _devices(store),
    }
    for name in ("accuracy", "loss"):
        if name in measured:
            made[f"potluck_model_{name}"] = [((), measured[name])]
    return made


def _devices(store: Store) -> list[Sample]:
    """By class and state; what devices call their class is their own word."""
    by_state: dict[str, dict[str, float]] = {"enrolled": {}, "revoked": {}}
    for row in store.devices_by_class():
        by_state["revoked" if row["revoked"] else "enrolled"][row["device_class"]] = row["count"]
    return [
        ((device_class, state), count)
        for state, counts in by_state.items()
        for device_class, count in sorted(few(counts).items())
    ]


def _file_bytes(directory: Path) -> int:
    total = 0
    for suffix in ("", "-wal"):
        path = directory / f"{STORE_FILE}{suffix}"
        if path.exists():
            total += path.stat().st_size
    return total
