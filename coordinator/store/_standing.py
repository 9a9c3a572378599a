"""What a device's updates have earned it, and the trail of how it came to that."""

from dataclasses import dataclass

from coordinator.store._database import Database


@dataclass(frozen=True, slots=True)
class Standing:
    """How a device stands.

    Attributes:
        strikes: what speaks against it, 0 for nothing.
        quarantined_until: unix seconds, None when it is not kept out.
        probation: how many clean updates it still owes after a quarantine.
        quarantines: how often it has been kept out; a pardon starts anew.
    """

    strikes: float = 0.0
    quarantined_until: float | None = None
    probation: int = 0
    quarantines: int = 0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One line of the trail; `score` is None where there is none, `at` unix seconds."""

    device: str
    round: int
    what: str
    reason: str
    score: float | None
    strikes: float
    at: float


class StandingTables(Database):
    """Standings and their trail. A device without a row stands well."""

    def standing(self, device: str) -> Standing:
        """How a device stands; also what another process has just written."""
        row = self._one("SELECT * FROM standing WHERE device = ?", (device,))
        if row is None:
            return Standing()
        return Standing(
            row["strikes"], row["quarantined_until"], row["probation"], row["quarantines"]
        )

    def set_standing(self, device: str, standing: Standing, lines: tuple[AuditRow, ...]) -> None:
        """Write a device's standing, and why it is that, together."""
        with self.transaction():
            if standing == Standing():
                self._db.execute("DELETE FROM standing WHERE device = ?", (device,))
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?, ?)",
                    (
                        device,
                        standing.strikes,
                        standing.quarantined_until,
                        standing.probation,
                        standing.quarantines,
                    ),
                )
            for line in lines:
                self._db.execute(
                    "INSERT INTO audit (device, round, what, reason, score, strikes, at)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        line.device,
                        line.round,
                        line.what,
                        line.reason,
                        line.score,
                        line.strikes,
                        line.at,
                    ),
                )

    def move_quarantines(self, by_s: float) -> None:
        """Somebody has set the clock: a quarantine lasts as long as it was given for."""
        self._db.execute("UPDATE standing SET quarantined_until = quarantined_until + ?", (by_s,))

    def quarantined(self) -> dict[str, float]:
        """Who is kept out: device -> until when, unix seconds."""
        rows = self._db.execute(
            "SELECT device, quarantined_until FROM standing WHERE quarantined_until IS NOT NULL"
            " ORDER BY device"
        )
        return {row["device"]: row["quarantined_until"] for row in rows}

    def count_devices(self) -> tuple[int, int]:
        """How many are enrolled and not revoked, and how many of them are kept out."""
        row = self._one(
            "SELECT COUNT(*) AS enrolled, COUNT(quarantined_until) AS out FROM devices"
            " LEFT JOIN standing USING (device) WHERE revoked IS NULL"
        )
        return (0, 0) if row is None else (row["enrolled"], row["out"])

    def audit(self) -> list[AuditRow]:
        """The whole trail, in order."""
        return [
            AuditRow(
                row["device"],
                row["round"],
                row["what"],
                row["reason"],
                row["score"],
                row["strikes"],
                row["at"],
            )
            for row in self._db.execute("SELECT * FROM audit ORDER BY sequence")
        ]
