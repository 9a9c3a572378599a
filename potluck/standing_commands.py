"""`potluck coordinator audit | pardon`: who was kept out and why, and the way back."""

import argparse
import time
from pathlib import Path
from typing import Any

import msgspec

from coordinator import pardon
from potluck.output import add_json, print_json, when
from potluck.stores import opened_store
from wire import PotluckError


def add_commands(coordinator: Any) -> None:
    """Add `audit` and `pardon` to the commands of `coordinator`."""
    audit = coordinator.add_parser(
        "audit",
        help="devices whose updates stood out, and what became of them",
        description="Print a coordinator's audit trail, running or not: every strike against a"
        " device, every quarantine with its round, score and reason, every way back.",
    )
    audit.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    add_json(audit)
    audit.set_defaults(run=run_audit)

    back = coordinator.add_parser(
        "pardon",
        help="let a quarantined device back",
        description="Forget what speaks against a device. A coordinator that is running takes its"
        " word from the next check-in on, within the hour.",
    )
    back.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    back.add_argument("device", metavar="DEVICE", help="its name, as in `potluck ledger`")
    add_json(back)
    back.set_defaults(run=run_pardon)


def run_audit(arguments: argparse.Namespace) -> int:
    """`potluck coordinator audit`."""
    with opened_store(arguments.state_dir, read_only=True) as store:
        lines, quarantined = store.audit(), store.quarantined()
    if arguments.json:
        rows = [msgspec.to_builtins(line) for line in lines]
        out = [{"device": device, "until": until} for device, until in quarantined.items()]
        print_json({"audit": rows, "quarantined": out})
        return 0
    for line in lines:
        score = "" if line.score is None else f"  score {line.score:.3f}"
        print(
            f"{when(line.at)}  {line.device:16}  round {line.round:>4}  {line.what:11}"
            f"  {line.reason}{score}  strikes {line.strikes:.2f}"
        )
    for device, until in quarantined.items():
        print(f"quarantined {device} until {when(until)}")
    if not lines:
        print("nothing was remarkable yet")
    return 0


def run_pardon(arguments: argparse.Namespace) -> int:
    """`potluck coordinator pardon`."""
    with opened_store(arguments.state_dir, read_only=False) as store:
        if arguments.device not in store.devices():
            raise PotluckError(
                f"{arguments.device}: no such device; `potluck coordinator audit"
                f" {arguments.state_dir}` names those that were struck"
            )
        before = pardon(store, arguments.device, time.time())
    quarantined = before.quarantined_until is not None
    if arguments.json:
        print_json(
            {"device": arguments.device, "was_quarantined": quarantined, "strikes": before.strikes}
        )
    else:
        was = "was quarantined" if quarantined else f"had {before.strikes:.2f} strikes"
        print(f"{arguments.device}: pardoned; it {was}")
    return 0
