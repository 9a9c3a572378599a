"""What is known of each version, and every move of an alias: history that is only added to."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from coordinator.store._models import ModelTables


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of the model.

    Attributes:
        parent: the version that it was made from; None for the first.
        counted: updates that went into it.
        weight: their weights, added.
        model_bytes: of its tensors as float32.
        delta_bytes: of what turns its parent into it, on the way down.
        metrics: what a measurement said, by name; empty while nobody has measured.
        whole: whether its tensors are in the store.
    """

    version: int
    round: int
    digest: bytes
    parent: int | None
    created_at: float
    counted: int
    weight: int
    model_bytes: int
    delta_bytes: int
    metrics: dict[str, float]
    whole: bool


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """One move of an alias.

    Attributes:
        actor: who moved it: "run_over", "operator" or "http".
        action: "promote" or "rollback".
        from_version: what it meant before; None the first time, or if nobody wrote it down.
    """

    sequence: int
    alias: str
    version: int
    digest: bytes
    released_at: float
    actor: str
    action: str
    from_version: int | None


class RegistryTables(ModelTables):
    """Versions with their lineage and figures; releases."""

    def note_version(self, version: int, metrics: Mapping[str, float]) -> None:
        """Remember what a measurement of a version said; a later one replaces it."""
        if metrics:
            self._db.execute(
                "UPDATE lineage SET metrics = ? WHERE version = ?",
                (msgspec.msgpack.encode(dict(metrics)), version),
            )

    def versions(self, *, after: int = -1, limit: int = -1) -> list[VersionRow]:
        """Versions above `after`, in order; at most `limit`, -1 for all."""
        rows = self._db.execute(
            f"{_VERSIONS} WHERE m.version > ? ORDER BY m.version LIMIT ?", (after, limit)
        )
        return [_version(row) for row in rows]

    def version(self, version: int) -> VersionRow | None:
        """One version, None when there is none."""
        row = self._one(f"{_VERSIONS} WHERE m.version = ?", (version,))
        return None if row is None else _version(row)

    def whole_versions(self) -> list[int]:
        """Versions whose tensors are in the store, in order."""
        rows = self._db.execute("SELECT version FROM tensors ORDER BY version")
        return [row["version"] for row in rows]

    def restore_tensors(self, version: int, served: bytes) -> None:
        """Put a version's tensors back that were no longer kept."""
        self._db.execute(
            "INSERT OR IGNORE INTO tensors VALUES (?, ?, ?)", (version, served, served)
        )

    def release(
        self,
        alias: str,
        version: int,
        digest: bytes,
        now_s: float,
        *,
        actor: str = "run_over",
        action: str = "promote",
    ) -> None:
        """Point an alias at a version; history is kept."""
        self._db.execute(
            "INSERT INTO releases"
            " (alias, version, digest, released_at, actor, action, from_version) VALUES (?, ?, ?,"
            " ?, ?, ?, (SELECT version FROM releases WHERE alias = ? ORDER BY sequence DESC"
            " LIMIT 1))",
            (alias, version, digest, now_s, actor, action, alias),
        )

    def released(self, alias: str) -> sqlite3.Row | None:
        """What an alias means now."""
        return self._one(
            "SELECT * FROM releases WHERE alias = ? ORDER BY sequence DESC LIMIT 1", (alias,)
        )

    def releases(self, *, after: int = 0, limit: int = -1) -> list[ReleaseRow]:
        """Releases with a sequence above `after`, in order; at most `limit`, -1 for all."""
        rows = self._db.execute(
            "SELECT * FROM releases WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit)
        )
        return [ReleaseRow(**row) for row in rows]

    def last_release(self) -> int:
        """The latest release's sequence, 0 before the first."""
        row = self._one("SELECT COALESCE(MAX(sequence), 0) AS last FROM releases")
        return 0 if row is None else int(row["last"])


_VERSIONS: Final = (
    "SELECT m.version, m.round, m.digest, m.created_at, LENGTH(m.delta) AS delta_bytes, l.parent,"
    " COALESCE(l.counted, 0) AS counted, COALESCE(l.weight, 0) AS weight,"
    " COALESCE(l.bytes, 0) AS model_bytes, l.metrics, t.version IS NOT NULL AS whole"
    " FROM models m LEFT JOIN lineage l USING (version) LEFT JOIN tensors t USING (version)"
)


def _version(row: sqlite3.Row) -> VersionRow:
    metrics = row["metrics"]
    return VersionRow(
        version=row["version"],
        round=row["round"],
        digest=row["digest"],
        parent=row["parent"],
        created_at=row["created_at"],
        counted=row["counted"],
        weight=row["weight"],
        model_bytes=row["model_bytes"],
        delta_bytes=row["delta_bytes"],
        metrics={} if metrics is None else msgspec.msgpack.decode(metrics, type=dict[str, float]),
        whole=bool(row["whole"]),
    )
