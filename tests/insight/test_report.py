import html.parser
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insight import DeviceRecord, RoundRecord, RunRecord, Totals, report_html

VOID = {"meta", "br", "link", "img", "input", "hr", "base"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "action", "formaction", "poster", "data"}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img onerror='alert(1)'>",
    "</title></style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
)


class Page(html.parser.HTMLParser):
    """A page as a checker sees it: elements with attributes, text, and what was left open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.unclosed: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it, and expect its end."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """It must be the last that was opened."""
        assert tag == self.unclosed.pop()

    def handle_data(self, data: str) -> None:
        """Keep it."""
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, spaces made one."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a kind."""
        return [attrs for name, attrs in self.elements if name == tag]


def round_record(number: int, **changes: Any) -> RoundRecord:
    """A round of 24 invited devices in which something of everything happened."""
    fields: dict[str, Any] = {
        "number": number,
        "status": "abandoned" if number == 7 else "committed",
        "invited": 24,
        "accepted": 0 if number == 7 else 18,
        "accuracy": None if number == 7 else 0.95 - 0.5 / number,
        "loss": None if number == 7 else 2.0 / number,
        "uplink_bytes": 560_000 + number,
        "downlink_bytes": 3_000_000,
        "energy_j": 190.0 + number,
        "duration_s": 6.5,
        "reason": "quorum_not_met" if number == 7 else "",
        "declined": {"battery_low": 1, "metered": 1},
        "not_counted": {"round_abandoned": 20}
        if number == 7
        else {"too_late": 1, "stale_round": 1},
        "missing": 2,
    }
    return RoundRecord(**{**fields, **changes})


def totals(**changes: Any) -> Totals:
    """The totals of a run."""
    fields: dict[str, Any] = {
        "accuracy": 0.908,
        "uplink_bytes": 6_320_000,
        "downlink_bytes": 36_100_000,
        "uplink_bytes_float32": 108_000_000,
        "device_updates": 240,
        "wasted_updates": 42,
        "wall_s": 83.4,
        "updates_per_s": 2.9,
        "peak_rss_bytes": 191_000_000,
        "model_digest": "9f" * 32,
        "accepted_ids_digest": "3c" * 32,
        "trace_digest": None,
        "crypto": "cryptography",
        "engine": "numpy",
        "epsilon": None,
        "loss": 0.25,
        "energy_j": 2280.0,
    }
    return Totals(**{**fields, **changes})


def device_record(index: int) -> DeviceRecord:
    """A device that something of everything happened to; number 11 caused incidents."""
    return DeviceRecord(
        f"kitchen-{index:02}",
        ("pi-4", "phone-mid", "sensor-lte")[index % 3],
        invited=10,
        counted=7,
        not_counted={"too_late": 1},
        declined={"metered": 1},
        missing=1,
        uplink_bytes=230_000,
        downlink_bytes=1_200_000,
        energy_j=float(index),
        incidents={"bad_signature": 2} if index == 11 else {},
    )


def run_record(
    rounds: int | tuple[RoundRecord, ...] = 12,
    devices: int | tuple[DeviceRecord, ...] = 30,
    **changes: Any,
) -> RunRecord:
    """A run of so many rounds and devices, or of these."""
    if isinstance(rounds, int):
        rounds = tuple(round_record(number) for number in range(1, rounds + 1))
    if isinstance(devices, int):
        devices = tuple(device_record(index) for index in range(devices))
    fields: dict[str, Any] = {
        "federation": "neighbourhood",
        "task": "digits",
        "seed": 7,
        "parameters": 109_386,
        "uplink_codec": "int4+zstd",
        "downlink_codec": "int8+zstd",
        "rounds": rounds,
        "totals": totals(),
        "devices": devices,
        "faults": ("kill the coordinator after round 3",),
    }
    return RunRecord(**{**fields, **changes})


def test_the_page_has_the_key_figures() -> None:
    """What a reader looks for first."""
    text = Page(report_html(run_record())).text
    for part in ("neighbourhood", "90.8%", "6.32 MB", "17.1\u00d7 less than float32", "36.1 MB"):
        assert part in text
    for part in ("198", "42 sent, not counted", "2.28 kJ", "1 min 23 s", "kill the coordinator"):
        assert part in text


@pytest.mark.parametrize("rounds", [0, 1, 2, 12, 401])
def test_every_element_is_closed_and_every_id_is_one(rounds: int) -> None:
    """The page is well-formed, whatever the run's length, and says what its labels refer to."""
    page = Page(report_html(run_record(rounds, devices=3)))
    assert page.unclosed == []
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name, ids[0]) in ids


def test_the_page_asks_nothing_of_anybody() -> None:
    """No script, no link, no font, no image; nothing that a browser would fetch or run."""
    source = report_html(run_record())
    assert "http" not in source
    assert "src=" not in source
    assert "url(" not in source
    assert "@import" not in source
    page = Page(source)
    for tag in ("script", "link", "img", "iframe", "object", "embed", "base", "use", "image", "a"):
        assert page.all(tag) == []
    for _, attrs in page.elements:
        assert not REFERENCES & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_text_is_text(name: str) -> None:
    """Names, classes and reasons of devices add no element and no attribute to the page."""

    def elements(word: str) -> list[tuple[str, list[str]]]:
        device = DeviceRecord(word, word, 1, 0, {word: 1}, {word: 1}, incidents={word: 1})
        record = round_record(
            1, status=word, reason=word, declined={word: 1}, not_counted={word: 1}
        )
        run = run_record(
            federation=word,
            task=word,
            uplink_codec=word,
            rounds=(record,),
            devices=(device,),
            totals=totals(engine=word, crypto=word),
            faults=(word,),
        )
        page = Page(report_html(run))
        assert word in page.text
        return [(tag, sorted(attrs)) for tag, attrs in page.elements]

    assert elements("harmless") == elements(name)


