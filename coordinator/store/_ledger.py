"""The ledger: rounds, the updates that came to them, and the spool of those not yet decided."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from coordinator.signals import RoundAbandoned, RoundOpened, UpdateSettled, UpdateStored
from coordinator.store._database import StoreError
from coordinator.store._models import ModelCommit
from coordinator.store._registry import RegistryTables

METRICS_SOURCES: Final = ("training", "devices", "test")


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One line of the ledger; times are unix seconds, None where it has not happened."""

    update_id: bytes
    device: str
    round: int
    base_version: int
    num_examples: int
    weight: int
    payload_bytes: int
    digest: bytes
    receipted_at: float | None
    settled_at: float | None
    counted: bool | None
    reason: str | None
    collected_in: int

    @classmethod
    def read(cls, row: sqlite3.Row) -> "UpdateRow":
        """From a row of `updates`."""
        return cls(
            update_id=row["update_id"],
            device=row["device"],
            round=row["round"],
            base_version=row["base_version"],
            num_examples=row["num_examples"],
            weight=row["weight"],
            payload_bytes=row["bytes"],
            digest=row["digest"],
            receipted_at=row["receipted_at"],
            settled_at=row["settled_at"],
            counted=None if row["counted"] is None else bool(row["counted"]),
            reason=row["reason"],
            collected_in=row["collected_in"],
        )


