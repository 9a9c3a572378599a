"""What is looked at a page at a time, and counted in one go: for readers beside the coordinator.

Every page says where it begins and how long it may be. Nothing here writes.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from coordinator.store._devices import DeviceTables
from coordinator.store._ledger import LedgerTables, UpdateRow


@dataclass(frozen=True, slots=True)
class UpdatePage:
    """Lines of the ledger in the order in which they were written, and where the next page is."""

    rows: list[UpdateRow]
    last: int


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """How much the devices of one class took part."""

    device_class: str
    devices: int
    took_part: int
    counted: int
    not_counted: int
    weight: int


class Pages(DeviceTables, LedgerTables):
    """Questions that a page of an API asks."""

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several questions answered from one state of the file."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def page_of_rounds(self, after: int, limit: int) -> list[sqlite3.Row]:
        """Rounds above `after`, in order."""
        return self._db.execute(
            "SELECT * FROM rounds WHERE round > ? ORDER BY round LIMIT ?", (after, limit)
        ).fetchall()

    def settlements(self, first: int, last: int) -> list[sqlite3.Row]:
        """What rounds `first` to `last` collected: round, counted (NULL: open), reason, count."""
        return self._db.execute(
            "SELECT collected_in AS round, counted, reason, COUNT(*) AS count FROM updates"
            " WHERE collected_in BETWEEN ? AND ? GROUP BY collected_in, counted, reason",
            (first, last),
        ).fetchall()

    def invitations(self, first: int, last: int) -> dict[int, int]:
        """How many devices each of rounds `first` to `last` has invited since it opened."""
        rows = self._db.execute(
            "SELECT round, COUNT(*) AS count FROM invitations WHERE round BETWEEN ? AND ?"
            " GROUP BY round",
            (first, last),
        )
        return {row["round"]: row["count"] for row in rows}

    def page_of_updates(
        self, after: int, limit: int, *, round_number: int | None, device: str | None
    ) -> UpdatePage:
        """Lines after line `after`, of one round or device if that is asked for."""
        where = ["rowid > ?"]
        values: list[object] = [after]
        for column, value in (("round", round_number), ("device", device)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        sql = f"SELECT rowid AS line, * FROM updates WHERE {' AND '.join(where)}"  # noqa: S608 - column names of ours
        rows = self._db.execute(f"{sql} ORDER BY rowid LIMIT ?", (*values, limit)).fetchall()
        last = rows[-1]["line"] if rows else after
        return UpdatePage([UpdateRow.read(row) for row in rows], last)

    def page_of_devices(self, after: str, limit: int) -> list[sqlite3.Row]:
        """Devices with a name above `after`, in order, revoked ones too."""
        return self._db.execute(
            "SELECT * FROM devices WHERE device > ? ORDER BY device LIMIT ?", (after, limit)
        ).fetchall()

    def incidents_of(self, devices: Sequence[str]) -> list[sqlite3.Row]:
        """Counts of typed errors of these devices."""
        marks = ", ".join("?" * len(devices))
        return self._db.execute(
            f"SELECT * FROM incidents WHERE device IN ({marks}) ORDER BY device, reason",  # noqa: S608 - question marks
            tuple(devices),
        ).fetchall()

    def page_of_incidents(self, after: tuple[str, str], limit: int) -> list[sqlite3.Row]:
        """Counts of typed errors behind (device, reason), in order."""
        return self._db.execute(
            "SELECT * FROM incidents WHERE (device, reason) > (?, ?)"
            " ORDER BY device, reason LIMIT ?",
            (*after, limit),
        ).fetchall()

    def page_of_audit(self, after: int, limit: int) -> list[sqlite3.Row]:
        """Lines of the audit trail, if this version of the file keeps one."""
        if self._one("SELECT 1 FROM sqlite_master WHERE name = 'audit'") is None:
            return []
        return self._db.execute(
            "SELECT rowid AS line, * FROM audit WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (after, limit),
        ).fetchall()

    def counts_by_class(self) -> list[ClassCounts]:
        """How much each class of devices took part, over all rounds."""
        rows = self._db.execute(
            "SELECT d.device_class, COUNT(*) AS devices, COUNT(u.device) AS took_part,"
            " COALESCE(SUM(u.counted), 0) AS counted, COALESCE(SUM(u.lost), 0) AS not_counted,"
            " COALESCE(SUM(u.weight), 0) AS weight FROM devices d LEFT JOIN"
            " (SELECT device, SUM(counted) AS counted, SUM(1 - counted) AS lost,"
            " SUM(weight * counted) AS weight FROM updates WHERE counted IS NOT NULL"
            " GROUP BY device) u USING (device) GROUP BY d.device_class ORDER BY d.device_class"
        )
        return [ClassCounts(**row) for row in rows]

    def devices_by_class(self) -> list[sqlite3.Row]:
        """device_class, revoked (0 or 1), count."""
        return self._db.execute(
            "SELECT device_class, revoked IS NOT NULL AS revoked, COUNT(*) AS count FROM devices"
            " GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        ).fetchall()

    def rounds_by_status(self) -> dict[str, int]:
        """Status to how many rounds have it."""
        rows = self._db.execute("SELECT status, COUNT(*) AS count FROM rounds GROUP BY status")
        return {row["status"]: row["count"] for row in rows}

    def updates_by_reason(self) -> dict[str, tuple[int, int]]:
        """Reason to (updates, payload bytes); "open" for those that are not settled yet.

        Bytes are of those that were receipted: whatever else was refused weighs nothing.
        """
        rows = self._db.execute(
            "SELECT CASE WHEN counted IS NULL THEN 'open' ELSE COALESCE(reason, 'counted') END"
            " AS word, COUNT(*) AS count, SUM(bytes * (weight > 0)) AS bytes FROM updates"
            " GROUP BY counted, reason"
        )
        found: dict[str, tuple[int, int]] = {}
        for row in rows:
            count, size = found.get(row["word"], (0, 0))
            found[row["word"]] = (count + row["count"], size + row["bytes"])
        return found

    def incidents_by_reason(self) -> dict[str, int]:
        """Reason to how often it was counted, over all devices."""
        rows = self._db.execute("SELECT reason, SUM(count) AS count FROM incidents GROUP BY reason")
        return {row["reason"]: row["count"] for row in rows}

    def spooled(self) -> tuple[int, int]:
        """(payloads, bytes) that wait for their round to close."""
        row = self._one(
            "SELECT COUNT(*) AS count, COALESCE(SUM(LENGTH(payload)), 0) AS bytes FROM spool"
        )
        return (0, 0) if row is None else (int(row["count"]), int(row["bytes"]))

    def last_measured(self) -> dict[str, float]:
        """The figures of the newest version that anybody has measured."""
        row = self._one(
            "SELECT version FROM lineage WHERE metrics IS NOT NULL ORDER BY version DESC LIMIT 1"
        )
        version = None if row is None else self.version(row["version"])
        return {} if version is None else version.metrics
