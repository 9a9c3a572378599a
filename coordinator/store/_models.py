"""The model's versions, and what was released of them."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from coordinator.store._database import Database


@dataclass(frozen=True, slots=True)
class ModelCommit:
    """All that closing a round writes at once.

    `served` and `exact` are the whole model, as devices can rebuild it and as it was aggregated;
    `delta` is what turns the previous version's `served` into this one's.
    """

    round: int
    version: int
    digest: bytes
    delta: bytes
    served: bytes
    exact: bytes
    accepted: tuple[bytes, ...]


class ModelTables(Database):
    """Versions, whole tensors of some of them, releases, privacy spends."""

    def add_model(self, commit: ModelCommit, now_s: float) -> None:
        """Write a version; whoever closes a round does so in the same transaction."""
        self._db.execute(
            "INSERT INTO models VALUES (?, ?, ?, ?, ?)",
            (commit.version, commit.round, commit.digest, commit.delta, now_s),
        )
        self._db.execute(
            "INSERT INTO tensors VALUES (?, ?, ?)", (commit.version, commit.served, commit.exact)
        )

    def keep_tensors(self, versions: frozenset[int]) -> None:
        """Drop the whole tensors of every other version."""
        for (version,) in self._db.execute("SELECT version FROM tensors").fetchall():
            if version not in versions:
                self._db.execute("DELETE FROM tensors WHERE version = ?", (version,))

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

    def release(self, alias: str, version: int, digest: bytes, now_s: float) -> None:
        """Point an alias at a version; history is kept."""
        self._db.execute(
            "INSERT INTO releases (alias, version, digest, released_at) VALUES (?, ?, ?, ?)",
            (alias, version, digest, now_s),
        )

    def released(self, alias: str) -> sqlite3.Row | None:
        """What an alias means now."""
        return self._one(
            "SELECT * FROM releases WHERE alias = ? ORDER BY sequence DESC LIMIT 1", (alias,)
        )

    def released_versions(self) -> frozenset[int]:
        """Every version that an alias has meant: rolling back needs its tensors."""
        rows = self._db.execute("SELECT DISTINCT version FROM releases")
        return frozenset(row["version"] for row in rows)

    def releases(self) -> list[sqlite3.Row]:
        """Every release, in order."""
        return self._db.execute("SELECT * FROM releases ORDER BY sequence").fetchall()

    def privacy(self) -> list[sqlite3.Row]:
        """Every privacy spend, in order."""
        return self._db.execute("SELECT * FROM privacy ORDER BY sequence").fetchall()
