"""What has been seen of each device, and the updates of a round that it is made from."""

from collections.abc import Mapping

import msgspec

from coordinator.participation import Heard, Past, utility_of
from coordinator.signals import RoundOpened
from coordinator.store._database import Database


class ParticipationTables(Database):
    """One row a device that was ever invited; written with the end of each round."""

    def participation(self) -> dict[str, Past]:
        """Every device's history."""
        return {
            row["device"]: Past(*tuple(row)[1:])
            for row in self._db.execute("SELECT * FROM participation")
        }

    def note_participation(self, changed: Mapping[str, Past]) -> None:
        """Write histories; whoever ends a round does so in the same transaction."""
        with self.transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO participation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(device, *msgspec.structs.astuple(past)) for device, past in changed.items()],
            )

    def heard_in(self, opened: RoundOpened) -> list[Heard]:
        """The receipted updates that a round has collected.

        A clock may have been set since it opened: none took longer than the round was to last.
        """
        longest_s = opened.deadline_at_s - opened.opened_at_s
        rows = self._db.execute(
            "SELECT u.device, u.receipted_at, u.reason, u.num_examples, u.metrics,"
            " COALESCE(i.invited_at, ?) AS invited_at FROM updates u LEFT JOIN invitations i"
            " ON i.round = u.round AND i.device = u.device"
            " WHERE u.collected_in = ? AND u.receipted_at IS NOT NULL ORDER BY u.update_id",
            (opened.opened_at_s, opened.round),
        )
        return [
            Heard(
                device=row["device"],
                after_s=min(max(row["receipted_at"] - row["invited_at"], 0.0), longest_s),
                reason=row["reason"] or "",
                utility=utility_of(
                    msgspec.msgpack.decode(row["metrics"]), row["num_examples"], opened.weight_cap
                ),
            )
            for row in rows
        ]

    def counted_by_round(self, since: int) -> dict[int, list[str]]:
        """Devices whose updates were counted, by round, from round `since` on."""
        found: dict[int, list[str]] = {}
        for row in self._db.execute(
            "SELECT collected_in AS round, device FROM updates"
            " WHERE collected_in >= ? AND counted = 1",
            (since,),
        ):
            found.setdefault(row["round"], []).append(row["device"])
        return found
