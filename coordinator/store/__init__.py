"""What the gateway must not lose: one SQLite file, WAL, synchronous=FULL, one writer.

Every public method that changes something is one transaction; when it returns, it is on disk. What
several of them write together goes into one `transaction()`. The rules that the tables carry,
rather than the code above them:

- `updates` has one row an update id: the ledger. `settled_at` is written once, by a statement that
  only touches rows without it, so an update can be decided only once.
- `spool` holds the payload of each receipted update until its round is closed; a payload and its
  ledger row appear together.
- `models` grows by one version at a time; the version, the settlements of its round and the round's
  end appear together.
"""

from coordinator.store._database import StoreError
from coordinator.store._devices import DeviceTables
from coordinator.store._ledger import LedgerTables, UpdateRow
from coordinator.store._models import ModelCommit
from coordinator.store._participation import ParticipationTables


class Store(DeviceTables, LedgerTables, ParticipationTables):
    """The coordinator's file, with all its tables; see `Database` for how it is opened."""


__all__ = ["ModelCommit", "Store", "StoreError", "UpdateRow"]
