"""`potluck ledger`: every update, release and privacy spend, from the store and nothing else."""

import argparse
from pathlib import Path
from typing import Any

from coordinator import UpdateRow
from potluck.model_commands import release_record
from potluck.output import add_json, print_json, when
from potluck.stores import opened_store


def add_commands(commands: Any) -> None:
    """Add `ledger`."""
    ledger = commands.add_parser(
        "ledger",
        help="every update and what became of it",
        description="Print the ledger of a coordinator, running or not: every update, every"
        " release, every privacy spend.",
    )
    ledger.add_argument("state_dir", type=Path, metavar="STATE_DIR")
    add_json(ledger)
    ledger.set_defaults(run=run_ledger)


def run_ledger(arguments: argparse.Namespace) -> int:
    """`potluck ledger`."""
    with opened_store(arguments.state_dir, read_only=True) as store:
        ledger = {
            "updates": [_update(row) for row in store.updates()],
            "releases": [release_record(row) for row in store.releases()],
            "privacy": [
                {name: row[name] for name in ("round", "epsilon", "delta", "spent_at")}
                for row in store.privacy()
            ],
            "incidents": [
                {name: row[name] for name in ("device", "reason", "count", "last_detail")}
                for row in store.incidents()
            ],
        }
    if arguments.json:
        print_json(ledger)
    else:
        _print(ledger)
    return 0


def _update(row: UpdateRow) -> dict[str, Any]:
    settled = None if row.counted is None else "counted" if row.counted else "not_counted"
    return {
        "update_id": row.update_id.hex(),
        "device": row.device,
        "round": row.round,
        "collected_in": row.collected_in,
        "base_version": row.base_version,
        "num_examples": row.num_examples,
        "weight": row.weight,
        "bytes": row.payload_bytes,
        "digest": row.digest.hex(),
        "receipted_at": row.receipted_at,
        "settled": settled,
        "settled_at": row.settled_at,
        "reason": row.reason,
    }


def _print(ledger: dict[str, Any]) -> None:
    print(f"{'round':>5}  {'device':16}  {'update':16}  {'weight':>6}  {'bytes':>9}  settled")
    for row in ledger["updates"]:
        settled = row["reason"] or "open"
        print(
            f"{row['round']:>5}  {row['device']:16}  {row['update_id'][:16]}  {row['weight']:>6}"
            f"  {row['bytes']:>9}  {settled}"
        )
    for row in ledger["releases"]:
        print(f"release  {row['alias']} = version {row['version']}  {when(row['released_at'])}")
    for row in ledger["incidents"]:
        print(f"incident {row['device']:16}  {row['count']} x {row['reason']}")
    if not ledger["updates"]:
        print("no updates yet")
