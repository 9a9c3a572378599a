"""Drawing: scales, ticks, lines and bars as SVG paths in a frame of 1000 by 1000."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from insight._words import clean, dashed
from insight.records import RoundRecord
from insight.text import (
    finite,
)

_BANDS_MAX = 400  # rounds that show their figures under the pointer; more would bloat the page
_DOTS_MAX = 40
_FEW = 60  # bars with room for a hairline between their parts
_PLOTTED_MAX = 1e100  # a loss beyond this says no more than a gap does
_X_LABELS_MAX = 10
_BAR_SHARE = 0.72  # of a round's band
_BAR_WIDTH_MAX = 60.0  # of 1000, for runs of few rounds
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
class Plot:
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


def line_plot(
    rounds: Sequence[RoundRecord],
    name: str,
    figures: Figures,
    text: Callable[[float | None], str],
) -> Plot:
    title = name.capitalize()
    ticks = nice_ticks(figures)
    series: tuple[_Series, ...] = ()
    if any(figure is not None for figure in figures):
        heights = [None if each is None else height_of(each, ticks) for each in figures]
        series = (line_series("", "counted" if name == "accuracy" else "ink", heights),)
    return Plot(
        name,
        title,
        described(title, figures, text),
        series,
        tuple((height_of(tick, ticks) / 10, _tick_text(name, tick, ticks)) for tick in ticks),
        x_marks(rounds),
        hover_bands(rounds, [f"{title.lower()} {dashed(text(figure))}" for figure in figures]),
        washes_of(rounds),
        abandoned_note(rounds),
    )


def plottable(figure: float | None) -> float | None:
    known = finite(figure)
    return known if known is not None and abs(known) <= _PLOTTED_MAX else None


def described(what: str, figures: Figures, text: Callable[[float | None], str]) -> str:
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


def hover_bands(rounds: Sequence[RoundRecord], texts: Sequence[str]) -> tuple[str, ...]:
    """What each round shows under the pointer."""
    if len(rounds) > _BANDS_MAX:
        return ()
    return tuple(
        f"Round {record.number}"
        + (f" ({clean(record.status)})" if record.status != "committed" else "")
        + f": {text}"
        for record, text in zip(rounds, texts, strict=True)
    )


def washes_of(rounds: Sequence[RoundRecord]) -> str:
    """The bands of abandoned rounds, whole height."""
    width = 1000 / len(rounds) if rounds else 0
    return "".join(
        rect_path(index * width, width, 0, 1000)
        for index, record in enumerate(rounds)
        if record.status == "abandoned"
    )


def abandoned_note(rounds: Iterable[RoundRecord]) -> str:
    return "abandoned" if any(record.status == "abandoned" for record in rounds) else ""


def line_series(label: str, tone: str, heights: Figures) -> _Series:
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


def bar_series(label: str, tone: str, edges: Sequence[tuple[float, float]]) -> _Series:
    """A bar a round, from one height to another."""
    band = 1000 / len(edges) if edges else 0.0
    width = band if len(edges) > _BANDS_MAX else min(band * _BAR_SHARE, _BAR_WIDTH_MAX)
    return _Series(
        label,
        tone,
        area="".join(
            rect_path((index + 0.5) * band - width / 2, width, top, bottom)
            for index, (bottom, top) in enumerate(edges)
            if bottom > top
        ),
    )


def rect_path(left: float, width: float, top: float, bottom: float) -> str:
    across = _number(width)
    return f"M{_number(left)} {_number(top)}h{across}V{_number(bottom)}h-{across}z"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def x_marks(rounds: Sequence[RoundRecord]) -> tuple[Mark, ...]:
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


def nice_ticks(figures: Figures, *, whole: bool = False) -> tuple[float, ...]:
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


def decade_ticks(logs: Figures) -> tuple[float, ...]:
    """Logarithms to base 10 of powers of ten that enclose all, every other one if they are many."""
    known = [each for each in logs if each is not None]
    if not known:
        return ()
    first, last = math.floor(min(known)), math.ceil(max(known))
    last = max(last, first + 1)
    step = -(-(last - first) // 6)
    return tuple(float(each) for each in range(first, last + step, step))


def height_of(figure: float, ticks: Sequence[float]) -> float:
    """Where a figure is: 1000 at the lowest tick, 0 at the highest."""
    if not ticks:
        return 1000.0
    return (ticks[-1] - figure) / (ticks[-1] - ticks[0]) * 1000


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
