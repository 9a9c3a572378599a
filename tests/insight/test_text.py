import math
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insight import DeviceRecord, RoundRecord, RunRecord, Totals, round_line, summary_lines
from insight.text import bytes_text, energy_text, percent_text, seconds_text

ROUND = RoundRecord(
    number=3,
    status="committed",
    invited=8,
    accepted=4,
    accuracy=0.8731,
    loss=0.412,
    uplink_bytes=1_230_000,
    downlink_bytes=450,
    energy_j=0.25,
    duration_s=12.34,
    declined={"metered": 1},
    not_counted={"too_late": 1, "stale_round": 2},
    missing=1,
)
TOTALS = Totals(
    accuracy=0.91,
    uplink_bytes=1_000_000,
    downlink_bytes=2_000_000,
    uplink_bytes_float32=8_000_000,
    device_updates=7,
    wasted_updates=3,
    wall_s=83.4,
    updates_per_s=0.1,
    peak_rss_bytes=190_000_000,
    model_digest="9f" * 32,
    accepted_ids_digest="3c" * 32,
    trace_digest=None,
    crypto="cryptography",
    engine="numpy",
    epsilon=None,
    energy_j=40.0,
)
RUN = RunRecord(
    federation="garden",
    task="digits",
    seed=1,
    parameters=1000,
    uplink_codec="int4",
    downlink_codec="int8",
    rounds=(ROUND,),
    totals=TOTALS,
    devices=(
        DeviceRecord("shed", "pi-4", missing=3, incidents={"bad_signature": 2, "too_large": 1}),
        DeviceRecord("porch", "pi-5", missing=1),
    ),
)

REASONS = st.dictionaries(st.text(), st.integers(0, 10**9), max_size=12)
FIGURES = st.none() | st.floats()
COUNTS = st.integers(0, 10**15)


def test_a_round_line_tells_all_of_the_round() -> None:
    """Number, status, counts, figures with units, and why the others did not count."""
    line = round_line(ROUND)
    for part in ("round    3", "committed", "4/8", "87.3%", "0.412", "1.23 MB", "450 B", "250 mJ"):
        assert part in line
    assert line.endswith(
        "12.3 s  not counted: 2 stale_round, 1 too_late; declined: 1 metered; missing: 1"
    )


def test_round_lines_align() -> None:
    """The columns of a round with figures and of one without begin at the same places."""
    bare = msgspec.structs.replace(ROUND, number=12, accuracy=None, loss=None, energy_j=None)
    full, dashed = round_line(ROUND), round_line(bare)
    assert [full.index(word) for word in ("loss", "up", "down", "not counted")] == [
        dashed.index(word) for word in ("loss", "up", "down", "not counted")
    ]


def test_an_abandoned_round_says_why() -> None:
    """Its reason stands on its line."""
    record = msgspec.structs.replace(ROUND, status="abandoned", reason="quorum_not_met")
    assert "quorum_not_met" in round_line(record)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.text(), REASONS, FIGURES, COUNTS, st.floats())
def test_a_round_line_is_one_printable_ascii_line(
    text: str,
    reasons: dict[str, int],
    figure: float | None,
    count: int,
    duration_s: float,
) -> None:
    """Whatever strangers wrote and whatever was measured."""
    line = round_line(
        RoundRecord(
            number=count,
            status=text,
            invited=count,
            accepted=count,
            accuracy=figure,
            loss=figure,
            uplink_bytes=count,
            downlink_bytes=count,
            energy_j=figure,
            duration_s=duration_s,
            reason=text,
            declined=reasons,
            not_counted=reasons,
        )
    )
    assert line.isascii()
    assert line.isprintable()


def test_a_summary_tells_what_a_user_wants_to_know() -> None:
    """Accuracy, bytes beside float32, updates and why not, the missing, incidents, energy."""
    assert summary_lines(RUN) == [
        "garden: digits, 1 of 1 rounds committed in 1 min 23 s",
        "  accuracy  91.0%, loss -",
        "  up        1 MB as int4; the same updates as float32: 8 MB, 8.00 times as much",
        "  down      2 MB as int8",
        "  updates   4 counted of 7 sent, 3 not counted: 2 stale_round, 1 too_late",
        "  declined  1 metered",
        "  missing   4 invited and never heard of again: shed (3 times), porch",
        "  incidents shed: 2 bad_signature, 1 too_large",
        "  energy    40 J, 10 J per counted update (an estimate from device profiles)",
    ]


def test_a_summary_of_no_rounds_has_dashes_and_no_news() -> None:
    """Nothing is divided by nothing, and nothing unmeasured is shown as 0."""
    totals = msgspec.structs.replace(
        TOTALS,
        accuracy=None,
        uplink_bytes=0,
        downlink_bytes=0,
        uplink_bytes_float32=0,
        device_updates=0,
        wasted_updates=0,
        energy_j=None,
    )
    run = msgspec.structs.replace(RUN, rounds=(), devices=(), totals=totals)
    assert summary_lines(run)[1:] == [
        "  accuracy  -, loss -",
        "  up        0 B as int4",
        "  down      0 B as int8",
        "  updates   0 counted of 0 sent",
        "  energy    -",
    ]


def test_a_summary_is_bounded_by_no_fleet() -> None:
    """A thousand devices with incidents take a handful of lines; the rest are counted."""
    devices = tuple(
        DeviceRecord(f"d{index:04}", "pi-4", missing=1, incidents={"malformed": 1})
        for index in range(1000)
    )
    lines = summary_lines(msgspec.structs.replace(RUN, devices=devices))
    assert len(lines) < 25
    assert "  incidents and 992 more devices" in lines
    assert any(line.endswith("d0007 and 992 more") for line in lines)


def test_a_summary_lets_no_escape_sequence_through() -> None:
    """A device that is named after a terminal command is printed as text."""
    device = DeviceRecord("\x1b[2J\n\u202eevil\ud800", "pi-4", incidents={"\x07": 1})
    run = msgspec.structs.replace(RUN, federation="\x1b]0;x\x07", devices=(device,))
    for line in summary_lines(run):
        assert line.isascii()
        assert line.isprintable()


def test_privacy_and_faults_are_told_where_there_are_any() -> None:
    """Epsilon, and what was broken on purpose."""
    totals = msgspec.structs.replace(TOTALS, epsilon=3.2)
    lines = summary_lines(msgspec.structs.replace(RUN, totals=totals, faults=("kill the broker",)))
    assert lines[-2:] == ["  privacy   epsilon 3.20", "  fault     kill the broker"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5 * 10**21, "5e+03 EB"),
    ],
)
def test_bytes_have_three_digits_and_the_next_unit_in_time(count: int, text: str) -> None:
    """No 1000 kB, no 1e+03 B."""
    assert text == bytes_text(count)


def test_durations_carry_over() -> None:
    """59.6 s is a minute, and an hour has no 60 minutes."""
    assert [seconds_text(each) for each in (0.42, 59.4, 59.6, 185, 3599.6, 3720, math.nan)] == [
        "0.42 s",
        "59.4 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 00 min",
        "1 h 02 min",
        "-",
    ]


@pytest.mark.parametrize("figure", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_figure_is_a_dash(figure: float | None) -> None:
    """Neither None nor a division gone wrong is shown as a number."""
    assert (percent_text(figure), energy_text(figure)) == ("-", "-")


def test_importing_insight_loads_no_jinja2() -> None:
    """Records and text are for installs without the extra."""
    code = "import sys, insight; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