def test_what_cannot_be_shown_is_replaced() -> None:
    """Controls, direction marks and half surrogates would spoil the page or its encoding."""
    device = DeviceRecord("a\ud800b\u202ec\x00d", "pi-4")
    source = report_html(run_record(1, devices=(device,))).encode()
    assert "a\ufffdb\ufffdc\ufffdd".encode() in source


def test_every_plot_has_a_name_and_words() -> None:
    """An SVG is either hidden from those who do not see it, or has label, title and description."""
    source = report_html(run_record())
    pictures = re.findall(r"<svg[^>]*>.*?</svg>", source, re.DOTALL)
    told = [each for each in pictures if 'role="img"' in each]
    assert len(told) == 5 + 3 + 3
    for picture in told:
        assert 'aria-label="' in picture
        assert "<title>" in picture
        assert "<desc" in picture
    assert all('aria-hidden="true"' in each for each in pictures if each not in told)


def test_a_run_of_no_rounds_says_so() -> None:
    """No axis, no figure: words."""
    run = run_record(
        0,
        devices=0,
        totals=totals(
            accuracy=None,
            loss=None,
            energy_j=None,
            uplink_bytes=0,
            downlink_bytes=0,
            uplink_bytes_float32=0,
            device_updates=0,
            wasted_updates=0,
        ),
    )
    page = Page(report_html(run))
    assert "No round was run." in page.text
    assert page.text.count("Nothing to plot.") == 5
    assert page.text.count("No devices were recorded.") == 2
    assert page.all("table") == []


def test_one_round_is_a_dot_and_a_bar() -> None:
    """A line needs two rounds; one is still seen."""
    source = report_html(run_record(1))
    assert 'class="dots counted" d="M500 ' in source
    assert 'class="fill counted" d="M470 ' in source


def test_figures_that_nobody_measured_are_dashes() -> None:
    """None and NaN are neither 0 nor words of Python."""
    rounds = tuple(
        round_record(number, accuracy=none, loss=none, energy_j=none)
        for number, none in enumerate((None, math.nan, math.inf), 1)
    )
    device = DeviceRecord("porch", "pi-4")
    page = Page(
        report_html(
            run_record(
                rounds=rounds,
                devices=(device,),
                totals=totals(accuracy=None, loss=math.nan, energy_j=None),
            )
        )
    )
    assert "\u2013" in page.texts
    assert page.text.count("Nothing to plot.") == 3
    for word in ("None", "nan", "inf "):
        assert word not in page.text


def test_a_gap_in_the_figures_is_a_gap_in_the_line() -> None:
    """Round 7 was abandoned: the line ends before it and begins after it, and it is shaded."""
    source = report_html(run_record())
    found = re.search(r'class="stroke counted" d="(M[^"]*)"', source[source.index('"area"') :])
    assert found
    assert found.group(1).count("M") == 2
    assert found.group(1).count("L") == 9
    assert 'class="wash" d="M500 0h83.33' in source


def test_a_thousand_rounds_have_few_labels_and_no_bands() -> None:
    """Labels are round numbers, and the page stays of a size that a browser opens at once."""
    source = report_html(run_record(1000))
    labels = re.findall(r'<div class="x" aria-hidden="true">(.*?)</div>', source)
    assert re.findall(r">(\d+)<", labels[0]) == [str(each) for each in range(100, 1001, 100)]
    assert 'class="bands"' not in source
    assert len(source) < 1_500_000


def test_devices_with_incidents_come_first_and_the_rest_are_bounded() -> None:
    """The reader sees trouble first; a fleet of thousands does not make a page of megabytes."""
    page = Page(report_html(run_record(1, devices=1200)))
    names = [text for text in page.texts if text.startswith("kitchen-")]
    assert names[0] == "kitchen-11"
    assert len(names) == 500
    assert "700 more devices had less to tell" in page.text


def test_reasons_beyond_the_shades_share_one() -> None:
    """A device that invents reasons does not fill the legend."""
    record = round_record(1, not_counted={f"reason_{index}": 10 - index for index in range(9)})
    page = Page(report_html(run_record(rounds=(record,))))
    assert "not counted: reason 3" in page.texts
    assert "not counted: reason 4" not in page.texts
    assert "not counted: other reasons" in page.texts


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(), st.none() | st.floats(min_value=0), st.integers(0, 10**12)
        ),
        max_size=4,
    )
)
def test_any_figures_can_be_plotted(rows: list[tuple[float | None, float | None, int]]) -> None:
    """Diverged, tiny, equal and absent figures make a page, without nan or inf in a path."""
    rounds = tuple(
        round_record(
            number,
            accuracy=figure,
            loss=figure,
            energy_j=energy_j,
            uplink_bytes=count,
            downlink_bytes=count,
            invited=count,
            missing=count,
        )
        for number, (figure, energy_j, count) in enumerate(rows, 1)
    )
    page = Page(report_html(run_record(rounds=rounds, devices=2)))
    for path in page.all("path"):
        assert re.fullmatch(r"[MLHVhz0-9. -]*", path["d"] or "")


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_opens_the_page(tmp_path: Path) -> None:
    """Headless Chromium draws it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here")
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(report_html(run_record()), encoding="utf-8")
    subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            "--window-size=1200,1600",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    head = picture.read_bytes()
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(head) > 20_000
