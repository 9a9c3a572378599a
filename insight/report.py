"""A run as one HTML page that asks nothing of anybody: styles and plots are inline, no script runs.

A plot is an SVG stretched over its frame (so lines keep their width and labels stay text of the
page at any size); every round has a band of the same width in every plot. Figures that are None or
not finite leave a gap in a plot and a dash in a table. Text of strangers is escaped by jinja2.
"""

import importlib.resources
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from insight.records import DeviceRecord, RoundRecord, RunRecord, Totals, ratio_to_float32
from insight.text import (
    bytes_text,
    energy_text,
    figure_text,
    finite,
    percent_text,
    ranked,
    seconds_text,
    summed,
)

DASH = "\N{EN DASH}"

_BANDS_MAX = 400  # rounds that show their figures under the pointer; more would bloat the page
_DOTS_MAX = 40
_FEW = 60  # bars with room for a hairline between their parts
_PLOTTED_MAX = 1e100  # a loss beyond this says no more than a gap does
_DEVICES_MAX = 500
_REASONS_MAX = 4  # that get a shade of their own in a plot
_NAMED_MAX = 6
_CHARS_MAX = 120
_X_LABELS_MAX = 10
_BAR_SHARE = 0.72  # of a round's band
_BAR_WIDTH_MAX = 60.0  # of 1000, for runs of few rounds
_FLOAT32_BYTES = 4
_PLAIN_STEP_MIN, _PLAIN_STEP_MAX = 1e-4, 1e5  # between ticks that are written without an exponent

Figures: TypeAlias = Sequence[float | None]
Mark: TypeAlias = tuple[float, str]


@dataclass(frozen=True)
class _Series:
    """Something drawn: `tone` is its CSS class; a legend entry unless it has no label."""

    label: str
    tone: str
    line: str = ""
    dots: str = ""
    area: str = ""


@dataclass(frozen=True)
class _Plot:
    """One figure: marks are positions in percent with their labels."""

    name: str
    title: str
    description: str
    series: tuple[_Series, ...]
    y_marks: tuple[Mark, ...]
    x_marks: tuple[Mark, ...]
    bands: tuple[str, ...]
    washes: str = ""
    note: str = ""
    tall: bool = False

    @property
    def density(self) -> str:
        """How much room a round has, as a CSS class."""
        return "few" if 0 < len(self.bands) <= _FEW else "" if self.bands else "dense"

    @property
    def grid(self) -> str:
        """The path of the horizontal lines."""
        return "".join(f"M0 {_number(top * 10)}H1000" for top, _ in self.y_marks)


@dataclass(frozen=True)
class _Bar:
    """A row of a bar chart: `share` is its length, in percent of the longest."""

    label: str
    text: str
    note: str
    share: float
    tone: str


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
class _RoundRow:
    number: int
    status: str
    why: str
    figures: tuple[str, ...]
    others: str


@dataclass(frozen=True)
class _Part:
    """A layer of the stack of a round's invited devices."""

    label: str
    tone: str
    count: Callable[[RoundRecord], int]


def report_html(run: RunRecord) -> str:
    """The report of a run: a whole HTML document without any reference to the outside."""
    import jinja2  # noqa: PLC0415 - a coordinator's extra; records and text do without

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    file = importlib.resources.files("insight").joinpath("report.html.jinja")
    rows = _device_rows(run.devices)
    return environment.from_string(file.read_text("utf-8")).render(
        title=_clean(run.federation) or "unnamed",
        task=_clean(run.task),
        lead=_lead(run),
        key_figures=_key_figures(run),
        learning=_learning(run.rounds),
        learning_finding=_learning_finding(run.rounds),
        traffic=_traffic(run),
        traffic_bars=_traffic_bars(run),
        traffic_finding=_traffic_finding(run.totals),
        participation=_participation(run.rounds),
        participation_finding=_participation_finding(run.rounds),
        energy=_energy(run.rounds),
        energy_bars=_energy_bars(run.devices),
        energy_finding=_energy_finding(run),
        rounds=[_round_row(record) for record in run.rounds],
        devices=rows[:_DEVICES_MAX],
        devices_left_off=max(0, len(rows) - _DEVICES_MAX),
        faults=[_clean(fault) for fault in run.faults],
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
        _of_these(committed, len(run.rounds), "round", "rounds")
        + " committed in "
        + seconds_text(totals.wall_s)
    )
    devices = f" on {_many(len(run.devices), 'device', 'devices')}" if run.devices else ""
    if not totals.device_updates:
        return f"{rounds}{devices}. No update was sent."
    updates = _of_these(counted, totals.device_updates, "update", "updates")
    return f"{rounds}{devices}. {updates} sent became part of the model."


