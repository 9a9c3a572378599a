"""Releases that devices have found unfit for themselves: one row a device and version."""

from dataclasses import dataclass

import msgspec

from coordinator.store._database import Database


@dataclass(frozen=True, slots=True)
class VetoRow:
    """One device's word against a version; `vetoed_at` is when it came, unix seconds."""

    version: int
    device: str
    reason: str
    detail: str
    metrics: dict[str, float]
    vetoed_at: float


class VetoTables(Database):
    """Vetoes. At most one for each device and version that was ever released."""

    def add_veto(self, veto: VetoRow) -> bool:
        """Keep a veto; False when that device's word on that version is here already."""
        metrics = msgspec.msgpack.encode(veto.metrics)
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO vetoes VALUES (?, ?, ?, ?, ?, ?)",
            (veto.version, veto.device, veto.reason, veto.detail, metrics, veto.vetoed_at),
        )
        return cursor.rowcount > 0

    def has_vetoed(self, device: str, version: int) -> bool:
        """Whether a device has said that it does not use a version."""
        found = self._one(
            "SELECT 1 FROM vetoes WHERE version = ? AND device = ?", (version, device)
        )
        return found is not None

    def was_released(self, version: int) -> bool:
        """Whether an alias has ever meant a version."""
        found = self._one("SELECT 1 FROM releases WHERE version = ? LIMIT 1", (version,))
        return found is not None

    def vetoes_by_version(self) -> dict[int, dict[str, int]]:
        """Reason to count of each version that has vetoes."""
        counts: dict[int, dict[str, int]] = {}
        for row in self._db.execute(
            "SELECT version, reason, COUNT(*) AS count FROM vetoes GROUP BY version, reason"
            " ORDER BY version, reason"
        ):
            counts.setdefault(row["version"], {})[row["reason"]] = row["count"]
        return counts

    def vetoes(self, version: int, limit: int = -1) -> list[VetoRow]:
        """The vetoes of a version, the oldest first; at most `limit`, -1 for all."""
        rows = self._db.execute(
            "SELECT * FROM vetoes WHERE version = ? ORDER BY vetoed_at, device LIMIT ?",
            (version, limit),
        )
        return [
            VetoRow(
                row["version"],
                row["device"],
                row["reason"],
                row["detail"],
                msgspec.msgpack.decode(row["metrics"], type=dict[str, float]),
                row["vetoed_at"],
            )
            for row in rows
        ]
