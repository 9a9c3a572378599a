"""insight: tells people what happened.

Pure functions over records: what a run did, round by round and device by device, as a JSON object,
as lines for a terminal, as one self-contained HTML page. Nothing here reads a clock, a store or a
network; whoever ran the rounds fills the records.
"""

from insight.participation import ClassShare, participation_by_class
from insight.records import DeviceRecord, RoundRecord, RunRecord, Totals, ratio_to_float32
from insight.report import report_html
from insight.text import round_line, summary_lines

__all__ = [
    "ClassShare",
    "DeviceRecord",
    "RoundRecord",
    "RunRecord",
    "Totals",
    "participation_by_class",
    "ratio_to_float32",
    "report_html",
    "round_line",
    "summary_lines",
]