def _key_figures(run: RunRecord) -> list[_KeyFigure]:
    totals = run.totals
    counted = totals.device_updates - totals.wasted_updates
    first = next((record for record in run.rounds if finite(record.accuracy) is not None), None)
    began = (
        f"{_dashed(percent_text(first.accuracy))} after round {first.number}"
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
        _KeyFigure("Accuracy", _dashed(percent_text(totals.accuracy)), began),
        _KeyFigure(
            "Sent up",
            bytes_text(totals.uplink_bytes),
            f"{figure_text(ratio)}\N{MULTIPLICATION SIGN} less than float32" if ratio else DASH,
        ),
        _KeyFigure(
            "Sent down", bytes_text(totals.downlink_bytes), f"as {_clean(run.downlink_codec)}"
        ),
        _KeyFigure(
            "Updates counted", f"{counted:,}", f"{totals.wasted_updates:,} sent, not counted"
        ),
        _KeyFigure("Energy, estimated", _dashed(energy_text(joules)), energy),
        _KeyFigure(
            "Time",
            seconds_text(totals.wall_s),
            f"{_dashed(figure_text(totals.updates_per_s))} updates/s",
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
    counted = _of_these(accepted, invited, "invitation", "invitations")
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
        ("Task", _clean(run.task)),
        ("Seed", str(run.seed)),
        ("Parameters", f"{run.parameters:,}"),
        ("Codec up", _clean(run.uplink_codec)),
        ("Codec down", _clean(run.downlink_codec)),
        ("Engine", _clean(totals.engine)),
        ("Crypto", _clean(totals.crypto)),
        (
            "Privacy",
            f"\u03b5 = {_dashed(figure_text(totals.epsilon))}"
            if totals.epsilon is not None
            else DASH,
        ),
        ("Final loss", _dashed(figure_text(totals.loss))),
        ("Peak memory", bytes_text(totals.peak_rss_bytes)),
        ("Model", _clean(totals.model_digest)),
        ("Counted updates", _clean(totals.accepted_ids_digest)),
        ("Trace", _clean(totals.trace_digest or "")),
    ]
    return [(name, text or DASH) for name, text in facts]


# Plots


def _learning(rounds: Sequence[RoundRecord]) -> list[_Plot]:
    accuracies = [_plotted(record.accuracy) for record in rounds]
    losses = [_plotted(record.loss) for record in rounds]
    return [
        _line_plot(rounds, "accuracy", accuracies, percent_text),
        _line_plot(rounds, "loss", losses, figure_text),
    ]


def _line_plot(
    rounds: Sequence[RoundRecord],
    name: str,
    figures: Figures,
    text: Callable[[float | None], str],
) -> _Plot:
    title = name.capitalize()
    ticks = _ticks(figures)
    series: tuple[_Series, ...] = ()
    if any(figure is not None for figure in figures):
        heights = [None if each is None else _height(each, ticks) for each in figures]
        series = (_line("", "counted" if name == "accuracy" else "ink", heights),)
    return _Plot(
        name,
        title,
        _described(title, figures, text),
        series,
        tuple((_height(tick, ticks) / 10, _tick_text(name, tick, ticks)) for tick in ticks),
        _x_marks(rounds),
        _bands(rounds, [f"{title.lower()} {_dashed(text(figure))}" for figure in figures]),
        _washes(rounds),
        _abandoned_note(rounds),
    )


def _traffic(run: RunRecord) -> _Plot:
    rounds = run.rounds
    sent = [record.accepted + sum(record.not_counted.values()) for record in rounds]
    kinds: tuple[tuple[str, str, list[int]], ...] = (
        ("up, as float32", "float32", [_FLOAT32_BYTES * run.parameters * each for each in sent]),
        ("up", "counted", [record.uplink_bytes for record in rounds]),
        ("down", "down", [record.downlink_bytes for record in rounds]),
    )
    logs = [[math.log10(each) if each > 0 else None for each in counts] for _, _, counts in kinds]
    ticks = _log_ticks([each for figures in logs for each in figures])
    series = tuple(
        _line(label, tone, [None if each is None else _height(each, ticks) for each in figures])
        for (label, tone, _), figures in zip(kinds, logs, strict=True)
        if any(each is not None for each in figures)
    )
    beside = [bytes_text(each) for each in kinds[0][2]]
    return _Plot(
        "bytes",
        "Bytes by round, log scale",
        "; ".join(
            _described(label, [float(each) for each in counts], lambda each: bytes_text(each or 0))
            for label, _, counts in kinds
        ),
        series,
        tuple((_height(tick, ticks) / 10, bytes_text(round(10**tick))) for tick in ticks),
        _x_marks(rounds),
        _bands(
            rounds,
            [
                f"up {bytes_text(record.uplink_bytes)} (float32 {float32}), "
                f"down {bytes_text(record.downlink_bytes)}"
                for record, float32 in zip(rounds, beside, strict=True)
            ],
        ),
        _washes(rounds),
        _abandoned_note(rounds),
    )


def _participation(rounds: Sequence[RoundRecord]) -> _Plot:
    parts = _parts(rounds)
    stacks = [list(accumulate(part.count(record) for part in parts)) for record in rounds]
    highest = max((stack[-1] for stack in stacks), default=0)
    ticks = _ticks([0.0, float(highest)], whole=True)
    bars = []
    for layer, part in enumerate(parts):
        edges = [
            (_height(stack[layer - 1] if layer else 0, ticks), _height(stack[layer], ticks))
            for stack in stacks
        ]
        bars.append(_bars(part.label, part.tone, edges))
    return _Plot(
        "participation",
        "What became of each round's invitations",
        "; ".join(f"{part.label} {sum(part.count(record) for record in rounds)}" for part in parts),
        tuple(bars),
        tuple((_height(tick, ticks) / 10, f"{tick:,.0f}") for tick in ticks),
        _x_marks(rounds),
        _bands(
            rounds,
            [
                ", ".join(
                    f"{count} {part.label}" for part in parts if (count := part.count(record))
                )
                for record in rounds
            ],
        ),
        _washes(rounds),
        _abandoned_note(rounds),
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
        _Part(f"not counted: {_humane(reason)}", f"vain{min(index, _REASONS_MAX)}", of(reason))
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


def _energy(rounds: Sequence[RoundRecord]) -> _Plot:
    figures = [_plotted(record.energy_j) for record in rounds]
    ticks = _ticks([0.0, *figures] if any(figures) else figures)
    edges = [(_height(0, ticks), _height(figure or 0, ticks)) for figure in figures]
    return _Plot(
        "energy",
        "Energy by round",
        _described("energy", figures, energy_text),
        (_bars("", "energy", edges),) if any(figures) else (),
        tuple((_height(tick, ticks) / 10, energy_text(tick)) for tick in ticks),
        _x_marks(rounds),
        _bands(rounds, [f"energy {_dashed(energy_text(figure))}" for figure in figures]),
        _washes(rounds),
        _abandoned_note(rounds),
    )


def _traffic_bars(run: RunRecord) -> list[_Bar]:
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
            f"Up, {_clean(run.uplink_codec)}",
            totals.uplink_bytes,
            f"{percent_text(1 / ratio)} of that" if ratio else "",
            "counted",
        ),
        (f"Down, {_clean(run.downlink_codec)}", totals.downlink_bytes, "", "down"),
    ]
    longest = max(count for _, count, _, _ in rows)
    return [
        _Bar(label, bytes_text(count), note, _share(count, longest), tone)
        for label, count, note, tone in rows
    ]


