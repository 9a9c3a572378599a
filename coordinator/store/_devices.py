"""Who takes part: tokens, enrolled devices, and what each did wrong."""

import sqlite3
from collections.abc import Mapping

from coordinator.store._database import Database
from wire.errors import TokenError


class DeviceTables(Database):
    """Tokens, devices, incidents."""

    def add_tokens(self, tokens: Mapping[str, bytes], expires_at: float) -> None:
        """Remember one-time tokens: id -> secret."""
        with self.transaction():
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
        with self.transaction():
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
        with self.transaction():
            self._db.executemany(
                "UPDATE devices SET last_check_in = ? WHERE device = ?",
                [(check_in, device) for device, check_in in latest.items()],
            )

    def revoke(self, device: str, reason: str) -> None:
        """Take a device out for good."""
        self._db.execute("UPDATE devices SET revoked = ? WHERE device = ?", (reason, device))

    def add_incidents(self, counts: Mapping[tuple[str, str], tuple[int, str]]) -> None:
        """Add to the counts of typed errors: (device, reason) -> (how many more, last detail)."""
        with self.transaction():
            self._db.executemany(
                "INSERT INTO incidents VALUES (?, ?, ?, ?) ON CONFLICT (device, reason) DO UPDATE"
                " SET count = count + excluded.count, last_detail = excluded.last_detail",
                [(dev, reason, n, detail) for (dev, reason), (n, detail) in counts.items()],
            )

    def incidents(self) -> list[sqlite3.Row]:
        """Counts of typed errors by device and reason."""
        return self._db.execute("SELECT * FROM incidents ORDER BY device, reason").fetchall()
