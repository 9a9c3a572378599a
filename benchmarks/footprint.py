"""What a device pays for taking part, part by part, each figure beside the limit it has to keep.

Parts are functions of `quick` that return figures; heavy modules are loaded by the part that needs
them. What is said of the parts is in docs/how-to/embed.md.
"""

import platform
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

MIB: Final = 2.0**20
MB: Final = 1e6
Tell = Callable[[str], None]


class Figure(Struct, frozen=True):
    """One measurement.

    Attributes:
        part: of `PARTS`.
        what: was measured.
        measured: in `unit`.
        unit: of both figures.
        limit: that is not to be passed; None: there is none, it stands there to be compared.
        note: how it came about.
    """

    part: str
    what: str
    measured: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether there is a limit and it is passed."""
        return self.limit is not None and not self.measured <= self.limit


def install(tell: Tell, *, quick: bool) -> list[Figure]:  # noqa: ARG001 - nothing is shorter
    """The base install on disk."""
    from benchmarks.footprint_install import install_figures  # noqa: PLC0415 - by part

    return install_figures(tell)


def importing(tell: Tell, *, quick: bool) -> list[Figure]:  # noqa: ARG001 - nothing to tell
    """`import edge_sdk`."""
    from benchmarks.footprint_install import import_figures  # noqa: PLC0415 - by part

    return import_figures(runs=3 if quick else 9)


def memory(tell: Tell, *, quick: bool) -> list[Figure]:
    """Memory at work and at rest."""
    from benchmarks.footprint_work import memory_figures  # noqa: PLC0415 - by part

    return memory_figures(tell, quick=quick)


def idle(tell: Tell, *, quick: bool) -> list[Figure]:
    """Traffic with nothing to do."""
    from benchmarks.footprint_idle import idle_run, traffic_figures  # noqa: PLC0415 - by part

    return traffic_figures(idle_run(tell, quick=quick))


def cpu(tell: Tell, *, quick: bool) -> list[Figure]:
    """CPU with nothing to do."""
    from benchmarks.footprint_idle import cpu_figures, idle_run  # noqa: PLC0415 - by part

    return cpu_figures(idle_run(tell, quick=quick))


def round_(tell: Tell, *, quick: bool) -> list[Figure]:
    """CPU of a round beyond training."""
    from benchmarks.footprint_work import round_figures  # noqa: PLC0415 - by part

    return round_figures(tell, quick=quick)


def resume(tell: Tell, *, quick: bool) -> list[Figure]:
    """Bytes of an upload that is cut."""
    from benchmarks.resume import resume_table  # noqa: PLC0415 - by part

    tell("resume: an upload that is cut, kill -9, a new start")
    found = resume_table(quick=quick)
    return [
        Figure(
            "resume",
            "bytes sent in all, of an 8 MB upload cut and resumed",
            found["ratio"],
            "x payload",
            found["limit"],
            f"{found['bytes_sent_total']:,} of {found['bytes_payload']:,} bytes; the worst cut",
        )
    ]


def loop(tell: Tell, *, quick: bool) -> list[Figure]:
    """Deadlines of an app's own loop."""
    from benchmarks.footprint_loop import loop_figures  # noqa: PLC0415 - by part

    return loop_figures(tell, quick=quick)


PARTS: Final[dict[str, Callable[..., list[Figure]]]] = {
    "install": install,
    "import": importing,
    "memory": memory,
    "idle": idle,
    "cpu": cpu,
    "round": round_,
    "resume": resume,
    "loop": loop,
}


def python_name() -> str:
    """Which Python was measured, on what."""
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"


def _number(value: float) -> str:
    for digits, least in ((0, 1000.0), (1, 10.0), (2, 0.1), (4, 0.0)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return "0"


def lines(figures: Sequence[Figure]) -> list[str]:
    """The figures as text, and what was missed."""
    made = [f"{'part':<8} {'what':<58} {'measured':>9} {'limit':>7} {'unit':<10} within"]
    for one in figures:
        limit = "" if one.limit is None else _number(one.limit)
        verdict = "" if one.limit is None else ("MISSED" if one.missed else "yes")
        line = f"{one.part:<8} {one.what:<58} {_number(one.measured):>9} {limit:>7} {one.unit:<10}"
        made.append(f"{line} {verdict:<6} {one.note}".rstrip())
    missed = [one for one in figures if one.missed]
    limits = sum(one.limit is not None for one in figures)
    made.append(
        f"{len(missed)} of {limits} limits missed: " + "; ".join(one.what for one in missed)
        if missed
        else f"all {limits} limits kept"
    )
    return made
