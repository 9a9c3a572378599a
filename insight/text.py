"""A run as lines for a terminal, and the units that every report writes figures in.

Whatever a device chose (its name, a reason) is printed as ASCII, so no escape sequence, no line
break and no right-to-left mark of a stranger reaches the terminal. A figure that is None, or not
finite, is a dash.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from insight.participation import ClassShare
from insight.records import DeviceRecord, RoundRecord, RunRecord, Totals, ratio_to_float32

DASH = "-"

_WORD_CHARS_MAX = 64
_NAMES_MAX = 8
_CLASSES_MAX = 16
_UNITS = ("", "k", "M", "G", "T", "P", "E")
_MINUTE_S = 60
_HOUR_S = 3600


def finite(value: float | None) -> float | None:
    """The figure, or None where it is no number."""
    return value if value is not None and math.isfinite(value) else None


def bytes_text(count: float) -> str:
    """Bytes in decimal units, as networks bill them: 1.23 MB."""
    return _scaled(count, "B")


def energy_text(joules: float | None) -> str:
    """Energy from mJ up, or a dash."""
    known = finite(joules)
    if known is None:
        return DASH
    if 0 < abs(known) < 1:
        return f"{known * 1000:.3g} mJ"
    return _scaled(known, "J")


def percent_text(share: float | None) -> str:
    """A share of one as a percentage, or a dash."""
    known = finite(share)
    return DASH if known is None else f"{known * 100:.1f}%"


def figure_text(value: float | None) -> str:
    """A bare figure with three digits, or a dash."""
    known = finite(value)
    return DASH if known is None else f"{known:#.3g}".rstrip(".")


def seconds_text(seconds: float) -> str:
    """A duration: 0.42 s, 12.3 s, 3 min 05 s, 1 h 02 min."""
    known = finite(seconds)
    if known is None:
        return DASH
    whole = round(known)
    if whole < _MINUTE_S:
        return f"{known:.3g} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02d} s"
    minutes = round(known / _MINUTE_S)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def reasons_text(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, most frequent first: "3 late, 1 stale_round"."""
    first = ranked(reasons)
    parts = [f"{count} {_word(reason)}" for reason, count in first[:_NAMES_MAX]]
    if rest := sum(count for _, count in first[_NAMES_MAX:]):
        parts.append(f"{rest} for other reasons")
    return ", ".join(parts)


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What was counted at all, most frequent first, ties by name."""
    return sorted(
        ((name, count) for name, count in counts.items() if count),
        key=lambda item: (-item[1], item[0]),
    )


def summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Counts by reason, added up."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def round_line(record: RoundRecord) -> str:
    """One round as one line of ASCII, columns aligned from round to round."""
    columns = (
        f"round {record.number:>4}",
        f"{_word(record.status):<9}",
        f"{record.accepted:>4}/{record.invited:<4}",
        f"accuracy {percent_text(record.accuracy):>6}",
        f"loss {figure_text(record.loss):>7}",
        f"up {bytes_text(record.uplink_bytes):>7}",
        f"down {bytes_text(record.downlink_bytes):>7}",
        f"energy {energy_text(record.energy_j):>7}",
        f"{seconds_text(record.duration_s):>6}",
        "; ".join(_others(record)),
    )
    return "  ".join(columns).rstrip()


def summary_lines(run: RunRecord) -> list[str]:
    """What a user wants to know after a run, a line a subject; subjects without news are absent."""
    totals = run.totals
    committed = sum(record.status == "committed" for record in run.rounds)
    lines = [
        (
            f"{_word(run.federation)}: {_word(run.task)}, {committed} of {len(run.rounds)} rounds "
            f"committed in {seconds_text(totals.wall_s)}"
        ),
        _line("accuracy", f"{percent_text(totals.accuracy)}, loss {figure_text(totals.loss)}"),
        _line("up", _uplink(run)),
        _line("down", f"{bytes_text(totals.downlink_bytes)} as {_word(run.downlink_codec)}"),
        _line("updates", _updates(run)),
    ]
    if declined := reasons_text(summed(record.declined for record in run.rounds)):
        lines.append(_line("declined", declined))
    if missing := _missing(run):
        lines.append(_line("missing", missing))
    troubled = sorted(
        (device for device in run.devices if any(device.incidents.values())),
        key=lambda device: (-sum(device.incidents.values()), device.device),
    )
    lines += [_line("incidents", _incidents(device)) for device in troubled[:_NAMES_MAX]]
    if len(troubled) > _NAMES_MAX:
        lines.append(_line("incidents", f"and {len(troubled) - _NAMES_MAX} more devices"))
    lines.append(_line("energy", _energy(run)))
    if work := _device_time(totals):
        lines.append(_line("work", work))
    lines += [_line("class", _class_share(share)) for share in run.participation[:_CLASSES_MAX]]
    if run.ended:
        lines.append(_line("ended", f"{_word(run.ended)}: no further round was opened"))
    if (epsilon := finite(totals.epsilon)) is not None:
        lines.append(_line("privacy", f"epsilon {figure_text(epsilon)}"))
    lines += [_line("fault", _word(fault)) for fault in run.faults]
    return lines


def _scaled(value: float, unit: str) -> str:
    known = finite(value)
    if known is None:
        return DASH
    for prefix in _UNITS[:-1]:
        if abs(known) < 999.5:  # noqa: PLR2004 - three digits round up to 1000 from here
            return f"{known:.3g} {prefix}{unit}"
        known /= 1000
    return f"{known:.3g} {_UNITS[-1]}{unit}"


def _word(text: str) -> str:
    """A stranger's text as printable ASCII of bounded length."""
    clipped = text if len(text) <= _WORD_CHARS_MAX else text[: _WORD_CHARS_MAX - 3] + "..."
    return "".join(
        char if char.isascii() and char.isprintable() else ascii(char)[1:-1] for char in clipped
    )


