"""A run as one HTML page that asks nothing of anybody: styles and plots are inline, no script runs.

A plot is an SVG stretched over its frame (so lines keep their width and labels stay text of the
page at any size); every round has a band of the same width in every plot. Figures that are None or
not finite leave a gap in a plot and a dash in a table. Text of strangers is escaped by jinja2.
"""

import importlib.resources
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from insight._charts import (
    energy_bars,
    energy_plot,
    learning_plots,
    participation_plot,
    traffic_bars,
    traffic_plot,
)
from insight._plots import rect_path
from insight._words import DASH, clean, dashed, humane, many, of_these, whys
from insight.participation import ClassShare
from insight.records import DeviceRecord, RoundRecord, RunRecord, Totals, ratio_to_float32
from insight.text import (
    bytes_text,
    energy_text,
    figure_text,
    finite,
    percent_text,
    seconds_text,
    summed,
)

_DEVICES_MAX = 500
_HALF_ITS_SHARE = 0.5


@dataclass(frozen=True)
class _KeyFigure:
    label: str
    figure: str
    note: str


@dataclass(frozen=True)
class _DeviceRow:
    device: str
    device_class: str
    invited: int
    counted: int
    not_counted: int
    declined: int
    missing: int
    incidents: int
    up: str
    down: str
    energy: str
    why: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _ClassRow:
    name: str
    figures: tuple[str, ...]
    behind: bool


@dataclass(frozen=True)
class _RoundRow:
    number: int
    status: str
    why: str
    figures: tuple[str, ...]
    others: str


def report_html(run: RunRecord) -> str:
    """The report of a run: a whole HTML document without any reference to the outside."""
    import jinja2  # noqa: PLC0415 - a coordinator's extra; records and text do without

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    file = importlib.resources.files("insight").joinpath("report.html.jinja")
    rows = _device_rows(run.devices)
    return environment.from_string(file.read_text("utf-8")).render(
        title=clean(run.federation) or "unnamed",
        task=clean(run.task),
        lead=_lead(run),
        key_figures=_key_figures(run),
        learning=learning_plots(run.rounds),
        learning_finding=_learning_finding(run.rounds),
        traffic=traffic_plot(run),
        traffic_bars=traffic_bars(run),
        traffic_finding=_traffic_finding(run.totals),
        participation=participation_plot(run.rounds),
        participation_finding=_participation_finding(run.rounds),
        classes=[_class_row(share) for share in run.participation],
        energy=energy_plot(run.rounds),
        energy_bars=energy_bars(run.devices),
        energy_finding=_energy_finding(run),
        rounds=[_round_row(record) for record in run.rounds],
        devices=rows[:_DEVICES_MAX],
        devices_left_off=max(0, len(rows) - _DEVICES_MAX),
        faults=[clean(fault) for fault in run.faults],
        facts=_facts(run),
    )


# What the page says


def _lead(run: RunRecord) -> str:
    totals = run.totals
    if not run.rounds:
        return "No round was run."
    committed = sum(record.status == "committed" for record in run.rounds)
    counted = totals.device_updates - totals.wasted_updates
    rounds = (
        of_these(committed, len(run.rounds), "round", "rounds")
        + " committed in "
        + seconds_text(totals.wall_s)
    )
    devices = f" on {many(len(run.devices), 'device', 'devices')}" if run.devices else ""
    if not totals.device_updates:
        return f"{rounds}{devices}. No update was sent."
    updates = of_these(counted, totals.device_updates, "update", "updates")
    ended = f" It ended early: {humane(run.ended)}." if run.ended else ""
    return f"{rounds}{devices}. {updates} sent became part of the model.{ended}"


def _key_figures(run: RunRecord) -> list[_KeyFigure]:
    totals = run.totals
    counted = totals.device_updates - totals.wasted_updates
    first = next((record for record in run.rounds if finite(record.accuracy) is not None), None)
    began = (
        f"{dashed(percent_text(first.accuracy))} after round {first.number}"
        if first
        else "not measured"
    )
    ratio = ratio_to_float32(totals)
    joules = finite(totals.energy_j)
    if joules is None:
        energy = "not estimated"
    elif counted > 0:
        energy = f"{energy_text(joules / counted)} per counted update"
    else:
        energy = "no update counted"
    return [
        _KeyFigure("Accuracy", dashed(percent_text(totals.accuracy)), began),
        _KeyFigure(
            "Sent up",
            bytes_text(totals.uplink_bytes),
            f"{figure_text(ratio)}\N{MULTIPLICATION SIGN} less than float32" if ratio else DASH,
        ),
        _KeyFigure(
            "Sent down", bytes_text(totals.downlink_bytes), f"as {clean(run.downlink_codec)}"
        ),
        _KeyFigure(
            "Updates counted", f"{counted:,}", f"{totals.wasted_updates:,} sent, not counted"
        ),
        _KeyFigure("Energy, estimated", dashed(energy_text(joules)), energy),
        _KeyFigure(
            "Time",
            seconds_text(totals.wall_s),
            f"{dashed(figure_text(totals.updates_per_s))} updates/s",
        ),
    ]


