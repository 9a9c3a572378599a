"""Keys and signatures behind two small protocols, so that a fleet can exchange them for cheap ones.

Production uses Ed25519 (RFC 8032) from `cryptography`, imported when first used: a device that
only looks at its status never pays for it. Randomness comes from a `SecretSource`; in production
that is the operating system, and no command line can seed it.
"""

import os
from typing import Final, Protocol

from wire.errors import BadSignatureError

SIGNATURE_BYTES: Final = 64
KEY_BYTES: Final = 32


class SecretSource(Protocol):
    """Where keys, nonces and tokens come from."""

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        ...


class SystemSecrets:
    """The operating system's generator: the only source that production uses."""

    def token(self, size: int) -> bytes:
        """`size` bytes from `os.urandom`."""
        return os.urandom(size)


class Signer(Protocol):
    """A private key that signs for one identity."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        ...

    def sign(self, statement: bytes) -> bytes:
        """A signature of 64 bytes over `statement`."""
        ...


class Crypto(Protocol):
    """A signature scheme with 32-byte keys and 64-byte signatures."""

    @property
    def name(self) -> str:
        """What reports call it: "real" or "stub"."""
        ...

    def signer(self, private_key: bytes) -> Signer:
        """The signer of a 32-byte private key."""
        ...

    def verify(self, public_key: bytes, signature: bytes, statement: bytes) -> None:
        """Raise `BadSignatureError` unless the signature is the key's over the statement."""
        ...


class _Ed25519Signer:
    def __init__(self, private_key: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - loaded when used
            Ed25519PrivateKey,
        )

        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        return self._key.sign(statement)


class Ed25519:
    """RFC 8032 signatures: the only scheme on a real wire."""

    name = "real"

    def signer(self, private_key: bytes) -> Signer:
        """The Ed25519 signer of a 32-byte seed."""
        return _Ed25519Signer(private_key)

    def verify(self, public_key: bytes, signature: bytes, statement: bytes) -> None:
        """Raise `BadSignatureError` unless the signature verifies."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - loaded when used
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - loaded when used
            Ed25519PublicKey,
        )

        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
        except (InvalidSignature, ValueError) as error:
            raise BadSignatureError(
                "the signature does not verify under the sender's key"
            ) from error
