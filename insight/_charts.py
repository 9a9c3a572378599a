"""The charts of a run: which figures are drawn, in which shades, with what said of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from insight._plots import (
    Plot,
    abandoned_note,
    bar_series,
    decade_ticks,
    described,
    height_of,
    hover_bands,
    line_plot,
    line_series,
    nice_ticks,
    plottable,
    washes_of,
    x_marks,
)
from insight._words import DASH, clean, dashed, humane, many, share_of
from insight.records import DeviceRecord, RoundRecord, RunRecord, ratio_to_float32
from insight.text import (
    bytes_text,
    energy_text,
    figure_text,
    finite,
    percent_text,
    ranked,
    summed,
)

_REASONS_MAX = 4  # that get a shade of their own in a plot
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class _Bar:
    """A row of a bar chart: `share` is its length, in percent of the longest."""

    label: str
    text: str
    note: str
    share: float
    tone: str


@dataclass(frozen=True)
class _Part:
    """A layer of the stack of a round's invited devices."""

    label: str
    tone: str
    count: Callable[[RoundRecord], int]


def learning_plots(rounds: Sequence[RoundRecord]) -> list[Plot]:
    accuracies = [plottable(record.accuracy) for record in rounds]
    losses = [plottable(record.loss) for record in rounds]
    return [
        line_plot(rounds, "accuracy", accuracies, percent_text),
        line_plot(rounds, "loss", losses, figure_text),
    ]


def traffic_plot(run: RunRecord) -> Plot:
    rounds = run.rounds
    sent = [record.accepted + sum(record.not_counted.values()) for record in rounds]
    kinds: tuple[tuple[str, str, list[int]], ...] = (
        ("up, as float32", "float32", [_FLOAT32_BYTES * run.parameters * each for each in sent]),
        ("up", "counted", [record.uplink_bytes for record in rounds]),
        ("down", "down", [record.downlink_bytes for record in rounds]),
    )
    logs = [[math.log10(each) if each > 0 else None for each in counts] for _, _, counts in kinds]
    ticks = decade_ticks([each for figures in logs for each in figures])
    series = tuple(
        line_series(
            label, tone, [None if each is None else height_of(each, ticks) for each in figures]
        )
        for (label, tone, _), figures in zip(kinds, logs, strict=True)
        if any(each is not None for each in figures)
    )
    beside = [bytes_text(each) for each in kinds[0][2]]
    return Plot(
        "bytes",
        "Bytes by round, log scale",
        "; ".join(
            described(label, [float(each) for each in counts], lambda each: bytes_text(each or 0))
            for label, _, counts in kinds
        ),
        series,
        tuple((height_of(tick, ticks) / 10, bytes_text(round(10**tick))) for tick in ticks),
        x_marks(rounds),
        hover_bands(
            rounds,
            [
                f"up {bytes_text(record.uplink_bytes)} (float32 {float32}), "
                f"down {bytes_text(record.downlink_bytes)}"
                for record, float32 in zip(rounds, beside, strict=True)
            ],
        ),
        washes_of(rounds),
        abandoned_note(rounds),
    )


def participation_plot(rounds: Sequence[RoundRecord]) -> Plot:
    parts = _parts(rounds)
    stacks = [list(accumulate(part.count(record) for part in parts)) for record in rounds]
    highest = max((stack[-1] for stack in stacks), default=0)
    ticks = nice_ticks([0.0, float(highest)], whole=True)
    bars = []
    for layer, part in enumerate(parts):
        edges = [
            (height_of(stack[layer - 1] if layer else 0, ticks), height_of(stack[layer], ticks))
            for stack in stacks
        ]
        bars.append(bar_series(part.label, part.tone, edges))
    return Plot(
        "participation",
        "What became of each round's invitations",
        "; ".join(f"{part.label} {sum(part.count(record) for record in rounds)}" for part in parts),
        tuple(bars),
        tuple((height_of(tick, ticks) / 10, f"{tick:,.0f}") for tick in ticks),
        x_marks(rounds),
        hover_bands(
            rounds,
            [
                ", ".join(
                    f"{count} {part.label}" for part in parts if (count := part.count(record))
                )
                for record in rounds
            ],
        ),
        washes_of(rounds),
        abandoned_note(rounds),
        tall=True,
    )


