"""The ledger: rounds, the updates that came to them, and the spool of those not yet decided."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from coordinator.signals import RoundAbandoned, RoundOpened, UpdateSettled, UpdateStored
from coordinator.store._database import StoreError
from coordinator.store._models import ModelCommit, ModelTables


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
        )


class LedgerTables(ModelTables):
    """Rounds, updates, spool; closing a round writes its model too."""

    def open_round(self, opened: RoundOpened) -> None:
        """Write a round that begins."""
        self._db.execute(
            "INSERT INTO rounds (round, record, opened_at) VALUES (?, ?, ?)",
            (opened.round, msgspec.msgpack.encode(opened), opened.opened_at_s),
        )

    def round_opened(self, round_number: int) -> RoundOpened | None:
        """What a round began with."""
        row = self._one("SELECT record FROM rounds WHERE round = ?", (round_number,))
        return None if row is None else msgspec.msgpack.decode(row["record"], type=RoundOpened)

    def unfinished_round(self) -> tuple[RoundOpened, tuple[UpdateStored, ...]] | None:
        """The open round, if there is one, and its receipted updates that are not settled."""
        row = self._one("SELECT record FROM rounds WHERE status = 'open'")
        if row is None:
            return None
        opened = msgspec.msgpack.decode(row["record"], type=RoundOpened)
        rows = self._db.execute(
            "SELECT * FROM updates WHERE round = ? AND receipted_at IS NOT NULL"
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
            )
            for row in rows
        )
        return opened, stored

    def store_update(self, update: UpdateStored, payload: bytes) -> None:
        """Write a payload and its ledger line: from here on it is receipted."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO updates (update_id, device, round, base_version, num_examples,"
                " weight, bytes, digest, metrics, receipted_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                ),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO spool VALUES (?, ?)", (update.update_id, payload)
            )

    def refuse_update(self, update: UpdateStored, reason: str, now_s: float) -> None:
        """Write the ledger line of an update that is settled without ever being receipted."""
        self._db.execute(
            "INSERT OR IGNORE INTO updates (update_id, device, round, base_version, num_examples,"
            " weight, bytes, digest, metrics, settled_at, counted, reason)"
            " VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, 0, ?)",
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
            " WHERE round = ? AND settled_at IS NULL",
            (now_s, reason, round_number),
        )
        self._db.execute(
            "DELETE FROM spool WHERE update_id IN (SELECT update_id FROM updates WHERE round = ?)",
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

    def note_round(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Remember what an evaluation of the round's model said."""
        self._db.execute(
            "UPDATE rounds SET metrics = ? WHERE round = ?",
            (msgspec.msgpack.encode(dict(metrics)), round_number),
        )

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
        """The ledger, in order of round and id."""
        where = "" if round_number is None else " WHERE round = ?"
        parameters = () if round_number is None else (round_number,)
        sql = f"SELECT * FROM updates{where} ORDER BY round, update_id"  # noqa: S608 - two literals
        return [UpdateRow.read(row) for row in self._db.execute(sql, parameters)]

    def update_metrics(self, round_number: int) -> list[tuple[int, dict[str, float]]]:
        """(num_examples, metrics) of the round's counted updates."""
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
