"""Who is at work for a buffer, and what devices said of the models that they evaluated."""

import sqlite3

from coordinator.signals import Flight, FlightEnded, RoundInvited
from coordinator.store._database import Database


class FlightTables(Database):
    """Invitations of asynchronous rounds, which come one by one; reports of evaluations."""

    def note_invited(self, invited: RoundInvited) -> None:
        """Write invitations; one that is repeated begins anew."""
        with self.transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO invitations VALUES (?, ?, ?, ?, ?, NULL)",
                [
                    (invited.round, device, check_in, invited.invited_at_s, invited.deadline_at_s)
                    for device, check_in in invited.invited.items()
                ],
            )

    def end_flight(self, ended: FlightEnded) -> None:
        """Nothing will come of an invitation."""
        self._db.execute(
            "UPDATE invitations SET ended = ? WHERE round = ? AND device = ?",
            (ended.reason, ended.round, ended.device),
        )

    def flights(self, now_s: float) -> dict[str, Flight]:
        """Devices whose latest invitation may still come to something, by name."""
        rows = self._db.execute(
            "SELECT round, device, deadline_at FROM invitations WHERE ended IS NULL"
            " AND deadline_at > ? AND NOT EXISTS (SELECT 1 FROM updates WHERE"
            " updates.round = invitations.round AND updates.device = invitations.device)"
            " ORDER BY round",
            (now_s,),
        )
        return {row["device"]: Flight(row["round"], row["deadline_at"]) for row in rows}

    def invited_at(self, round_number: int) -> dict[str, float]:
        """When each device was last invited to a round, unix seconds."""
        rows = self._db.execute(
            "SELECT device, invited_at FROM invitations WHERE round = ?", (round_number,)
        )
        return {row["device"]: row["invited_at"] for row in rows}

    def devices_heard(self, round_number: int) -> set[str]:
        """Whose update for a round has a line in the ledger, whatever became of it."""
        rows = self._db.execute("SELECT device FROM updates WHERE round = ?", (round_number,))
        return {row["device"] for row in rows}

    def add_evaluation(
        self,
        version: int,
        device: str,
        *,
        loss: float,
        accuracy: float | None,
        num_examples: int,
        now_s: float,
    ) -> bool:
        """Write what a device measured of a version; False when it has said so before."""
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
            (version, device, loss, accuracy, num_examples, now_s),
        )
        return cursor.rowcount == 1

    def evaluations(self, version: int) -> list[sqlite3.Row]:
        """What devices measured of a version, in order of their names."""
        return self._db.execute(
            "SELECT * FROM evaluations WHERE version = ? ORDER BY device", (version,)
        ).fetchall()
