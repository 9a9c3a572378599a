"""What the gateway must not lose: one SQLite file, WAL, synchronous=FULL, one writer.

Every public method that changes something is one transaction; when it returns, it is on disk. The
rules that the tables carry, rather than the code above them:

- `updates` has one row an update id: the ledger. `settled_at` is written once, by a statement that
  only touches rows without it, so an update can be decided only once.
- `spool` holds the payload of each receipted update until its round is closed; a payload and its
  ledger row appear together.
- `models` grows by one version at a time; the version, the settlements of its round and the round's
  end appear together.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coordinator._schema import SCHEMA, SCHEMA_VERSION
from coordinator.signals import RoundAbandoned, RoundOpened, UpdateSettled, UpdateStored
from wire.errors import PotluckError, TokenError


class StoreError(PotluckError):
    """The state directory cannot be used; the text says why and what to do."""


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


class Store:
    """The coordinator's file. One thread and one process write; anybody may read.

    Args:
        path: the SQLite file; made when absent.
        read_only: look, beside a running coordinator; nothing is made.
        connect: opens the database instead of `path`, for worlds whose disks fail on purpose.

    Raises:
        StoreError: it is not a store, or was written by a newer potluck.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        connect: Callable[[], sqlite3.Connection] | None = None,
    ) -> None:
        self.path = path
        try:
            if read_only:
                uri = f"{path.resolve().as_uri()}?mode=ro"
                self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            else:
                self._db = (
                    sqlite3.connect(path, isolation_level=None, timeout=10.0)
                    if connect is None
                    else connect()
                )
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys=ON")
            try:
                self._open_schema(read_only=read_only)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}; is it a coordinator's state?") from error

    def _open_schema(self, *, read_only: bool) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(f"{self.path}: written by a newer potluck (schema {version})")
        if version == 0:
            if read_only:
                raise StoreError(f"{self.path}: no coordinator has run here yet")
            with self._transaction():
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a COMMIT that fails for lack of space leaves it open
                self._db.execute("ROLLBACK")
            raise

    def _one(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, parameters).fetchone()
        return row

    # -- meta --------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """A value of the key-value table."""
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else bytes(row["value"])

    def put(self, key: str, value: bytes) -> None:
        """Set a value of the key-value table."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- devices and tokens ------------------------------------------------------------------

    def add_tokens(self, tokens: Mapping[str, bytes], expires_at: float) -> None:
        """Remember one-time tokens: id -> secret."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO tokens (token_id, secret, expires_at) VALUES (?, ?, ?)",
                [(token_id, secret, expires_at) for token_id, secret in tokens.items()],
            )

    def token_secret(self, token_id: str, public_key: bytes, now_s: float) -> bytes:
        """The secret of a token that this key may still redeem.

        Raises:
            TokenError: unknown, expired, or redeemed by another key.
        """
        row = self._one("SELECT * FROM tokens WHERE token_id = ?", (token_id,))
        if row is None:
            raise TokenError("the token is unknown")
        if row["public_key"] is not None and row["public_key"] != public_key:
            raise TokenError("the token has been used by another device")
        if row["public_key"] is None and row["expires_at"] < now_s:
            raise TokenError("the token has expired")
        return bytes(row["secret"])

    def redeem(
        self, token_id: str, device: str, public_key: bytes, device_class: str, now_s: float
    ) -> None:
        """Use a token up and enrol its device; the same key may come again."""
        with self._transaction():
            self._db.execute(
                "UPDATE tokens SET public_key = ? WHERE token_id = ?", (public_key, token_id)
            )
            self.admit(device, public_key, device_class, now_s)

    def admit(self, device: str, public_key: bytes, device_class: str, now_s: float) -> None:
        """Enrol a device; one that is enrolled stays as it is."""
        self._db.execute(
            "INSERT OR IGNORE INTO devices (device, public_key, device_class, enrolled_at)"
            " VALUES (?, ?, ?, ?)",
            (device, public_key, device_class, now_s),
        )

    def devices(self) -> dict[str, sqlite3.Row]:
        """Every enrolled device, revoked ones too."""
        return {row["device"]: row for row in self._db.execute("SELECT * FROM devices")}

    def is_revoked(self, device: str) -> bool:
        """Whether a device was enrolled and has been taken out."""
        row = self._one("SELECT revoked FROM devices WHERE device = ?", (device,))
        return row is not None and row["revoked"] is not None

    def note_check_ins(self, latest: Mapping[str, int]) -> None:
        """Remember devices' latest check-ins: device -> number."""
        with self._transaction():
            self._db.executemany(
                "UPDATE devices SET last_check_in = ? WHERE device = ?",
                [(check_in, device) for device, check_in in latest.items()],
            )

    def revoke(self, device: str, reason: str) -> None:
        """Take a device out for good."""
        self._db.execute("UPDATE devices SET revoked = ? WHERE device = ?", (reason, device))

    def add_incidents(self, counts: Mapping[tuple[str, str], tuple[int, str]]) -> None:
        """Add to the counts of typed errors: (device, reason) -> (how many more, last detail)."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO incidents VALUES (?, ?, ?, ?) ON CONFLICT (device, reason) DO UPDATE"
                " SET count = count + excluded.count, last_detail = excluded.last_detail",
                [(dev, reason, n, detail) for (dev, reason), (n, detail) in counts.items()],
            )

    def incidents(self) -> list[sqlite3.Row]:
        """Counts of typed errors by device and reason."""
        return self._db.execute("SELECT * FROM incidents ORDER BY device, reason").fetchall()

    # -- rounds and updates ------------------------------------------------------------------

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
        with self._transaction():
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
        with self._transaction():
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
        with self._transaction():
            self._close_round(abandoned.round, "round_abandoned", abandoned.closed_at_s)
            self._db.execute(
                "UPDATE rounds SET status = 'abandoned', closed_at = ?, reason = ? WHERE round = ?",
                (abandoned.closed_at_s, abandoned.reason, abandoned.round),
            )

    def commit_round(self, commit: ModelCommit, now_s: float, *, keep: frozenset[int]) -> None:
        """End a round with a model; `keep` are older versions whose tensors stay."""
        with self._transaction():
            for update_id in commit.accepted:
                self._settle(update_id, now_s, "counted", counted=True)
            self._close_round(commit.round, "round_closed", now_s)
            self._add_model(commit, now_s)
            self._db.execute(
                "UPDATE rounds SET status = 'committed', version = ?, closed_at = ?"
                " WHERE round = ?",
                (commit.version, now_s, commit.round),
            )
            kept = keep | {commit.version}
            for (version,) in self._db.execute("SELECT version FROM tensors").fetchall():
                if version not in kept:
                    self._db.execute("DELETE FROM tensors WHERE version = ?", (version,))

    def _add_model(self, commit: ModelCommit, now_s: float) -> None:
        self._db.execute(
            "INSERT INTO models VALUES (?, ?, ?, ?, ?)",
            (commit.version, commit.round, commit.digest, commit.delta, now_s),
        )
        self._db.execute(
            "INSERT INTO tensors VALUES (?, ?, ?)", (commit.version, commit.served, commit.exact)
        )

    def add_first_model(self, commit: ModelCommit, now_s: float) -> None:
        """Write version 0: the task's initial tensors."""
        with self._transaction():
            self._add_model(commit, now_s)

    def note_round(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Remember what an evaluation of the round's model said."""
        self._db.execute(
            "UPDATE rounds SET metrics = ? WHERE round = ?",
            (msgspec.msgpack.encode(dict(metrics)), round_number),
        )

    def note_traffic(self, round_number: int, sent_bytes: int, received_bytes: int) -> None:
        """Remember the bytes that passed while a round was open: (downlink, uplink)."""
        self._db.execute(
            "UPDATE rounds SET traffic = ? WHERE round = ?",
            (msgspec.msgpack.encode((sent_bytes, received_bytes)), round_number),
        )

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

    def rounds(self) -> list[sqlite3.Row]:
        """Every round, in order."""
        return self._db.execute("SELECT * FROM rounds ORDER BY round").fetchall()

    def round(self, round_number: int) -> sqlite3.Row | None:
        """One round, or None when there has been none of that number."""
        return self._one("SELECT * FROM rounds WHERE round = ?", (round_number,))

    def last_round(self) -> int:
        """The number of the latest round, 0 before the first."""
        row = self._one("SELECT COALESCE(MAX(round), 0) AS last FROM rounds")
        return 0 if row is None else int(row["last"])

    # -- models ------------------------------------------------------------------------------

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

    def releases(self) -> list[sqlite3.Row]:
        """Every release, in order."""
        return self._db.execute("SELECT * FROM releases ORDER BY sequence").fetchall()

    def privacy(self) -> list[sqlite3.Row]:
        """Every privacy spend, in order."""
        return self._db.execute("SELECT * FROM privacy ORDER BY sequence").fetchall()
