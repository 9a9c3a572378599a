"""`potluck doctor`: what this machine has, what it lacks, and what to do about it."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from coordinator import EmbeddedBroker
from coordinator.broker import mosquitto_path
from potluck.output import add_json, print_json
from wire.errors import PotluckError

_FREE_BYTES_MIN: Final = 200_000_000
_BASE: Final = ("numpy", "msgspec", "paho-mqtt", "zstandard", "psutil", "cryptography")
_EXTRAS: Final = (
    ("jinja2", "jinja2", "coordinator", "HTML reports"),
    ("rich", "rich", "coordinator", "live progress"),
    ("iotcore", "iotcore", "coordinator", "a broker where mosquitto is not installed"),
    ("sklearn", "scikit-learn", "pilots", "the demo's data"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `needed` says whether potluck can work without it."""

    name: str
    ok: bool
    needed: bool
    detail: str
    hint: str = ""


def add_commands(commands: Any) -> None:
    """Add `doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="check this machine",
        description="Check Python, packages, disk and broker; exit 0 when all that is needed is.",
    )
    add_json(doctor)
    doctor.set_defaults(run=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """`potluck doctor`."""
    checks = [
        _python(),
        *(_package(name) for name in _BASE),
        *(_extra(*extra) for extra in _EXTRAS),
        _sqlite(),
        _disk(),
        _mosquitto(),
        _broker(),
    ]
    healthy = all(check.ok for check in checks if check.needed)
    if arguments.json:
        rows = [
            {name: getattr(check, name) for name in ("name", "ok", "needed", "detail", "hint")}
            for check in checks
        ]
        print_json({"ok": healthy, "checks": rows})
    else:
        for check in checks:
            state = "ok  " if check.ok else "FAIL" if check.needed else "none"
            print(f"{state}  {check.name:14} {check.detail}")
            if check.hint and not check.ok:
                print(f"      {'':14} {check.hint}")
    return 0 if healthy else 1


def _python() -> Check:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, True, version, "install Python 3.11 or newer")  # noqa: FBT003 - a table of checks


def _package(name: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, True, "not installed", f"pip install {name}")  # noqa: FBT003 - as above
    return Check(name, True, True, version)  # noqa: FBT003 - as above


def _extra(module: str, package: str, extra: str, use: str) -> Check:
    if importlib.util.find_spec(module) is None:
        hint = f"pip install 'potluck[{extra}]'"
        return Check(package, False, False, f"not installed: {use}", hint)  # noqa: FBT003 - as above
    return Check(package, True, False, importlib.metadata.version(package))  # noqa: FBT003 - as above


def _sqlite() -> Check:
    ok = sqlite3.sqlite_version_info >= (3, 37)
    return Check("sqlite", ok, True, sqlite3.sqlite_version, "potluck needs SQLite 3.37 (STRICT)")  # noqa: FBT003 - as above


def _disk() -> Check:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    detail = f"{free / 1e9:.1f} GB free in {tempfile.gettempdir()}"
    return Check("disk", free >= _FREE_BYTES_MIN, True, detail, "free some space")  # noqa: FBT003 - as above


def _mosquitto() -> Check:
    path = mosquitto_path()
    hint = "apt install mosquitto, brew install mosquitto, or winget install mosquitto"
    return Check("mosquitto", path is not None, False, path or "not installed", hint)  # noqa: FBT003 - as above


def _broker() -> Check:
    """The proof: start one and stop it."""

    def start() -> str:
        with EmbeddedBroker() as broker:
            return f"{broker.kind} starts and answers"

    return _attempt("broker", start)


def _attempt(name: str, action: Callable[[], str]) -> Check:
    try:
        return Check(name, True, True, action())  # noqa: FBT003 - a table of checks
    except (PotluckError, OSError) as error:
        return Check(name, False, True, str(error), "install mosquitto")  # noqa: FBT003 - as above
