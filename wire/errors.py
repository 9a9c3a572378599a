"""The error tree of the wire: ours and theirs told apart (after h11's Local/Remote split).

Everything that a peer can cause is a `RemoteProtocolError`. A decoder raises that or a subclass and
nothing else, so a driver has one `except` around everything that the network hands it. Each error
has a stable `reason`, a short snake_case word that is counted per device, put into the ledger and
sent back in a `Settled` or `Rejected`; the text after it is for people.
"""

from typing import ClassVar


class PotluckError(Exception):
    """Base of every error that potluck raises on purpose."""


class LocalProtocolError(PotluckError):
    """Our own code asked for something that the protocol does not allow: a bug, not an attack."""


class RemoteProtocolError(PotluckError):
    """A peer sent something that the protocol does not allow.

    Attributes:
        reason: stable snake_case word for ledgers, counters and replies.
    """

    reason: ClassVar[str] = "malformed"


class TruncatedError(RemoteProtocolError):
    """Fewer bytes arrived than the header promised."""

    reason = "truncated"


class TrailingBytesError(RemoteProtocolError):
    """More bytes arrived than the header promised."""

    reason = "trailing_bytes"


class TooLargeError(RemoteProtocolError):
    """A declared or actual size passes its bound in `wire.limits`, or what the schema implies."""

    reason = "too_large"


class DigestMismatchError(RemoteProtocolError):
    """The bytes do not have the digest that the header or the offer promised."""

    reason = "digest_mismatch"


class BadSignatureError(RemoteProtocolError):
    """The signature is absent or does not verify under the sender's key."""

    reason = "bad_signature"


class UnknownSenderError(RemoteProtocolError):
    """The sender is not enrolled, is revoked, or uses another's topic."""

    reason = "unknown_sender"


class UnsupportedVersionError(RemoteProtocolError):
    """Another major version of the protocol, or a message kind that this build does not know."""

    reason = "unsupported_version"


class SchemaMismatchError(RemoteProtocolError):
    """Names, shapes, dtypes or counts differ from the manifest's."""

    reason = "schema_mismatch"


class NotFiniteError(RemoteProtocolError):
    """A value is NaN or infinite, or too large to be summed safely."""

    reason = "not_finite"


class UnknownCodecError(RemoteProtocolError):
    """The payload names a codec id that this build does not know."""

    reason = "unknown_codec"


class BadCompressionError(RemoteProtocolError):
    """The compressed stream is corrupt, has no declared size, or inflates past it (a zstd bomb)."""

    reason = "bad_compression"


class StaleRoundError(RemoteProtocolError):
    """The update belongs to a round that is not open, or to another base version."""

    reason = "stale_round"


class NotInvitedError(RemoteProtocolError):
    """The device was not invited to the round that it answers."""

    reason = "not_invited"


class DuplicateError(RemoteProtocolError):
    """The same update id came again with different bytes."""

    reason = "duplicate"


class TokenError(RemoteProtocolError):
    """An enrolment token is unknown, expired, used by another key, or its proof is wrong."""

    reason = "bad_token"


class TooOftenError(RemoteProtocolError):
    """The device says more than a device has to say; what is beyond it is dropped."""

    reason = "too_often"


class UnknownVersionError(RemoteProtocolError):
    """The device speaks of a model version that this coordinator has not made."""

    reason = "unknown_version"
