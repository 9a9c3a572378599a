"""The model's versions, and what privacy they cost."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from coordinator.store._database import Database


@dataclass(frozen=True, slots=True)
class ModelCommit:
    """All that closing a round writes at once.

    `served` and `exact` are the whole model, as devices can rebuild it and as it was aggregated;
    `delta` is what turns the previous version's `served` into this one's. `memory` is what the
    strategy keeps from this version to the next.
    """

    round: int
    version: int
    digest: bytes
    delta: bytes
    served: bytes
    exact: bytes
    accepted: tuple[bytes, ...]
    memory: bytes = b""


class ModelTables(Database):
    """Versions, whole tensors of some of them, privacy spends."""

    def add_model(self, commit: ModelCommit, now_s: float) -> None:
        """Write a version; whoever closes a round does so in the same transaction."""
        self._db.execute(
            "INSERT INTO models (version, round, digest, delta, created_at) VALUES (?, ?, ?, ?, ?)",
            (commit.version, commit.round, commit.digest, commit.delta, now_s),
        )
        self._db.execute(
            "INSERT INTO tensors VALUES (?, ?, ?)", (commit.version, commit.served, commit.exact)
        )
        self._add_lineage(commit)
        if commit.memory:
            self._db.execute(
                "INSERT INTO strategy_memory VALUES (?, ?)", (commit.version, commit.memory)
            )

    def _add_lineage(self, commit: ModelCommit) -> None:
        """Write what a version was made of: of the accepted updates, whatever round each was of."""
        weight = 0
        for update_id in commit.accepted:
            row = self._one("SELECT weight FROM updates WHERE update_id = ?", (update_id,))
            weight += 0 if row is None else int(row["weight"])
        # After a restore numbers go on far above: the one before it is not always one less.
        self._db.execute(
            "INSERT INTO lineage (version, parent, counted, weight, bytes) VALUES"
            " (?, (SELECT MAX(version) FROM models WHERE version < ?), ?, ?, ?)",
            (commit.version, commit.version, len(commit.accepted), weight, len(commit.served)),
        )

    def keep_tensors(self, versions: frozenset[int]) -> None:
        """Drop the whole tensors of every other version."""
        for (version,) in self._db.execute("SELECT version FROM tensors").fetchall():
            if version not in versions:
                self._db.execute("DELETE FROM tensors WHERE version = ?", (version,))
                self._db.execute("DELETE FROM strategy_memory WHERE version = ?", (version,))

    def add_first_model(self, commit: ModelCommit, now_s: float) -> None:
        """Write version 0: the task's initial tensors."""
        with self.transaction():
            self.add_model(commit, now_s)

    def latest_version(self) -> int | None:
        """The newest model version, None before the first start."""
        row = self._one("SELECT MAX(version) AS latest FROM models")
        latest: Any = None if row is None else row["latest"]
        return None if latest is None else int(latest)

    def model(self, version: int) -> sqlite3.Row | None:
        """A version's row: round, digest, delta."""
        return self._one("SELECT * FROM models WHERE version = ?", (version,))

    def tensors(self, version: int) -> tuple[bytes, bytes] | None:
        """A version's whole tensors, (served, exact), if they are kept."""
        row = self._one("SELECT served, exact FROM tensors WHERE version = ?", (version,))
        return None if row is None else (bytes(row["served"]), bytes(row["exact"]))

    def strategy_memory(self, version: int) -> bytes:
        """What the strategy has kept for whoever goes on from a version; empty for nothing."""
        row = self._one("SELECT memory FROM strategy_memory WHERE version = ?", (version,))
        return b"" if row is None else bytes(row["memory"])

    def privacy(self) -> list[sqlite3.Row]:
        """Every privacy spend, in order."""
        return self._db.execute("SELECT * FROM privacy ORDER BY sequence").fetchall()