def _energy_bars(devices: Sequence[DeviceRecord]) -> list[_Bar]:
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
            _clean(name) or DASH,
            _dashed(energy_text(joules)),
            _many(count, "device", "devices"),
            _share(joules or 0, longest),
            "energy",
        )
        for name, joules, count in sums[:12]
    ]


def _plotted(figure: float | None) -> float | None:
    known = finite(figure)
    return known if known is not None and abs(known) <= _PLOTTED_MAX else None


def _described(what: str, figures: Figures, text: Callable[[float | None], str]) -> str:
    """A plot in words, for those who do not see it."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return f"{what}: not measured"
    if len(known) == 1:
        return f"{what}: {text(known[0])} in one round"
    return (
        f"{what}: from {text(known[0])} to {text(known[-1])} over {len(figures)} rounds, "
        f"lowest {text(min(known))}, highest {text(max(known))}"
    )


def _bands(rounds: Sequence[RoundRecord], texts: Sequence[str]) -> tuple[str, ...]:
    """What each round shows under the pointer."""
    if len(rounds) > _BANDS_MAX:
        return ()
    return tuple(
        f"Round {record.number}"
        + (f" ({_clean(record.status)})" if record.status != "committed" else "")
        + f": {text}"
        for record, text in zip(rounds, texts, strict=True)
    )


def _washes(rounds: Sequence[RoundRecord]) -> str:
    """The bands of abandoned rounds, whole height."""
    width = 1000 / len(rounds) if rounds else 0
    return "".join(
        _rect(index * width, width, 0, 1000)
        for index, record in enumerate(rounds)
        if record.status == "abandoned"
    )


def _abandoned_note(rounds: Iterable[RoundRecord]) -> str:
    return "abandoned" if any(record.status == "abandoned" for record in rounds) else ""


def _line(label: str, tone: str, heights: Figures) -> _Series:
    """A line with a gap where a figure is missing; dots where they help or stand alone."""
    count = len(heights)
    path, dots = [], []
    for index, height in enumerate(heights):
        if height is None:
            continue
        at = f"{_number((index + 0.5) * 1000 / count)} {_number(height)}"
        after_gap = index == 0 or heights[index - 1] is None
        before_gap = index == count - 1 or heights[index + 1] is None
        path.append(("M" if after_gap else "L") + at)
        if count <= _DOTS_MAX or (after_gap and before_gap):
            dots.append(f"M{at}h0")
    return _Series(label, tone, line="".join(path), dots="".join(dots))


def _bars(label: str, tone: str, edges: Sequence[tuple[float, float]]) -> _Series:
    """A bar a round, from one height to another."""
    band = 1000 / len(edges) if edges else 0.0
    width = band if len(edges) > _BANDS_MAX else min(band * _BAR_SHARE, _BAR_WIDTH_MAX)
    return _Series(
        label,
        tone,
        area="".join(
            _rect((index + 0.5) * band - width / 2, width, top, bottom)
            for index, (bottom, top) in enumerate(edges)
            if bottom > top
        ),
    )


def _rect(left: float, width: float, top: float, bottom: float) -> str:
    across = _number(width)
    return f"M{_number(left)} {_number(top)}h{across}V{_number(bottom)}h-{across}z"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _x_marks(rounds: Sequence[RoundRecord]) -> tuple[Mark, ...]:
    """Round numbers under the bands, thinned to round steps."""
    count = len(rounds)
    step = 1
    for step in _steps():
        if count <= step * _X_LABELS_MAX:
            break
    marked = [
        index for index, record in enumerate(rounds) if step == 1 or record.number % step == 0
    ]
    if not marked or len(marked) > 2 * _X_LABELS_MAX:
        marked = sorted({0, count - 1}) if count else []
    return tuple(((index + 0.5) * 100 / count, str(rounds[index].number)) for index in marked)


def _steps() -> Iterable[int]:
    """1, 2, 5, 10, 20, 50, ..."""
    return (leading * 10**power for power in range(12) for leading in (1, 2, 5))


def _ticks(figures: Figures, *, whole: bool = False) -> tuple[float, ...]:
    """Two to six round figures that enclose all; `whole` where halves make no sense."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return ()
    lowest, highest = min(known), max(known)
    largest = max(abs(lowest), abs(highest))
    spread = (highest - lowest) or largest / 2 or 1.0
    spread = max(spread, largest * 1e-6, 1e-9)  # below this, neighbouring ticks would be one float
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(lead * power for lead in (1, 2, 2.5, 5, 10) if lead * power >= spread / 4)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    if first == last:
        first, last = (first - 1, last) if lowest > 0 else (first, last + 1)
    return tuple(index * step for index in range(first, last + 1))