def _line(subject: str, text: str) -> str:
    return f"  {subject:<10}{text}"


def _others(record: RoundRecord) -> list[str]:
    """Why the round ended as it did, and what became of those who were not counted."""
    others = [_word(record.reason)] if record.reason else []
    if not_counted := reasons_text(record.not_counted):
        others.append(f"not counted: {not_counted}")
    if declined := reasons_text(record.declined):
        others.append(f"declined: {declined}")
    if record.missing:
        others.append(f"missing: {record.missing}")
    return others


def _uplink(run: RunRecord) -> str:
    totals = run.totals
    text = f"{bytes_text(totals.uplink_bytes)} as {_word(run.uplink_codec)}"
    ratio = ratio_to_float32(totals)
    if ratio is None:
        return text
    beside = bytes_text(totals.uplink_bytes_float32)
    return f"{text}; the same updates as float32: {beside}, {figure_text(ratio)} times as much"


def _updates(run: RunRecord) -> str:
    totals = run.totals
    counted = totals.device_updates - totals.wasted_updates
    text = f"{counted} counted of {totals.device_updates} sent"
    if not totals.wasted_updates:
        return text
    why = reasons_text(summed(record.not_counted for record in run.rounds))
    return f"{text}, {totals.wasted_updates} not counted" + (f": {why}" if why else "")


def _missing(run: RunRecord) -> str:
    """How often, and who: some devices may be missing from a record that has rounds alone."""
    names = ranked({device.device: device.missing for device in run.devices})
    times = max(
        sum(record.missing for record in run.rounds), sum(device.missing for device in run.devices)
    )
    if not times:
        return ""
    text = f"{times} invited and never heard of again"
    if not names:
        return text
    listed = ", ".join(
        f"{_word(name)} ({count} times)" if count > 1 else _word(name)
        for name, count in names[:_NAMES_MAX]
    )
    rest = len(names) - _NAMES_MAX
    return f"{text}: {listed}" + (f" and {rest} more" if rest > 0 else "")


def _incidents(device: DeviceRecord) -> str:
    return f"{_word(device.device)}: {reasons_text(device.incidents)}"


def _device_time(totals: Totals) -> str:
    """The device time that training and transfer took, and how much of it was for nothing."""
    whole, wasted = finite(totals.device_s), finite(totals.wasted_device_s)
    if not whole or wasted is None:
        return ""
    return (
        f"{seconds_text(whole)} of devices' time, {seconds_text(wasted)}"
        f" ({percent_text(wasted / whole)}) of it not counted"
    )


def _class_share(share: ClassShare) -> str:
    """A class's part in the model beside its part in those that were there."""
    due = "never there" if share.ratio is None else f"{figure_text(share.ratio)} of its share"
    return (
        f"{_word(share.device_class)}: {percent_text(share.there)} of those there,"
        f" {percent_text(share.invited)} of invitations, {percent_text(share.counted)} of counted"
        f" updates: {due}"
    )


def _energy(run: RunRecord) -> str:
    joules = finite(run.totals.energy_j)
    if joules is None:
        return DASH
    counted = run.totals.device_updates - run.totals.wasted_updates
    each = f", {energy_text(joules / counted)} per counted update" if counted > 0 else ""
    return f"{energy_text(joules)}{each} (an estimate from device profiles)"
