"""What the gateway must not lose: one SQLite file, WAL, synchronous=FULL, one writer.

Every public method that changes something is one transaction; when it returns, it is on disk. What
several of them write together goes into one `transaction()`. The rules that the tables carry,
rather than the code above them:

- `updates` has one row an update id: the ledger. `settled_at` is written once, by a statement that
  only touches rows without it, so an update can be decided only once.
- `spool` holds the payload of each receipted update until its round is closed; a payload and its
  ledger row appear together.
- `releases` is only added to: what an alias means is its last row, and who moved it stays known.
- `models` grows by one version at a time; the version, the settlements of its round and the round's
  end appear together, and so do what the strategy keeps (`strategy_memory`) and the strikes.
- `audit` only grows: who was struck, quarantined, let back and pardoned, when and why.
"""

from coordinator.store._database import DiskFullError, StoreError
from coordinator.store._flights import FlightTables
from coordinator.store._ledger import UpdateRow
from coordinator.store._models import ModelCommit
from coordinator.store._pages import ClassCounts, Pages, UpdatePage
from coordinator.store._participation import ParticipationTables
from coordinator.store._registry import ReleaseRow, VersionRow
from coordinator.store._retention import RetentionTables, RoundTotals
from coordinator.store._schema import SCHEMA_VERSION
from coordinator.store._standing import AuditRow, Standing, StandingTables
from coordinator.store._vetoes import VetoRow, VetoTables


class Store(Pages, FlightTables, ParticipationTables, RetentionTables, StandingTables, VetoTables):
    """The coordinator's file, with all its tables; see `Database` for how it is opened."""


__all__ = [
    "SCHEMA_VERSION",
    "AuditRow",
    "ClassCounts",
    "DiskFullError",
    "ModelCommit",
    "ReleaseRow",
    "RoundTotals",
    "Standing",
    "Store",
    "StoreError",
    "UpdatePage",
    "UpdateRow",
    "VersionRow",
    "VetoRow",
]
