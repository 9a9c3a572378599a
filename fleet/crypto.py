"""Keys from a seed and signatures that cost nothing: for emulation, and for nothing else.

No command of the production side reaches this module.
"""

import hashlib
import hmac

from wire import BadSignatureError
from wire.signing import SIGNATURE_BYTES, Signer


class SeededSecrets:
    """A stream of bytes that follows from a seed and a name: the same in every run."""

    def __init__(self, seed: int, name: str) -> None:
        self._prefix = f"potluck fleet/{seed}/{name}/".encode()
        self._count = 0

    def token(self, size: int) -> bytes:
        """The next `size` bytes of the stream."""
        self._count += 1
        return hashlib.shake_256(self._prefix + str(self._count).encode()).digest(size)


class _StubSigner:
    def __init__(self, private_key: bytes) -> None:
        self.public_key = hashlib.sha256(b"stub" + private_key).digest()

    def sign(self, statement: bytes) -> bytes:
        return _mark(self.public_key, statement)


class StubCrypto:
    """A keyed hash in place of Ed25519: detects damage and mix-ups, proves nothing to an enemy."""

    name = "stub"

    def signer(self, private_key: bytes) -> Signer:
        """The signer of a 32-byte key."""
        return _StubSigner(private_key)

    def verify(self, public_key: bytes, signature: bytes, statement: bytes) -> None:
        """Raise `BadSignatureError` unless the mark is this key's over the statement."""
        if not hmac.compare_digest(_mark(public_key, statement), signature):
            raise BadSignatureError("the mark is not the sender's")


def _mark(public_key: bytes, statement: bytes) -> bytes:
    return hashlib.blake2b(statement, key=public_key, digest_size=SIGNATURE_BYTES).digest()
