"""What commands print: one JSON object or lines on stdout, progress on stderr."""

import argparse
import datetime as dt
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import msgspec

from insight import RoundRecord, round_line
from wire import Report


def add_json(parser: argparse.ArgumentParser, what: str = "one JSON object") -> None:
    """The option that every command has."""
    parser.add_argument("--json", action="store_true", help=f"print {what} on stdout")


def print_json(value: Any) -> None:
    """One JSON object, or one line of JSON Lines."""
    print(msgspec.json.encode(value).decode(), flush=True)


def when(unix_s: float | None) -> str:
    """A time for people."""
    if unix_s is None:
        return "-"
    return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


class Reports:
    """What happens while a command runs on: JSON Lines, or plain lines on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, report: Report) -> None:
        """Say it."""
        if self._as_json:
            event = {"event": report.what, "detail": report.detail}
            print_json({**event, "device": report.device} if report.device else event)
            return
        subject = f" {report.device}" if report.device else ""
        print(f"{report.what}{subject} {report.detail}".rstrip(), file=sys.stderr, flush=True)


class RoundProgress:
    """Rounds as they close: a bar where there is a terminal, else a line each; on stderr."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._progress: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            try:
                from rich.console import Console  # noqa: PLC0415 - an extra; lines serve without
                from rich.progress import Progress  # noqa: PLC0415 - as above
            except ImportError:
                return self
            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()
            self._bar = self._progress.add_task("waiting for devices", total=self._rounds)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, record: RoundRecord) -> None:
        """A round is closed."""
        if self._progress is None:
            print(round_line(record), file=sys.stderr, flush=True)
            return
        self._progress.console.print(round_line(record), highlight=False, markup=False)
        accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.3f}"
        self._progress.update(
            self._bar,
            completed=record.number,
            description=f"round {record.number} of {self._rounds}{accuracy}",
        )


def stop_on_signals() -> Callable[[], bool]:
    """A function that says whether SIGTERM or SIGINT has come; a second one ends the process."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return lambda: bool(came)


def call_on_hangup(action: Callable[[], None]) -> None:
    """Do something when SIGHUP comes, where there is such a signal."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None:
        signal.signal(hangup, lambda _number, _frame: action())