def _parts(rounds: Sequence[RoundRecord]) -> list[_Part]:
    """The layers of the stack: the commonest reasons for not counting have a layer each."""
    reasons = [reason for reason, _ in ranked(summed(record.not_counted for record in rounds))]
    named, rest = reasons[:_REASONS_MAX], frozenset(reasons[_REASONS_MAX:])
    if len(rest) == 1:
        named, rest = reasons, frozenset()

    def of(reason: str) -> Callable[[RoundRecord], int]:
        return lambda record: record.not_counted.get(reason, 0)

    parts = [_Part("counted", "counted", lambda record: record.accepted)]
    parts += [
        _Part(f"not counted: {humane(reason)}", f"vain{min(index, _REASONS_MAX)}", of(reason))
        for index, reason in enumerate(named)
    ]
    if rest:
        parts.append(
            _Part(
                "not counted: other reasons",
                f"vain{_REASONS_MAX}",
                lambda record: sum(record.not_counted.get(reason, 0) for reason in rest),
            )
        )
    parts += [
        _Part("declined", "declined", lambda record: sum(record.declined.values())),
        _Part("missing", "missing", lambda record: record.missing),
        _Part("not settled", "open", _not_settled),
    ]
    return [part for part in parts if any(part.count(record) for record in rounds)]


def _not_settled(record: RoundRecord) -> int:
    """Invited devices that nothing is known about: the round is open, or was over before them."""
    known = sum(record.not_counted.values()) + sum(record.declined.values()) + record.missing
    return max(0, record.invited - record.accepted - known)


def energy_plot(rounds: Sequence[RoundRecord]) -> Plot:
    figures = [plottable(record.energy_j) for record in rounds]
    ticks = nice_ticks([0.0, *figures] if any(figures) else figures)
    edges = [(height_of(0, ticks), height_of(figure or 0, ticks)) for figure in figures]
    return Plot(
        "energy",
        "Energy by round",
        described("energy", figures, energy_text),
        (bar_series("", "energy", edges),) if any(figures) else (),
        tuple((height_of(tick, ticks) / 10, energy_text(tick)) for tick in ticks),
        x_marks(rounds),
        hover_bands(rounds, [f"energy {dashed(energy_text(figure))}" for figure in figures]),
        washes_of(rounds),
        abandoned_note(rounds),
    )


def traffic_bars(run: RunRecord) -> list[_Bar]:
    totals = run.totals
    ratio = ratio_to_float32(totals)
    rows = [
        (
            "Up, as float32",
            totals.uplink_bytes_float32,
            "what the same updates take without a codec" if totals.uplink_bytes_float32 else "",
            "float32",
        ),
        (
            f"Up, {clean(run.uplink_codec)}",
            totals.uplink_bytes,
            f"{percent_text(1 / ratio)} of that" if ratio else "",
            "counted",
        ),
        (f"Down, {clean(run.downlink_codec)}", totals.downlink_bytes, "", "down"),
    ]
    longest = max(count for _, count, _, _ in rows)
    return [
        _Bar(label, bytes_text(count), note, share_of(count, longest), tone)
        for label, count, note, tone in rows
    ]


def energy_bars(devices: Sequence[DeviceRecord]) -> list[_Bar]:
    """Energy by class, most first; a class that nobody estimated has a dash."""
    classes: dict[str, list[float | None]] = {}
    for device in devices:
        classes.setdefault(device.device_class, []).append(finite(device.energy_j))
    sums = [
        (
            name,
            sum(known) if (known := [each for each in figures if each is not None]) else None,
            len(figures),
        )
        for name, figures in classes.items()
    ]
    sums.sort(key=lambda row: (-(row[1] or 0), row[0]))
    longest = max((joules or 0 for _, joules, _ in sums), default=0)
    return [
        _Bar(
            clean(name) or DASH,
            dashed(energy_text(joules)),
            many(count, "device", "devices"),
            share_of(joules or 0, longest),
            "energy",
        )
        for name, joules, count in sums[:12]
    ]
