"""What is let go of: deltas of old versions, old lines of the ledger, the smallest incidents.

Each method deletes a few rows in one transaction and says how many, so that whoever calls it stops
in time. None of them touches a round that is open.
"""

from typing import Final

import msgspec

from coordinator.store._ledger import LedgerTables, UpdateRow

# A round's ids are a hash each; eight bytes of it tell its updates apart.
_ID_BYTES: Final = 8
# Devices may still be told about these rounds.
_ROUNDS_KEPT: Final = 3


class RoundTotals(msgspec.Struct, frozen=True):
    """A round without its lines: how many updates, and the beginnings of the ids that counted."""

    counted: int
    not_counted: int
    weight: int
    num_examples: int
    payload_bytes: int
    counted_ids: bytes

    def counts(self, update_id: bytes) -> bool:
        """Whether an update of this round was counted."""
        start = update_id[:_ID_BYTES]
        starts = (
            self.counted_ids[at : at + _ID_BYTES]
            for at in range(0, len(self.counted_ids), _ID_BYTES)
        )
        return any(start == other for other in starts)


class RetentionTables(LedgerTables):
    """Deletes, a few rows at a time."""

    def drop_deltas(self, latest: int, keep: int, at_once: int) -> int:
        """Let go of the deltas that led to all but the last `keep` versions.

        A version's row stays, with its digest and its round; a device that is further behind gets
        a snapshot.
        """
        return self._db.execute(
            "UPDATE models SET delta = x'' WHERE version IN (SELECT version FROM models"
            " WHERE version <= ? AND length(delta) > 0 ORDER BY version LIMIT ?)",
            (latest - keep, at_once),
        ).rowcount

    def drop_lines(self, before_s: float, at_once: int) -> int:
        """Delete lines of the oldest closed round that was settled before then; totals stay.

        A round goes as a whole, unless it has more than `at_once` lines: its totals are written
        first, with its first lines. Its lines are those of the devices that it invited, as devices
        name the round when they ask again; where rounds are asynchronous a later round may have
        collected them, and may not have decided them yet.
        """
        row = self._one(
            "SELECT round FROM rounds WHERE status != 'open' AND closed_at < ?"
            " AND round <= (SELECT MAX(round) FROM rounds) - ?"
            " AND EXISTS (SELECT 1 FROM updates WHERE updates.round = rounds.round)"
            " AND NOT EXISTS (SELECT 1 FROM updates WHERE updates.round = rounds.round"
            " AND (settled_at IS NULL OR settled_at >= ?"
            " OR collected_in > (SELECT MAX(round) FROM rounds) - ?))"
            " ORDER BY round LIMIT 1",
            (before_s, _ROUNDS_KEPT, before_s, _ROUNDS_KEPT),
        )
        if row is None:
            return 0
        number = row["round"]
        with self.transaction():
            if self.round_totals(number) is None:
                totals = msgspec.msgpack.encode(self._totals(number))
                self._db.execute("UPDATE rounds SET totals = ? WHERE round = ?", (totals, number))
            self._db.execute("DELETE FROM invitations WHERE round = ?", (number,))
            return self._db.execute(
                "DELETE FROM updates WHERE update_id IN"
                " (SELECT update_id FROM updates WHERE round = ? LIMIT ?)",
                (number, at_once),
            ).rowcount

    def drop_reports(self, before_s: float, latest: int, at_once: int) -> int:
        """Delete what devices measured of versions before then; their means stay."""
        return self._db.execute(
            "DELETE FROM evaluations WHERE rowid IN (SELECT rowid FROM evaluations"
            " WHERE evaluated_at < ? AND version <= ? LIMIT ?)",
            (before_s, latest - _ROUNDS_KEPT, at_once),
        ).rowcount

    def _totals(self, round_number: int) -> RoundTotals:
        rows = [
            UpdateRow.read(row)
            for row in self._db.execute(
                "SELECT * FROM updates WHERE round = ? ORDER BY update_id", (round_number,)
            )
        ]
        counted = [row for row in rows if row.counted]
        return RoundTotals(
            counted=len(counted),
            not_counted=len(rows) - len(counted),
            weight=sum(row.weight for row in counted),
            num_examples=sum(row.num_examples for row in counted),
            payload_bytes=sum(row.payload_bytes for row in rows),
            counted_ids=b"".join(row.update_id[:_ID_BYTES] for row in counted),
        )

    def round_totals(self, round_number: int) -> RoundTotals | None:
        """What is left of a round whose lines have been deleted, or are being deleted."""
        row = self.round(round_number)
        if row is None or row["totals"] is None:
            return None
        return msgspec.msgpack.decode(row["totals"], type=RoundTotals)

    def drop_incidents(self, keep: int) -> int:
        """Delete the counts of devices that are out, then the smallest, down to `keep` rows."""
        row = self._one("SELECT COUNT(*) AS rows FROM incidents")
        extra = (0 if row is None else int(row["rows"])) - keep
        if extra <= 0:
            return 0
        return self._db.execute(
            "DELETE FROM incidents WHERE rowid IN (SELECT incidents.rowid FROM incidents"
            " LEFT JOIN devices USING (device)"
            " ORDER BY devices.revoked IS NULL, count LIMIT ?)",
            (extra,),
        ).rowcount