class LedgerTables(RegistryTables):
    """Rounds, updates, spool; closing a round writes its model too."""

    def open_round(self, opened: RoundOpened) -> None:
        """Write a round that begins."""
        self._db.execute(
            "INSERT INTO rounds (round, record, opened_at) VALUES (?, ?, ?)",
            (opened.round, msgspec.msgpack.encode(opened), opened.opened_at_s),
        )

    def change_open_round(self, opened: RoundOpened) -> None:
        """Write anew what an open round goes by."""
        self._db.execute(
            "UPDATE rounds SET record = ? WHERE round = ? AND status = 'open'",
            (msgspec.msgpack.encode(opened), opened.round),
        )

    def round_opened(self, round_number: int) -> RoundOpened | None:
        """What a round began with, and whom it has invited since."""
        row = self._one("SELECT record FROM rounds WHERE round = ?", (round_number,))
        return None if row is None else self._with_invited(row["record"])

    def _with_invited(self, record: bytes) -> RoundOpened:
        opened = msgspec.msgpack.decode(record, type=RoundOpened)
        more = self._db.execute(
            "SELECT device, check_in FROM invitations WHERE round = ? ORDER BY invited_at, rowid",
            (opened.round,),
        )
        invited = opened.invited | {row["device"]: row["check_in"] for row in more}
        return msgspec.structs.replace(opened, invited=invited)

    def unfinished_round(self) -> tuple[RoundOpened, tuple[UpdateStored, ...]] | None:
        """The open round, if there is one, and its receipted updates that are not settled."""
        row = self._one("SELECT record FROM rounds WHERE status = 'open'")
        if row is None:
            return None
        opened = self._with_invited(row["record"])
        rows = self._db.execute(
            "SELECT * FROM updates WHERE collected_in = ? AND receipted_at IS NOT NULL"
            " AND settled_at IS NULL ORDER BY update_id",
            (opened.round,),
        )
        stored = tuple(
            UpdateStored(
                update_id=row["update_id"],
                device=row["device"],
                round=row["round"],
                base_version=row["base_version"],
                num_examples=row["num_examples"],
                weight=row["weight"],
                payload_bytes=row["bytes"],
                payload_digest=row["digest"],
                metrics=msgspec.msgpack.decode(row["metrics"]),
                receipted_at_s=row["receipted_at"],
                collected_in=row["collected_in"],
            )
            for row in rows
        )
        return opened, stored

    def store_update(self, update: UpdateStored, payload: bytes) -> None:
        """Write a payload and its ledger line: from here on it is receipted."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO updates (update_id, device, round, base_version, num_examples,"
                " weight, bytes, digest, metrics, receipted_at, collected_in)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    update.update_id,
                    update.device,
                    update.round,
                    update.base_version,
                    update.num_examples,
                    update.weight,
                    update.payload_bytes,
                    update.payload_digest,
                    msgspec.msgpack.encode(update.metrics),
                    update.receipted_at_s,
                    update.collected_in or update.round,
                ),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO spool VALUES (?, ?)", (update.update_id, payload)
            )

    def refuse_update(self, update: UpdateStored, reason: str, now_s: float) -> None:
        """Write the ledger line of an update that is settled without ever being receipted."""
        self._db.execute(
            "INSERT OR IGNORE INTO updates (update_id, device, round, base_version, num_examples,"
            " weight, bytes, digest, metrics, settled_at, counted, reason, collected_in)"
            " VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, 0, ?, ?)",
            (
                update.update_id,
                update.device,
                update.round,
                update.base_version,
                update.num_examples,
                update.payload_bytes,
                update.payload_digest,
                msgspec.msgpack.encode(update.metrics),
                now_s,
                reason,
                update.collected_in or update.round,
            ),
        )

    def settle(self, settled: UpdateSettled) -> None:
        """Decide an update before its round closes: it is not counted."""
        with self.transaction():
            self._settle(settled.update_id, settled.settled_at_s, settled.reason, counted=False)
            self._db.execute("DELETE FROM spool WHERE update_id = ?", (settled.update_id,))

    def _settle(self, update_id: bytes, now_s: float, reason: str, *, counted: bool) -> None:
        self._db.execute(
            "UPDATE updates SET settled_at = ?, counted = ?, reason = ?"
            " WHERE update_id = ? AND settled_at IS NULL",
            (now_s, int(counted), reason, update_id),
        )

    def _close_round(self, round_number: int, reason: str, now_s: float) -> None:
        """Settle what nobody has decided, and empty the round's spool."""
        self._db.execute(
            "UPDATE updates SET settled_at = ?, counted = 0, reason = ?"
            " WHERE collected_in = ? AND settled_at IS NULL",
            (now_s, reason, round_number),
        )
        self._db.execute(
            "DELETE FROM spool WHERE update_id IN"
            " (SELECT update_id FROM updates WHERE collected_in = ?)",
            (round_number,),
        )

    def abandon_round(self, abandoned: RoundAbandoned) -> None:
        """End a round without a model."""
        with self.transaction():
            self._close_round(abandoned.round, "round_abandoned", abandoned.closed_at_s)
            self._db.execute(
                "UPDATE rounds SET status = 'abandoned', closed_at = ?, reason = ? WHERE round = ?",
                (abandoned.closed_at_s, abandoned.reason, abandoned.round),
            )

    def commit_round(self, commit: ModelCommit, now_s: float, *, keep: frozenset[int]) -> None:
        """End a round with a model; `keep` are older versions whose tensors stay."""
        with self.transaction():
            for update_id in commit.accepted:
                self._settle(update_id, now_s, "counted", counted=True)
            self._close_round(commit.round, "round_closed", now_s)
            self.add_model(commit, now_s)
            self._db.execute(
                "UPDATE rounds SET status = 'committed', version = ?, closed_at = ?"
                " WHERE round = ?",
                (commit.version, now_s, commit.round),
            )
            self.keep_tensors(keep | {commit.version})

    def note_round(
        self,
        round_number: int,
        metrics: Mapping[str, float],
        source: str = "training",
        *,
        version: int | None = None,
    ) -> None:
        """Remember what was measured of a round's model, and of a version: by default its own.

        `source` says who measured it: "test" (the task's own data), "devices" (an evaluation round)
        or "training" (devices, of the base that they were about to train). A weaker word does not
        replace a stronger one.
        """
        with self.transaction():
            row = self._one(
                "SELECT version, metrics_source FROM rounds WHERE round = ?", (round_number,)
            )
            before = None if row is None else row["metrics_source"]
            if before is not None and METRICS_SOURCES.index(before) > METRICS_SOURCES.index(source):
                return
            self._db.execute(
                "UPDATE rounds SET metrics = ?, metrics_source = ? WHERE round = ?",
                (msgspec.msgpack.encode(dict(metrics)), source, round_number),
            )
            measured = row["version"] if version is None and row is not None else version
            if measured is not None:
                self.note_version(measured, metrics)

    def note_traffic(self, round_number: int, sent_bytes: int, received_bytes: int) -> None:
        """Remember the bytes that passed since the round before was over: (downlink, uplink)."""
        self._db.execute(
            "UPDATE rounds SET traffic = ? WHERE round = ?",
            (msgspec.msgpack.encode((sent_bytes, received_bytes)), round_number),
        )

    def traffic(self, round_number: int) -> tuple[int, int]:
        """The bytes that passed for a round, as far as they are known: (downlink, uplink)."""
        row = self._one("SELECT traffic FROM rounds WHERE round = ?", (round_number,))
        if row is None or row["traffic"] is None:
            return 0, 0
        return msgspec.msgpack.decode(row["traffic"], type=tuple[int, int])

    def closed_bytes(self) -> list[int]:
        """Bytes both ways of each round that is over, in order."""
        rows = self._db.execute(
            "SELECT traffic FROM rounds WHERE status != 'open' ORDER BY round"
        ).fetchall()
        return [
            0 if row["traffic"] is None else sum(msgspec.msgpack.decode(row["traffic"]))
            for row in rows
        ]

    def note_declines(self, round_number: int, declined: Mapping[str, str]) -> None:
        """Remember which invited devices said that they cannot: device -> reason."""
        self._db.execute(
            "UPDATE rounds SET declined = ? WHERE round = ?",
            (msgspec.msgpack.encode(dict(declined)), round_number),
        )

    def declines(self, round_number: int) -> dict[str, str]:
        """Which invited devices said that they cannot: device -> reason."""
        row = self._one("SELECT declined FROM rounds WHERE round = ?", (round_number,))
        if row is None or row["declined"] is None:
            return {}
        return msgspec.msgpack.decode(row["declined"], type=dict[str, str])

    def update(self, update_id: bytes) -> UpdateRow | None:
        """One line of the ledger."""
        row = self._one("SELECT * FROM updates WHERE update_id = ?", (update_id,))
        return None if row is None else UpdateRow.read(row)

    def updates(self, round_number: int | None = None) -> list[UpdateRow]:
        """The ledger, or what one round collected of it, in order of round and id."""
        where = "" if round_number is None else " WHERE collected_in = ?"
        parameters = () if round_number is None else (round_number,)
        sql = f"SELECT * FROM updates{where} ORDER BY round, update_id"  # noqa: S608 - two literals
        return [UpdateRow.read(row) for row in self._db.execute(sql, parameters)]

    def update_metrics(self, round_number: int) -> list[tuple[int, dict[str, float]]]:
        """(num_examples, metrics) of the counted updates of devices that the round invited."""
        rows = self._db.execute(
            "SELECT num_examples, metrics FROM updates WHERE round = ? AND counted = 1"
            " ORDER BY update_id",
            (round_number,),
        )
        return [(row["num_examples"], msgspec.msgpack.decode(row["metrics"])) for row in rows]

    def payload(self, update_id: bytes) -> bytes:
        """A spooled payload.

        Raises:
            StoreError: it is not there, which a receipted open update's always is.
        """
        row = self._one("SELECT payload FROM spool WHERE update_id = ?", (update_id,))
        if row is None:
            raise StoreError(f"{self.path}: the spool has lost update {update_id.hex()}")
        return bytes(row["payload"])

    def rounds(self, since: int = 1) -> list[sqlite3.Row]:
        """Every round from `since` on, in order."""
        return self._db.execute(
            "SELECT * FROM rounds WHERE round >= ? ORDER BY round", (since,)
        ).fetchall()

    def round(self, round_number: int) -> sqlite3.Row | None:
        """One round, or None when there has been none of that number."""
        return self._one("SELECT * FROM rounds WHERE round = ?", (round_number,))

    def last_round(self) -> int:
        """The number of the latest round, 0 before the first."""
        row = self._one("SELECT COALESCE(MAX(round), 0) AS last FROM rounds")
        return 0 if row is None else int(row["last"])