def _learning_finding(rounds: Sequence[RoundRecord]) -> str:
    measured = [
        (accuracy, record.number)
        for record in rounds
        if (accuracy := finite(record.accuracy)) is not None
    ]
    if not measured:
        return "Accuracy was not measured in any round."
    best, number = max(measured, key=lambda pair: (pair[0], -pair[1]))
    last, at = measured[-1]
    if len(measured) == 1:
        return f"Accuracy was {percent_text(last)} after round {at}, the only one measured."
    if best == last:
        return f"Accuracy ended at its best, {percent_text(last)}."
    return (
        f"Accuracy ended at {percent_text(last)}; its best was {percent_text(best)} "
        f"after round {number}."
    )


def _traffic_finding(totals: Totals) -> str:
    ratio = ratio_to_float32(totals)
    if ratio is None:
        return "No update went up."
    return (
        f"As float32 the same updates would take {bytes_text(totals.uplink_bytes_float32)}; "
        f"{bytes_text(totals.uplink_bytes)} went up. Whole packets, retries included."
    )


def _participation_finding(rounds: Sequence[RoundRecord]) -> str:
    invited = sum(record.invited for record in rounds)
    if not invited:
        return "Nobody was invited."
    parts = [
        f"{number:,} {what}"
        for number, what in (
            (sum(summed(record.not_counted for record in rounds).values()), "sent in vain"),
            (sum(summed(record.declined for record in rounds).values()), "declined"),
            (sum(record.missing for record in rounds), "missing"),
        )
        if number
    ]
    accepted = sum(record.accepted for record in rounds)
    counted = of_these(accepted, invited, "invitation", "invitations")
    return f"{counted} led to a counted update" + (f"; {', '.join(parts)}." if parts else ".")


def _energy_finding(run: RunRecord) -> str:
    if finite(run.totals.energy_j) is None and not any(
        finite(record.energy_j) is not None for record in run.rounds
    ):
        return "No energy was estimated."
    return "Estimated from device profiles, not metered."


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    totals = run.totals
    facts = [
        ("Task", clean(run.task)),
        ("Seed", str(run.seed)),
        ("Parameters", f"{run.parameters:,}"),
        ("Codec up", clean(run.uplink_codec)),
        ("Codec down", clean(run.downlink_codec)),
        ("Engine", clean(totals.engine)),
        ("Crypto", clean(totals.crypto)),
        (
            "Privacy",
            f"\u03b5 = {dashed(figure_text(totals.epsilon))}"
            if totals.epsilon is not None
            else DASH,
        ),
        ("Final loss", dashed(figure_text(totals.loss))),
        ("Peak memory", bytes_text(totals.peak_rss_bytes)),
        ("Model", clean(totals.model_digest)),
        ("Counted updates", clean(totals.accepted_ids_digest)),
        ("Trace", clean(totals.trace_digest or "")),
    ]
    return [(name, text or DASH) for name, text in facts]


# Plots


# Tables


def _device_rows(devices: Iterable[DeviceRecord]) -> list[_DeviceRow]:
    """Those who caused trouble first: by incidents, updates not counted, times missing."""
    ordered = sorted(
        devices,
        key=lambda device: (
            -sum(device.incidents.values()),
            -sum(device.not_counted.values()),
            -device.missing,
            device.device,
        ),
    )
    return [
        _DeviceRow(
            device=clean(device.device) or DASH,
            device_class=clean(device.device_class) or DASH,
            invited=device.invited,
            counted=device.counted,
            not_counted=sum(device.not_counted.values()),
            declined=sum(device.declined.values()),
            missing=device.missing,
            up=bytes_text(device.uplink_bytes),
            down=bytes_text(device.downlink_bytes),
            energy=dashed(energy_text(device.energy_j)),
            incidents=sum(device.incidents.values()),
            why=whys(
                ("incidents", device.incidents),
                ("not counted", device.not_counted),
                ("declined", device.declined),
            ),
            parts=_strip(device),
        )
        for device in ordered
    ]


def _strip(device: DeviceRecord) -> tuple[tuple[str, str], ...]:
    """A device's invitations as one bar of 100: (tone, path)."""
    counts = (
        ("counted", device.counted),
        ("vain1", sum(device.not_counted.values())),
        ("declined", sum(device.declined.values())),
        ("missing", device.missing),
    )
    whole = max(device.invited, sum(count for _, count in counts))
    left, parts = 0.0, []
    for tone, count in counts:
        if count:
            width = count * 100 / whole
            parts.append((tone, rect_path(left, width, 0, 10)))
            left += width
    return tuple(parts)


def _class_row(share: ClassShare) -> _ClassRow:
    return _ClassRow(
        name=clean(share.device_class) or DASH,
        figures=(
            dashed(percent_text(share.there)),
            dashed(percent_text(share.invited)),
            dashed(percent_text(share.counted)),
            dashed(figure_text(share.ratio)),
            f"{share.updates:,} / {share.invitations:,}",
        ),
        behind=share.ratio is not None and share.ratio < _HALF_ITS_SHARE,
    )


def _round_row(record: RoundRecord) -> _RoundRow:
    return _RoundRow(
        number=record.number,
        status=clean(record.status),
        why=humane(record.reason),
        figures=(
            f"{record.accepted} / {record.invited}",
            dashed(percent_text(record.accuracy)),
            dashed(figure_text(record.loss)),
            bytes_text(record.uplink_bytes),
            bytes_text(record.downlink_bytes),
            dashed(energy_text(record.energy_j)),
            seconds_text(record.duration_s),
        ),
        others=whys(
            ("not counted", record.not_counted),
            ("declined", record.declined),
            ("", {"missing": record.missing}),
        ),
    )


# Words
