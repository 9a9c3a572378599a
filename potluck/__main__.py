"""Entry point: `potluck COMMAND ...`, the same as `python -m potluck COMMAND ...`."""

import argparse
import importlib.metadata
import os
import sqlite3
import sys
from collections.abc import Sequence

from potluck import (
    bench_commands,
    codec_commands,
    coordinator_commands,
    device_commands,
    doctor,
    fleet_commands,
    ledger,
    model_commands,
)
from wire.errors import PotluckError

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; `docs/how-to/command-line.md` is checked against it."""
    parser = argparse.ArgumentParser(
        prog="potluck",
        description="Federated learning for small devices: train where the data lives, share only"
        " the seasoning.",
    )
    version = importlib.metadata.version("potluck")
    parser.add_argument("--version", action="version", version=f"potluck {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        *(fleet_commands, coordinator_commands, device_commands, ledger, model_commands),
        codec_commands,
        bench_commands,
        doctor,
    ):
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except PotluckError as error:
        print(f"potluck: {error}", file=sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; what is left must not raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        print(f"potluck: {where}{what}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("potluck: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
