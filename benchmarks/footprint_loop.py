"""The app with a loop of its own, as figures of the footprint: see `benchmarks.sensor_loop`."""

from collections.abc import Sequence
from typing import Final

from benchmarks.footprint import Figure, Tell
from benchmarks.sensor_loop import CASES, Row, may_run_in_real_time, sensor_loop_table

_ALONE: Final = "the loop alone"
_BESIDE: Final = ("17k parameters", "1M parameters")


def loop_figures(tell: Tell, *, quick: bool) -> list[Figure]:
    """How late the loop is, alone and while a device trains and uploads in its process."""
    cases = [case for case in CASES if case.name in (_ALONE, *_BESIDE)]
    seconds = 5.0 if quick else 20.0
    real_time = may_run_in_real_time()
    how = "" if real_time else ", none in real time: this user may not"
    tell(f"loop: an app's loop at 100 Hz, {len(cases)} cases{how}")
    return figures_of(sensor_loop_table(quick=quick, cases=cases, seconds=seconds))


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Gaps and missed deadlines.

    The limit is what the same loop misses alone, and only in real time: under ordinary scheduling
    other programs make every loop late, and the figures say more about them.
    """
    alone = {row.real_time: row for row in rows if row.case == _ALONE}
    made = []
    for row in rows:
        how = "in real time" if row.real_time else "ordinary scheduling"
        name = f"{row.case}, {how}"
        limit = None
        if row.real_time and row.case != _ALONE and True in alone:
            limit = float(alone[True].missed)
        about = f"of {row.readings:,} readings"
        about += "" if row.case == _ALONE else f", {row.updates} updates trained and sent"
        made += [
            Figure("loop", f"missed deadlines, {name}", float(row.missed), "", limit, about),
            Figure("loop", f"longest gap, {name}", row.gap_worst_ms, "ms", None, "10 is ideal"),
        ]
    return made