def _log_ticks(logs: Figures) -> tuple[float, ...]:
    """Logarithms to base 10 of powers of ten that enclose all, every other one if they are many."""
    known = [each for each in logs if each is not None]
    if not known:
        return ()
    first, last = math.floor(min(known)), math.ceil(max(known))
    last = max(last, first + 1)
    step = -(-(last - first) // 6)
    return tuple(float(each) for each in range(first, last + step, step))


def _height(figure: float, ticks: Sequence[float]) -> float:
    """Where a figure is: 1000 at the lowest tick, 0 at the highest."""
    if not ticks:
        return 1000.0
    return (ticks[-1] - figure) / (ticks[-1] - ticks[0]) * 1000


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
            device=_clean(device.device) or DASH,
            device_class=_clean(device.device_class) or DASH,
            invited=device.invited,
            counted=device.counted,
            not_counted=sum(device.not_counted.values()),
            declined=sum(device.declined.values()),
            missing=device.missing,
            up=bytes_text(device.uplink_bytes),
            down=bytes_text(device.downlink_bytes),
            energy=_dashed(energy_text(device.energy_j)),
            incidents=sum(device.incidents.values()),
            why=_whys(
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
            parts.append((tone, _rect(left, width, 0, 10)))
            left += width
    return tuple(parts)


def _round_row(record: RoundRecord) -> _RoundRow:
    return _RoundRow(
        number=record.number,
        status=_clean(record.status),
        why=_humane(record.reason),
        figures=(
            f"{record.accepted} / {record.invited}",
            _dashed(percent_text(record.accuracy)),
            _dashed(figure_text(record.loss)),
            bytes_text(record.uplink_bytes),
            bytes_text(record.downlink_bytes),
            _dashed(energy_text(record.energy_j)),
            seconds_text(record.duration_s),
        ),
        others=_whys(
            ("not counted", record.not_counted),
            ("declined", record.declined),
            ("", {"missing": record.missing}),
        ),
    )


# Words


def _whys(*kinds: tuple[str, Mapping[str, int]]) -> str:
    """Kinds of outcome, each with its reasons, without those that did not happen."""
    return "; ".join(
        f"{kind}: {_why(reasons)}" if kind else _why(reasons)
        for kind, reasons in kinds
        if any(reasons.values())
    )


def _why(reasons: Mapping[str, int]) -> str:
    first = ranked(reasons)
    parts = [f"{count} {_humane(reason)}" for reason, count in first[:_NAMED_MAX]]
    if rest := sum(count for _, count in first[_NAMED_MAX:]):
        parts.append(f"{rest} for other reasons")
    return ", ".join(parts)


def _humane(reason: str) -> str:
    """A reason's snake_case as words."""
    return _clean(reason).replace("_", " ")


def _clean(text: str) -> str:
    """A stranger's text of bounded length, always valid UTF-8.

    What is not for showing (controls, marks that turn the direction, halves of surrogates) becomes
    a replacement character.
    """
    clipped = (
        text if len(text) <= _CHARS_MAX else text[: _CHARS_MAX - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char).startswith("C") else char
        for char in clipped
    )


def _dashed(text: str) -> str:
    return DASH if text == "-" else text


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _of_these(count: int, whole: int, one: str, more: str) -> str:
    """How many of how many, as people say it."""
    if count == whole:
        return f"The only {one}" if whole == 1 else f"All {whole:,} {more}"
    return f"{count:,} of {_many(whole, one, more)}"


def _share(part: float, whole: float) -> float:
    return part * 100 / whole if whole else 0.0


def _tick_text(name: str, tick: float, ticks: Sequence[float]) -> str:
    """A tick with as many digits as its neighbours need."""
    scale, unit = (100, "%") if name == "accuracy" else (1, "")
    step = (ticks[1] - ticks[0]) * scale
    if not _PLAIN_STEP_MIN <= step <= _PLAIN_STEP_MAX:
        return f"{tick * scale:.3g}{unit}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, digits) != round(step, digits + 1):
        digits += 1
    return f"{tick * scale:.{digits}f}{unit}"
