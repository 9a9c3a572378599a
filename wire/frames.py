"""The frame around every message: version, kind, length, digest, signature, body.

    offset  bytes  field
    0       2      magic "PL"
    2       1      protocol major
    3       1      protocol minor
    4       1      kind (the union's tag)
    5       1      reserved, zero
    6       4      body length, little-endian
    10      8      first 8 bytes of the body's SHA-256 (tells damage from forgery)
    18      64     Ed25519 signature over the statement
    82      ...    body: the message's fields, a MessagePack array

The *statement* names everything that a frame must not be moved to: direction, federation (or
enrolment scope), device, kind, version and the body's whole digest; round, update id and model
version are fields of the body. The receiver takes scope, device and direction from the topic, so
they cost no bytes, and a frame replayed under another device or federation does not verify.

Absent means reject: a frame without a valid signature is never decoded further, with one
exception, `EnrolRequest`, which carries its own key and proves a token's secret instead.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from wire import limits
from wire.errors import (
    DigestMismatchError,
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnsupportedVersionError,
)
from wire.messages import MESSAGES, RESERVED_KINDS, Chunk, Message, is_finite
from wire.signing import Crypto, Signer
from wire.topics import Address

MAGIC: Final = b"PL"
_HEADER: Final = struct.Struct("<2sBBBBI8s64s")
HEADER_BYTES: Final = _HEADER.size
# Where a frame says which minor version its sender speaks.
MINOR_OFFSET: Final = 3

_encoder = msgspec.msgpack.Encoder()
_decoders: Final = {kind: msgspec.msgpack.Decoder(message) for kind, message in MESSAGES.items()}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose length and digest hold; its signature and body are yet to be looked at."""

    minor: int
    kind: int
    signature: bytes
    body: bytes


def statement(address: Address, minor: int, kind: int, body: bytes) -> bytes:
    """The bytes that a frame's signature covers."""
    scope, device = address.scope.encode(), address.device.encode()
    return b"".join(
        (
            b"potluck frame\x00",
            bytes((limits.PROTOCOL_MAJOR, minor, kind, 1 if address.direction == "up" else 0)),
            bytes((len(scope),)),
            scope,
            bytes((len(device),)),
            device,
            hashlib.sha256(body).digest(),
        )
    )


def seal(message: Message, address: Address, signer: Signer) -> bytes:
    """Encode and sign a message for the topic that it will be published on.

    Raises:
        LocalProtocolError: the message travels in the other direction, or is too large.
    """
    if message.UPLINK is not None and (address.direction == "up") != message.UPLINK:
        raise LocalProtocolError(f"{type(message).__name__} does not travel {address.direction}")
    body = _encoder.encode(message)
    bound = limits.TRANSFER_BYTES_MAX if isinstance(message, Chunk) else limits.MESSAGE_BYTES_MAX
    if len(body) > bound:
        raise LocalProtocolError(f"{type(message).__name__} of {len(body)} bytes, at most {bound}")
    signature = signer.sign(statement(address, limits.PROTOCOL_MINOR, message.KIND, body))
    header = _HEADER.pack(
        MAGIC,
        limits.PROTOCOL_MAJOR,
        limits.PROTOCOL_MINOR,
        message.KIND,
        0,
        len(body),
        hashlib.sha256(body).digest()[:8],
        signature,
    )
    return header + body


def parse(data: bytes) -> Frame:
    """Read a frame's header and check length and digest.

    Raises:
        TruncatedError, TrailingBytesError, TooLargeError: the length is not what it says.
        UnsupportedVersionError: another major version, or a kind that this build does not know.
        DigestMismatchError: the body was damaged on the way.
        RemoteProtocolError: not a frame at all.
    """
    if len(data) < HEADER_BYTES:
        raise TruncatedError(f"a frame has at least {HEADER_BYTES} bytes, got {len(data)}")
    magic, major, minor, kind, reserved, size, prefix, signature = _HEADER.unpack_from(data)
    if magic != MAGIC or reserved != 0:
        raise RemoteProtocolError("not a potluck frame")
    if major != limits.PROTOCOL_MAJOR:
        raise UnsupportedVersionError(
            f"protocol {major}.{minor}, this build speaks {limits.PROTOCOL_MAJOR}"
        )
    if kind in RESERVED_KINDS:
        raise UnsupportedVersionError(f"kind {kind} ({RESERVED_KINDS[kind]}) is reserved")
    if kind not in MESSAGES:
        raise UnsupportedVersionError(f"kind {kind} is not known")
    bound = limits.TRANSFER_BYTES_MAX if kind == Chunk.KIND else limits.MESSAGE_BYTES_MAX
    if size > bound:
        raise TooLargeError(f"a body of {size} bytes, at most {bound}")
    if len(data) - HEADER_BYTES < size:
        raise TruncatedError(f"{len(data) - HEADER_BYTES} of {size} bytes of body")
    if len(data) - HEADER_BYTES > size:
        raise TrailingBytesError(f"{len(data) - HEADER_BYTES - size} bytes after the body")
    body = data[HEADER_BYTES:]
    if hashlib.sha256(body).digest()[:8] != prefix:
        raise DigestMismatchError("the frame's body was damaged on the way")
    return Frame(minor=minor, kind=kind, signature=signature, body=body)


def verify(frame: Frame, address: Address, public_key: bytes, crypto: Crypto) -> None:
    """Raise `BadSignatureError` unless `public_key` signed this frame for this topic."""
    crypto.verify(
        public_key, frame.signature, statement(address, frame.minor, frame.kind, frame.body)
    )


def decode(frame: Frame, address: Address) -> Message:
    """Decode a frame's body; `verify` comes first, but for `EnrolRequest`.

    Raises:
        NotFiniteError: a number is NaN or infinite.
        RemoteProtocolError: a field is missing, out of bounds or of the wrong type, the body is not
            in canonical form, or the message does not travel in this direction.
    """
    try:
        message = cast("Message", _decoders[frame.kind].decode(frame.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"{MESSAGES[frame.kind].__name__}: {error}") from error
    if message.UPLINK is not None and (address.direction == "up") != message.UPLINK:
        raise RemoteProtocolError(f"{type(message).__name__} does not travel {address.direction}")
    if not is_finite(message):
        raise NotFiniteError(f"{type(message).__name__} has a number that is not finite")
    # One message, one encoding: within our own minor version anything else is padding or a field
    # that we do not know, and both are rejected. A newer minor may have appended fields, and an
    # older one lacks those that ours has.
    if frame.minor == limits.PROTOCOL_MINOR and _encoder.encode(message) != frame.body:
        raise RemoteProtocolError(f"{type(message).__name__} is not in canonical form")
    return message


def open_frame(data: bytes, address: Address, public_key: bytes, crypto: Crypto) -> Message:
    """`parse`, `verify` and `decode`: bytes from a topic to a message that its sender signed.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    frame = parse(data)
    verify(frame, address, public_key, crypto)
    return decode(frame, address)
