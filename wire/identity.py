"""Names that nobody has to hand out: they follow from what they name, by SHA-256."""

import hashlib


def _tagged(tag: bytes, *fields: bytes) -> bytes:
    """SHA-256 over a tag and length-prefixed fields, so that no two lists of fields collide."""
    digest = hashlib.sha256(b"potluck " + tag + b"\x00")
    for field in fields:
        digest.update(len(field).to_bytes(4, "little"))
        digest.update(field)
    return digest.digest()


def device_id(public_key: bytes) -> str:
    """A device's name: 16 hex characters of its Ed25519 public key's digest."""
    return _tagged(b"device", public_key).hex()[:16]


def coordinator_id(public_key: bytes) -> str:
    """A coordinator's name, in the enrolment topic: 16 hex characters."""
    return _tagged(b"coordinator", public_key).hex()[:16]


def update_id(federation: str, round_number: int, device: str) -> bytes:
    """The one update that a device may contribute to a round: 16 bytes.

    A device that crashes before sealing and trains again arrives at the same id, so that nothing
    can count twice by construction.
    """
    return _tagged(
        b"update", federation.encode(), round_number.to_bytes(8, "little"), device.encode()
    )[:16]


def token_proof(secret: bytes, public_key: bytes) -> bytes:
    """What a device shows instead of its token's secret: 32 bytes bound to its own key (HMAC)."""
    import hmac  # noqa: PLC0415 - a device needs it once in its life

    return hmac.digest(secret, b"potluck enrol\x00" + public_key, "sha256")
