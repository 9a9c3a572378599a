"""`potluck coordinator ...` and `potluck enroll`: the operator's side."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from coordinator import (
    EMBEDDED_PORT,
    STORE_FILE,
    BackupSummary,
    Gateway,
    Store,
    ask_to_reload,
    broker_url,
    init_state,
    load_config,
    load_identity,
    make_backup,
    make_tokens,
    restore_backup,
    write_tokens,
)
from coordinator.broker import free_port
from coordinator.gateway import BROKER_URL
from edge_sdk import load_task
from potluck import standing_commands
from potluck.output import Reports, add_json, call_on_hangup, print_json, stop_on_signals, when
from wire import BrokerAddress, Ed25519, PotluckError, Report, SystemSecrets

TOKENS_MAX: Final = 100_000
TOKEN_DAYS_MAX: Final = 3_650.0
_DAY_S: Final = 86_400.0


def add_commands(commands: Any) -> None:
    """Add `coordinator` and `enroll`."""
    coordinator = commands.add_parser(
        "coordinator", help="set up and run a federation's coordinator"
    ).add_subparsers(dest="coordinator_command", required=True, metavar="COMMAND")

    init = coordinator.add_parser(
        "init",
        help="make a state directory: keys, an empty store, a port for the embedded broker",
        description="Make a coordinator's state directory: keys, an empty store, and a port for the"
        " embedded broker.",
    )
    init.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    init.add_argument("--broker", help="the URL at which devices will find the broker")
    add_json(init)
    init.set_defaults(run=run_init)

    run = coordinator.add_parser(
        "run",
        help="run a federation until its last round is closed",
        description="Run a federation: open rounds, collect updates, release models. What a"
        " coordinator that was killed had acknowledged is taken up again.",
    )
    run.add_argument("federation", type=Path, metavar="FEDERATION.toml")
    run.add_argument("--state-dir", type=Path, required=True, help="made by `coordinator init`")
    run.add_argument("--broker", help="a broker's URL (default: the file's)")
    run.add_argument("--ca", type=Path, metavar="FILE", help="CA of a broker that speaks TLS")
    run.add_argument(
        "--stay", action="store_true", help="keep serving releases after the last round"
    )
    run.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="serve the HTTP API and metrics there; port 0 takes a free one",
    )
    add_json(run, "JSON Lines")
    run.set_defaults(run=run_coordinator)

    standing_commands.add_commands(coordinator)
    _add_upkeep(coordinator)

    enroll = commands.add_parser(
        "enroll",
        help="make one-time tokens for devices",
        description="Write one-time enrolment tokens to a file, one a line; each is good for one"
        " device.",
    )
    enroll.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    enroll.add_argument("-n", "--number", type=int, default=1, help="how many (default: 1)")
    enroll.add_argument("-o", "--output", type=Path, required=True, help="the file, made anew")
    enroll.add_argument("--broker", help="the URL that the tokens name (default: the last run's)")
    enroll.add_argument("--days", type=float, default=7.0, help="how long they last (default: 7)")
    add_json(enroll)
    enroll.set_defaults(run=run_enroll)


def _add_upkeep(coordinator: Any) -> None:
    """Add `backup`, `restore` and `reload`."""
    backup = coordinator.add_parser(
        "backup",
        help="write a coordinator, running or not, to one file",
        description="Write a coordinator's keys and everything it knows to one new file, while it"
        " runs or not. Whoever has the file can be the coordinator.",
    )
    backup.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    backup.add_argument("-o", "--output", type=Path, required=True, help="the file, made anew")
    add_json(backup)
    backup.set_defaults(run=run_backup)

    restore = coordinator.add_parser(
        "restore",
        help="make a state directory from a backup",
        description="Make a state directory from a backup. Rounds and versions go on with numbers"
        " far above those that may have been used since.",
    )
    restore.add_argument("file", type=Path, metavar="FILE")
    restore.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    restore.add_argument(
        "--epoch",
        type=int,
        help="a number above the last restore's (default: the hours since 2026)",
    )
    add_json(restore)
    restore.set_defaults(run=run_restore)

    reload = coordinator.add_parser(
        "reload",
        help="let a running coordinator read its federation file again",
        description="Let a running coordinator read its federation file again, as SIGHUP does."
        " What has changed is in force from the next round on.",
    )
    reload.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    add_json(reload)
    reload.set_defaults(run=run_reload)


def run_backup(arguments: argparse.Namespace) -> int:
    """`potluck coordinator backup`."""
    made = make_backup(arguments.state_dir, arguments.output, time.time())
    if arguments.json:
        size = arguments.output.stat().st_size
        print_json({"file": str(arguments.output), "bytes": size, **_summary(made)})
    else:
        print(
            f"{arguments.output}: {made.federation or 'not run yet'}, round {made.round}, version"
            f" {made.version}; it holds the signing key, so keep it like one"
        )
    return 0


def _summary(backup: BackupSummary) -> dict[str, Any]:
    return {
        "federation": backup.federation,
        "round": backup.round,
        "version": backup.version,
        "made_at": backup.made_at,
        "sha256": backup.sha256,
        "epoch": backup.epoch,
    }


def run_restore(arguments: argparse.Namespace) -> int:
    """`potluck coordinator restore`."""
    kept = restore_backup(arguments.file, arguments.state_dir, time.time(), arguments.epoch)
    if arguments.json:
        print_json({"state_dir": str(arguments.state_dir), **_summary(kept)})
    else:
        print(
            f"{arguments.state_dir}: {kept.federation or 'not run yet'} as of {when(kept.made_at)},"
            f" round {kept.round}, version {kept.version}; goes on in epoch {kept.epoch}"
        )
    return 0


def run_reload(arguments: argparse.Namespace) -> int:
    """`potluck coordinator reload`."""
    ask_to_reload(arguments.state_dir)
    if arguments.json:
        print_json({"state_dir": str(arguments.state_dir), "taken": True})
    else:
        print(f"{arguments.state_dir}: the file is in force from the next round on")
    return 0


def run_init(arguments: argparse.Namespace) -> int:
    """`potluck coordinator init`."""
    if arguments.broker is not None:
        BrokerAddress.parse(arguments.broker)
    public_key = init_state(arguments.state_dir, SystemSecrets())
    store = Store(arguments.state_dir / STORE_FILE)
    try:
        store.put(EMBEDDED_PORT, str(free_port()).encode())
        if arguments.broker is not None:
            store.put(BROKER_URL, arguments.broker.encode())
        url = broker_url(store)
    finally:
        store.close()
    if arguments.json:
        state = {"state_dir": str(arguments.state_dir), "public_key": public_key.hex()}
        print_json({**state, "broker": url})
    else:
        print(f"{arguments.state_dir}: coordinator {public_key.hex()[:16]}, broker {url}")
        print(f"next: potluck enroll {arguments.state_dir} -n 10 -o tokens")
    return 0


def run_coordinator(arguments: argparse.Namespace) -> int:
    """`potluck coordinator run`."""
    stop = stop_on_signals()
    config = load_config(arguments.federation)
    task = load_task(config.federation.task, beside=arguments.federation.parent)
    observe = Reports(as_json=arguments.json)
    gateway = Gateway(
        config=config,
        task=task,
        state_dir=arguments.state_dir,
        crypto=Ed25519(),
        observe=observe,
        broker=arguments.broker,
        ca=arguments.ca,
        reread=lambda: load_config(arguments.federation),
    )
    http = None
    call_on_hangup(gateway.ask_to_reload)
    try:
        if arguments.http is not None:
            http = _serve_http(gateway, arguments.http, arguments.state_dir, observe)
        gateway.run(stop, stay=arguments.stay)
        summary = {
            "event": "stopped",
            "finished": gateway.coordinator.finished,
            "ended": gateway.coordinator.rounds.course.ended,
            "round": gateway.store.last_round(),
            "rounds": gateway.coordinator.config.rounds.count,
            "version": gateway.coordinator.models.version,
            "model_digest": gateway.coordinator.models.digest.hex(),
        }
    finally:
        if http is not None:
            http.stop()
        gateway.stop()
    if arguments.json:
        print_json(summary)
    else:
        state = "finished" if summary["finished"] else "stopped; run again to go on"
        if summary["ended"]:
            state = f"{summary['ended']}; raise [rounds] bytes_max to go on"
        print(
            f"{config.federation.name}: {state}: round {summary['round']} of {summary['rounds']},"
            f" model version {summary['version']}"
        )
    return 0


def _serve_http(
    gateway: Gateway, where: str, state_dir: Path, observe: Callable[[Report], None]
) -> Any:
    """The API on a thread of its own; what it needs is loaded now and not before."""
    try:
        from coordinator.http import HttpAddress, serve  # noqa: PLC0415 - an extra, 6 MB of memory
    except ImportError as error:
        raise PotluckError(
            f"--http needs {error.name}: pip install 'potluck[coordinator]'"
        ) from error
    return serve(gateway, HttpAddress.parse(where), state_dir, observe)


def run_enroll(arguments: argparse.Namespace) -> int:
    """`potluck enroll`."""
    if not 1 <= arguments.number <= TOKENS_MAX:
        raise PotluckError(f"-n {arguments.number}: make 1 to {TOKENS_MAX} tokens at a time")
    if not 0.0 < arguments.days <= TOKEN_DAYS_MAX:
        raise PotluckError(
            f"--days {arguments.days:g}: tokens last above 0 and at most {TOKEN_DAYS_MAX:g} days"
        )
    if arguments.output.exists():
        raise PotluckError(f"{arguments.output}: exists already; choose another file")
    identity = load_identity(arguments.state_dir, Ed25519())
    store = Store(arguments.state_dir / STORE_FILE)
    try:
        url = arguments.broker or broker_url(store)
        if url is None:
            raise PotluckError("no coordinator has run here yet: say where its broker is: --broker")
        tokens = make_tokens(
            store,
            identity,
            count=arguments.number,
            broker=url,
            secrets=SystemSecrets(),
            now_s=time.time(),
            lifetime_s=arguments.days * _DAY_S,
        )
        write_tokens(arguments.output, tokens)
    finally:
        store.close()
    if arguments.json:
        print_json({"tokens": len(tokens), "file": str(arguments.output), "broker": url})
    else:
        print(f"{arguments.output}: {len(tokens)} tokens for {url}, one a line, one a device")
    return 0
