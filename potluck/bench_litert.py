"""`potluck bench litert`: how fast LiteRT trains through potluck, and how well in a federation."""

import argparse
import sys
import time
from typing import Any, Final

import msgspec

from potluck.output import add_json, print_json
from wire import PotluckError

PARTS: Final = ("speed", "accuracy", "lora")


def add_litert(bench: Any) -> None:
    """Add `litert`."""
    parser = bench.add_parser(
        "litert",
        help="training of .tflite files: speed beside others, accuracy in a federation",
        description="Train small models through LiteRTTrainer, the bare interpreter, NumPy and, if"
        " make setup-torch was run, PyTorch, taking turns; then the digits in a federation with"
        " LiteRT and with NumPy, three seeds each; then fine-tuning of a small transformer, whole"
        " and by adapters. About eight minutes on two cores.",
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="may be given again (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="few turns, few rounds, one seed")
    add_json(parser)
    parser.set_defaults(run=run_litert)


def run_litert(arguments: argparse.Namespace) -> int:
    """Run what was asked for, and print it."""
    try:
        from benchmarks import (  # noqa: PLC0415 - extras; NumPy reads its threads' number
            litert_lora,
            litert_speed,
        )
    except ImportError as error:
        raise PotluckError(
            f"{error}: pip install 'potluck[litert-author,fleet]', and run from the repository"
        ) from error
    began_s = time.monotonic()
    parts = arguments.part or PARTS
    made: dict[str, Any] = {}
    text: list[str] = []
    if "speed" in parts:
        print("speed", file=sys.stderr, flush=True)
        table = litert_speed.speed_table(quick=arguments.quick)
        made["speed"] = msgspec.to_builtins(table)
        text += litert_speed.lines(table)
    if "accuracy" in parts:
        print("accuracy", file=sys.stderr, flush=True)
        rows = litert_speed.accuracy_table(quick=arguments.quick)
        made["accuracy"] = [msgspec.to_builtins(row) for row in rows]
        text += litert_speed.accuracy_lines(rows)
    if "lora" in parts:
        print("lora", file=sys.stderr, flush=True)
        cases = litert_lora.lora_table(quick=arguments.quick)
        made["lora"] = [msgspec.to_builtins(case) for case in cases]
        text += litert_lora.lora_lines(cases)
    made["wall_s"] = time.monotonic() - began_s
    if arguments.json:
        print_json(made)
    else:
        print("\n".join(text))
    return 0
