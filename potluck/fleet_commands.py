"""`potluck demo` and `potluck fleet run`: a whole federation on one machine."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator import FederationConfig, load_config
from coordinator.config import Federation, Fleet, Rounds
from edge_sdk import load_task
from fleet import Fault, FleetError, FleetRun, StubCrypto, join, load_faults, run_live, run_virtual
from insight import RunRecord, report_html, summary_lines
from potluck.output import RoundProgress, add_json, print_json
from wire import Ed25519, PotluckError, Report
from wire.token import read_tokens

DEMO_DEVICES: Final = 30
DEMO_REPORT: Final = "potluck-demo.html"
DEMO_FAULTS: Final = (
    Fault(kind="vanish", devices=3, round=3),
    Fault(kind="garbage", devices=1),
    Fault(kind="low_battery", devices=2, round=2, for_s=4.0),
)


def demo_config(rounds: int) -> FederationConfig:
    """The federation of the demo: real digits, split by writers and unevenly by class."""
    return FederationConfig(
        federation=Federation(name="digits", task="pilots.digits:task"),
        rounds=Rounds(count=rounds, cohort=20, local_epochs=5, learning_rate=0.2, deadline_s=20.0),
        fleet=Fleet(partition="blocks+dirichlet:0.5"),
    )


def add_commands(commands: Any) -> None:
    """Add `demo` and `fleet`."""
    demo = commands.add_parser(
        "demo",
        help="a federation of 30 emulated devices on real data, over a real broker",
        description="Train a model on real handwritten digits with 30 emulated devices over a real"
        " MQTT broker; three devices vanish, one sends garbage, two run low.",
    )
    demo.add_argument("--rounds", type=_positive, default=40, help="rounds (default: 40)")
    demo.add_argument("--seed", type=_not_negative, default=1, help="of everything (default: 1)")
    demo.add_argument(
        "--report", type=Path, default=Path(DEMO_REPORT), help=f"HTML file (default: {DEMO_REPORT})"
    )
    add_json(demo)
    demo.set_defaults(run=run_demo)

    fleet = commands.add_parser("fleet", help="emulate many devices").add_subparsers(
        dest="fleet_command", required=True, metavar="COMMAND"
    )
    run = fleet.add_parser(
        "run",
        help="run a federation of emulated devices",
        description="Run a federation file with emulated devices and its coordinator; with --join"
        " only the devices.",
    )
    run.add_argument("federation", type=Path, metavar="FEDERATION.toml")
    run.add_argument("--devices", type=_positive, help="how many (default: those a round invites)")
    run.add_argument("--rounds", type=_positive, help="how many (default: the file's)")
    run.add_argument("--seed", type=_not_negative, default=0, help="of everything (default: 0)")
    run.add_argument(
        "--wire",
        choices=("mqtt", "virtual"),
        default="mqtt",
        help="mqtt: a real broker (default); virtual: virtual time, repeated exactly by its seed",
    )
    run.add_argument("--broker", help="a broker's URL (default: the file's)")
    run.add_argument("--faults", type=Path, metavar="FILE", help="what goes wrong on purpose")
    run.add_argument(
        "--crypto",
        choices=("real", "stub"),
        default="real",
        help="real: Ed25519 (default); stub: a keyed hash, for fleets too large to sign",
    )
    run.add_argument("--state-dir", type=Path, help="keep the coordinator's state here")
    run.add_argument("--report", type=Path, help="write an HTML report to this file")
    run.add_argument("--join", type=Path, metavar="TOKENS", help="join a running coordinator")
    add_json(run)
    run.set_defaults(run=run_fleet)


def run_demo(arguments: argparse.Namespace) -> int:
    """`potluck demo`."""
    config = demo_config(arguments.rounds)
    run = FleetRun(
        config=config,
        task=load_task(config.federation.task),
        count=DEMO_DEVICES,
        seed=arguments.seed,
        crypto=Ed25519(),
        faults=DEMO_FAULTS,
    )
    return _play(run, arguments)


def run_fleet(arguments: argparse.Namespace) -> int:
    """`potluck fleet run`."""
    virtual = arguments.wire == "virtual"
    if virtual and (arguments.broker or arguments.state_dir or arguments.join):
        raise FleetError(
            "--wire virtual has no broker and no state on disk: leave out --broker, --state-dir and"
            " --join"
        )
    config = load_config(arguments.federation)
    if arguments.rounds is not None:
        rounds = msgspec.structs.replace(config.rounds, count=arguments.rounds)
        config = msgspec.structs.replace(config, rounds=rounds)
    faults, events = ((), ()) if arguments.faults is None else load_faults(arguments.faults)
    run = FleetRun(
        config=config,
        task=load_task(config.federation.task, beside=arguments.federation.parent),
        count=arguments.devices or config.rounds.to_invite,
        seed=arguments.seed,
        crypto=Ed25519() if arguments.crypto == "real" else StubCrypto(),
        faults=faults,
        events=events,
        broker=arguments.broker,
        state_dir=arguments.state_dir,
    )
    if arguments.join is None:
        return _play(run, arguments, virtual=virtual)
    record = join(run, read_tokens(arguments.join))
    _print(record, arguments)
    return 0


def _play(run: FleetRun, arguments: argparse.Namespace, *, virtual: bool = False) -> int:
    _check_report(arguments.report)
    with RoundProgress(run.config.rounds.count) as progress:
        run.on_round = progress
        run.observe = _bad_news
        record = run_virtual(run) if virtual else run_live(run)
    _print(record, arguments)
    if not any(record.status == "committed" for record in record.rounds):
        print(f"potluck: no round was committed; {_what_to_do(record)}", file=sys.stderr)
        return 1
    return 0


def _what_to_do(record: RunRecord) -> str:
    if record.ended:
        return f"{record.ended}: raise [rounds] bytes_max"
    return "raise [rounds] deadline_s, or lower its quorum; the summary says what became of each"


def _bad_news(report: Report) -> None:
    """What a user wants to hear before the run is over."""
    if report.what in (
        "bad_input",
        "broker_down",
        "evaluation_failed",
        "round_abandoned",
        "training_failed",
    ):
        print(f"{report.what} {report.device} {report.detail}".replace("  ", " "), file=sys.stderr)


def _check_report(path: Path | None) -> None:
    """Before the run: afterwards it would be a pity."""
    if path is not None and not path.resolve().parent.is_dir():
        raise PotluckError(f"{path}: there is no such directory to write the report to")


def _print(record: RunRecord, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(record)
    else:
        print("\n".join(summary_lines(record)))
    if arguments.report is None:
        return
    try:
        arguments.report.write_text(report_html(record), encoding="utf-8")
    except OSError as error:
        raise PotluckError(f"{arguments.report}: {error.strerror or error}") from error
    if not arguments.json:
        print(f"report: {arguments.report}")


def _positive(text: str) -> int:
    return _integer(text, 1)


def _not_negative(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -math.inf  # type: ignore[assignment] # refused below
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value
