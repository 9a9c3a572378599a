"""A payload: all tensors of a schema through one codec, behind a header that checks itself.

    offset  bytes  field, little-endian
    0       1      codec id
    1       1      layout, 1
    2       8      first 8 bytes of the schema's SHA-256
    10      4      content bytes, before compression
    14      4      CRC-32 of bytes 0 to 13 and of what follows
    18      ...    one zstd frame with a declared size: tensor after tensor in the schema's order

Whatever arrives, no more is allocated than the schema implies: the content's size is bounded before
decompression, and zstd's own declared size must be the same (its `max_output_size` does not bind a
frame that declares one).
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from quantization.codecs import BY_NUMBER, CODECS, Codec, Noise, read_tensor, write_tensor
from quantization.symbols import Reader
from wire import Schema, Tensors
from wire.errors import (
    BadCompressionError,
    DigestMismatchError,
    LocalProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnknownCodecError,
    UnsupportedVersionError,
)

LAYOUT: Final = 1
# On packed symbols level 19 costs 25 to 45 times the time for 5 to 15% of the bytes.
ZSTD_LEVEL: Final = 3
_HEADER: Final = struct.Struct("<BB8sI")
_CHECK: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CHECK.size
_FRAME_OVERHEAD_BYTES: Final = 64


def encode(
    codec: str, tensors: Mapping[str, NDArray[np.float32]], schema: Schema, *, seed: int
) -> bytes:
    """Tensors to a payload.

    Args:
        codec: a name of `CODEC_NAMES`.
        tensors: float32 arrays, exactly the schema's.
        schema: names, shapes, order.
        seed: of the rounding noise; another for each payload.

    Raises:
        LocalProtocolError: no such codec.
        SchemaMismatchError: a name, shape or dtype differs.
        NotFiniteError: NaN, infinity, or a magnitude above 1e37.
    """
    if codec not in CODECS:
        raise LocalProtocolError(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    schema.check(tensors)
    noise = Noise(seed)
    content = b"".join(
        write_tensor(CODECS[codec], spec.name, np.ravel(tensors[spec.name]), noise)
        for spec in schema.tensors
    )
    compressed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)
    header = _HEADER.pack(CODECS[codec].number, LAYOUT, _prefix(schema), len(content))
    return header + _CHECK.pack(zlib.crc32(compressed, zlib.crc32(header))) + compressed


def decode(payload: bytes, schema: Schema) -> Tensors:
    """A payload to fresh float32 tensors in the schema's order.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    codec, content_bytes = _open(payload)
    if payload[2:10] != _prefix(schema):
        raise SchemaMismatchError("the payload was made for another schema")
    if content_bytes > _content_bytes_max(codec, schema):
        raise TooLargeError(f"{content_bytes} bytes for {schema.parameters} parameters")
    reader = Reader(_decompress(payload[HEADER_BYTES:], content_bytes))
    tensors = {
        spec.name: read_tensor(codec, spec.name, reader, spec.size).reshape(spec.shape)
        for spec in schema.tensors
    }
    if reader.left:
        raise TrailingBytesError(f"{reader.left} bytes after the last tensor")
    return tensors


def codec_of(payload: bytes) -> str:
    """The name of the codec that made a payload.

    Raises:
        RemoteProtocolError: the header is not a payload's.
    """
    return _open(payload)[0].name


def payload_bytes_max(schema: Schema) -> int:
    """The largest payload that any codec makes of this schema."""
    content = max(_content_bytes_max(codec, schema) for codec in CODECS.values())
    # Incompressible content grows by zstd's block headers: 3 bytes per 128 KiB, and the frame's.
    return HEADER_BYTES + content + content // 4_096 + _FRAME_OVERHEAD_BYTES


def _prefix(schema: Schema) -> bytes:
    return bytes.fromhex(schema.digest)[:8]


def _content_bytes_max(codec: Codec, schema: Schema) -> int:
    return sum(codec.bytes_max(spec.size) for spec in schema.tensors)


def _open(payload: bytes) -> tuple[Codec, int]:
    """The codec and the content's size, once the header holds."""
    if len(payload) < HEADER_BYTES:
        raise TruncatedError(f"a payload has at least {HEADER_BYTES} bytes, got {len(payload)}")
    number, layout, _schema, content_bytes = _HEADER.unpack_from(payload)
    if layout != LAYOUT:
        raise UnsupportedVersionError(f"payload layout {layout} is not known")
    if number not in BY_NUMBER:
        raise UnknownCodecError(f"codec {number} is not known")
    (check,) = _CHECK.unpack_from(payload, _HEADER.size)
    body = memoryview(payload)[HEADER_BYTES:]
    if zlib.crc32(body, zlib.crc32(payload[: _HEADER.size])) != check:
        raise DigestMismatchError("the payload was damaged")
    return BY_NUMBER[number], content_bytes


def _decompress(data: bytes, content_bytes: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(data)
        if declared != content_bytes:
            raise BadCompressionError(f"zstd declares {declared} bytes, the header {content_bytes}")
        if not content_bytes and data != zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b""):
            # `decompress` returns at once when nothing is declared, whatever follows.
            raise BadCompressionError("an empty frame that is none")
        return zstandard.ZstdDecompressor().decompress(
            data, max_output_size=content_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BadCompressionError(str(error)) from error
