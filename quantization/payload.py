"""A payload: all tensors of a schema, few bytes, behind a header that checks itself.

    bytes  field, little-endian
    1      layout, 2
    1      codec that the sender was asked for, 0 for `auto`; plus 128 if there is a seed
    4      first 4 bytes of the schema's SHA-256
    4      CRC-32 of all other bytes
    4      seed, if the codec of a tensor draws from it, else nothing
    ...    for each tensor with values: codec id u8, then the codec's parameters
    ...    for each block: mode u8, and unless it is 0 three varints: bytes of the squeezed string,
           of its zstd frame (0: it is stored as it is), and of the plain string
    ...    for each block: zstd frame or squeezed string, plain string, then for each piece in order
           its floats, or its chunks' scales, if its codec makes such

`blocks` says which values a block has, `symbols` what the strings are. A varint is seven bits to a
byte, lowest first, the top bit set on all but the last (as in MQTT 5.0, section 1.5.5). A zstd
frame is sent without its magic number, which is always the same.

Whatever arrives, no more is allocated than the schema implies: the size of every string is bounded
before it is read, and zstd's own declared size must be the same (its `max_output_size` does not
bind a frame that declares one).
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from quantization import symbols as coding
from quantization.auto import AutoRule, PayloadBudgetError, choose
from quantization.blocks import Piece, blocks_of
from quantization.chunks import CHUNKS_PER_PIECE
from quantization.codecs import (
    AUTO,
    BY_NUMBER,
    FLOATS,
    VALUE_ABS_MAX,
    Codec,
    codec_for,
    name_of,
)
from quantization.reader import VARINT_BYTES_MAX, Reader, varint
from quantization.rotation import chunks_of
from quantization.stages import (
    NO_SCALES,
    Array,
    Coded,
    Flat,
    Place,
    Scales,
    Stage,
    from_bfloat16,
    to_bfloat16,
)
from wire import Schema, Tensors
from wire.errors import (
    BadCompressionError,
    DigestMismatchError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnknownCodecError,
    UnsupportedVersionError,
)

LAYOUT: Final = 2
# The coarsest levels read a chunk as up to 500 times as large as it was.
_SURELY_READ: Final = 1e34
# Tokens have no repeats worth a search: level 1 is the fastest, and the smallest on them too.
ZSTD_LEVEL: Final = 1
_SCHEMA_BYTES: Final = 4
_HEAD: Final = struct.Struct(f"<BB{_SCHEMA_BYTES}s")
_CHECK: Final = struct.Struct("<I")
_SEED: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEAD.size + _CHECK.size
_SEED_MASK: Final = 2**32 - 1
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SEEDED: Final = 128
# A codec's id and two float32: no codec has more.
_TENSOR_BYTES_MAX: Final = 9


def encode(
    spec: str,
    tensors: Mapping[str, NDArray[np.float32]],
    schema: Schema,
    *,
    seed: int,
    rule: AutoRule | None = None,
    feedback: bool = False,
) -> bytes:
    """Tensors to a payload.

    Args:
        spec: a name of `CODEC_NAMES`, or a name, a colon and a number, as in `ecq_sr:16`.
        tensors: float32 arrays, exactly the schema's.
        schema: names, shapes, order.
        seed: of rounding and rotation; another for each payload.
        rule: what `auto` aims at; the number behind `auto:` goes before its error.
        feedback: whether `auto` may choose codecs whose error the caller puts into the next update,
            as `encode_with_feedback` does.

    Raises:
        LocalProtocolError: no such codec.
        SchemaMismatchError: a name, shape or dtype differs.
        NotFiniteError: NaN, infinity, or a magnitude above 1e37; or above 1e34, if the codec reads
            it as more than a float32 can hold.
        PayloadBudgetError: `rule` bounds the bytes, and no codec is that small.
    """
    schema.check(tensors)
    flats = [np.ravel(tensors[spec_.name]) for spec_ in schema.tensors]
    largest = 0.0
    for spec_, flat in zip(schema.tensors, flats, strict=True):
        if flat.size:
            largest = max(largest, -float(flat.min()), float(flat.max()))
        if largest > VALUE_ABS_MAX:
            raise NotFiniteError(f"{spec_.name}: has values above {VALUE_ABS_MAX:g}")
    payload = _encode_any(spec, flats, schema, seed, rule, feedback=feedback)
    if largest > _SURELY_READ:
        decode(payload, schema)
    return payload


def _encode_any(
    spec: str,
    flats: list[Flat],
    schema: Schema,
    seed: int,
    rule: AutoRule | None,
    *,
    feedback: bool,
) -> bytes:
    if name_of(spec) == AUTO:
        rule = (rule or AutoRule()).with_setting(spec)
        best = b""
        for codecs in choose(flats, rule, feedback=feedback):
            best = _encode(0, codecs, flats, schema, seed)
            if rule.fits(len(best)):
                return best
        raise PayloadBudgetError(
            f"an update takes {len(best)} bytes at the least, {rule.payload_bytes_max} are allowed"
        )
    codec = codec_for(spec)
    return _encode(codec.number, [codec] * len(flats), flats, schema, seed)


def _encode(asked: int, codecs: list[Codec], flats: list[Flat], schema: Schema, seed: int) -> bytes:
    seed &= _SEED_MASK
    stages = [_stage_of(codec) for codec in codecs]
    head = bytearray()
    if any(stage.seeded for stage, flat in zip(stages, flats, strict=True) if flat.size):
        asked |= _SEEDED
        head += _SEED.pack(seed)
    coded: list[Coded] = []
    for number, (codec, stage, flat) in enumerate(zip(codecs, stages, flats, strict=True)):
        if not flat.size:
            coded.append(Coded(flat))
            continue
        coded.append(stage.forward(flat, Place(seed, number)))
        head.append(codec.number)
        head += _pack_parameters(stage.parameters, coded[-1].parameters)
    bodies = bytearray()
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    for block in blocks_of(schema):
        pieces = [(piece, codecs[piece.tensor].number) for piece in block.pieces]
        parts = [
            coded[p.tensor].values[p.start : p.start + p.size]
            for p, number in pieces
            if number not in FLOATS
        ]
        packed = coding.pack(parts[0] if len(parts) == 1 else np.concatenate([_NONE, *parts]))
        frame = compressor.compress(packed.squeezed)[len(_MAGIC) :]
        stored = len(frame) >= len(packed.squeezed)
        head.append(packed.mode)
        if packed.mode != coding.ZERO:
            for size in (len(packed.squeezed), 0 if stored else len(frame), len(packed.plain)):
                head += varint(size)
        bodies += packed.squeezed if stored else frame
        bodies += packed.plain
        for p, number in pieces:
            if number in FLOATS:
                values = coded[p.tensor].values[p.start : p.start + p.size]
                bodies += values.astype(FLOATS[number][0]).tobytes()
            elif stages[p.tensor].scaled:
                start = p.number * CHUNKS_PER_PIECE
                bodies += coded[p.tensor].scales[start : start + CHUNKS_PER_PIECE].tobytes()
    first = _HEAD.pack(LAYOUT, asked, _prefix(schema))
    rest = bytes(head) + bytes(bodies)
    return first + _CHECK.pack(zlib.crc32(rest, zlib.crc32(first))) + rest


_NONE: Final = np.empty(0, np.int16)


def _stage_of(codec: Codec) -> Stage:
    stage = FLOATS[codec.number][1] if codec.number in FLOATS else codec.stage
    assert stage is not None  # noqa: S101 - a codec makes floats or symbols
    return stage


def _pack_parameters(types: str, parameters: tuple[float, ...]) -> bytes:
    return b"".join(
        struct.pack("<H", to_bfloat16(value)) if kind == "b" else struct.pack("<f", value)
        for kind, value in zip(types, parameters, strict=True)
    )


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PieceValues:
    """A decoded piece.

    Attributes:
        piece: which.
        values: float32[size], or float32[k] beside `positions`.
        positions: int64[k], increasing, in the piece: where the values are that are not 0; None
            when `values` has all of them.
    """

    piece: Piece
    values: Flat
    positions: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class _Body:
    """Where a block is: its symbols' mode, how many, and the bytes of each string."""

    mode: int
    symbols: int
    squeezed_bytes: int
    frame_bytes: int
    plain_bytes: int
    at: int


class Payload:
    """A payload whose header has been read and found right; blocks are decoded when asked for.

    Args:
        data: from the network.
        schema: what it has to be a payload of.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """

    def __init__(self, data: bytes, schema: Schema) -> None:
        self.blocks = blocks_of(schema)
        self.asked, seeded = _open(data, _prefix(schema))
        self._data = memoryview(data)
        self._zstd = zstandard.ZstdDecompressor()
        reader = Reader(self._data[HEADER_BYTES:])
        self._seed = int(_SEED.unpack(reader.take(_SEED.size))[0]) if seeded else 0
        self._codecs: list[Codec | None] = []
        self._parameters: list[tuple[float, ...]] = []
        for spec in schema.tensors:
            self._read_tensor(reader, spec.name, spec.size)
        if seeded != any(c is not None and _stage_of(c).seeded for c in self._codecs):
            raise RemoteProtocolError("a seed that no tensor needs, or none")
        self._bodies = self._read_bodies(reader)

    @property
    def codecs(self) -> tuple[str | None, ...]:
        """The codec of each tensor; None for one without values."""
        return tuple(None if codec is None else codec.name for codec in self._codecs)

    def _read_tensor(self, reader: Reader, name: str, size: int) -> None:
        if size == 0:
            self._codecs.append(None)
            self._parameters.append(())
            return
        number = reader.byte()
        if number not in BY_NUMBER:
            raise UnknownCodecError(f"{name}: codec {number} is not known")
        codec = BY_NUMBER[number]
        parameters = tuple(
            from_bfloat16(int(reader.array("<u2", 1)[0]))
            if kind == "b"
            else float(reader.array("<f4", 1)[0])
            for kind in _stage_of(codec).parameters
        )
        if not all(0.0 <= value < np.inf for value in parameters):
            raise NotFiniteError(f"{name}: a scale is negative or not finite")
        self._codecs.append(codec)
        self._parameters.append(parameters)

    def _read_bodies(self, reader: Reader) -> list[_Body]:
        sizes = []
        for block in self.blocks:
            floats = [(piece, self._floats(piece)) for piece in block.pieces]
            symbols = sum(piece.size for piece, dtype in floats if dtype is None)
            mode = reader.byte()
            squeezed = frame = plain = 0
            if mode != coding.ZERO:
                squeezed, frame, plain = reader.varint(), reader.varint(), reader.varint()
            if squeezed > coding.squeezed_bytes_max(symbols):
                raise TooLargeError(f"{squeezed} bytes of symbols for {symbols} values")
            if frame and frame >= squeezed:
                raise BadCompressionError(f"{frame} bytes are no compression of {squeezed}")
            if plain > coding.plain_bytes_max(symbols):
                raise TooLargeError(f"{plain} bytes of signs for {symbols} values")
            tail = sum(
                self._scales(piece) if dtype is None else np.dtype(dtype).itemsize * piece.size
                for piece, dtype in floats
            )
            sizes.append((mode, symbols, squeezed, frame, plain, tail))
        bodies, at = [], HEADER_BYTES + reader.at
        for mode, symbols, squeezed, frame, plain, tail in sizes:
            bodies.append(_Body(mode, symbols, squeezed, frame, plain, at))
            at += (frame or squeezed) + plain + tail
        if at > len(self._data):
            raise TruncatedError(f"{len(self._data)} bytes, {at} promised")
        if at < len(self._data):
            raise TrailingBytesError(f"{len(self._data) - at} bytes after the last block")
        return bodies

    def _floats(self, piece: Piece) -> str | None:
        """The dtype of a piece that is no symbols."""
        codec = self._codecs[piece.tensor]
        return FLOATS[codec.number][0] if codec is not None and codec.number in FLOATS else None

    def _scales(self, piece: Piece) -> int:
        """How many scales a piece has."""
        codec = self._codecs[piece.tensor]
        scaled = codec is not None and _stage_of(codec).scaled
        return chunks_of(piece.size).count if scaled else 0

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
    def block(self, number: int) -> list[PieceValues]:
        """Decode one block.

        Raises:
            RemoteProtocolError: or the subclass that names what was wrong.
        """
        body = self._bodies[number]
        reader = Reader(self._data[body.at :])
        squeezed = bytes(reader.take(body.frame_bytes or body.squeezed_bytes))
        if body.frame_bytes:
            squeezed = _decompress(self._zstd, squeezed, body.squeezed_bytes)
        unpacked = coding.unpack(
            body.mode, squeezed, bytes(reader.take(body.plain_bytes)), body.symbols
        )
        decoded, start = [], 0
        for piece in self.blocks[number].pieces:
            dtype = self._floats(piece)
            if dtype is not None:
                floats = reader.array(dtype, piece.size)
                decoded.append(self._decode(piece, floats, None, NO_SCALES))
                continue
            stop = start + piece.size
            scales = np.asarray(reader.array("u1", self._scales(piece)), np.uint8)
            if unpacked.positions is None:
                symbols, positions = unpacked.symbols[start:stop], None
            else:
                first, last = np.searchsorted(unpacked.positions, (start, stop))
                symbols = unpacked.symbols[first:last]
                positions = unpacked.positions[first:last]
                if start:
                    positions = positions - start
            decoded.append(self._decode(piece, symbols, positions, scales))
            start = stop
        return decoded

    def _decode(
        self, piece: Piece, coded: Array, positions: NDArray[np.int64] | None, scales: Scales
    ) -> PieceValues:
        codec = self._codecs[piece.tensor]
        assert codec is not None  # noqa: S101 - pieces have values, and so a codec
        stage = _stage_of(codec)
        if positions is not None and not stage.local:
            whole = np.zeros(piece.size, np.int16)
            whole[positions] = coded
            coded, positions = whole, None
        place = Place(self._seed, piece.tensor, piece.number)
        values = stage.backward(coded, self._parameters[piece.tensor], scales, place)
        if not np.isfinite(values).all():
            raise NotFiniteError(f"tensor {piece.tensor} has values that are not finite")
        return PieceValues(piece, values, positions)


def decode(payload: bytes, schema: Schema) -> Tensors:
    """A payload to fresh float32 tensors in the schema's order.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    read = Payload(payload, schema)
    flats = [np.zeros(spec.size, np.float32) for spec in schema.tensors]
    for number in range(len(read.blocks)):
        for part in read.block(number):
            into = flats[part.piece.tensor][part.piece.start : part.piece.start + part.piece.size]
            if part.positions is None:
                into[:] = part.values
            else:
                into[part.positions] = part.values
    return {
        spec.name: flat.reshape(spec.shape)
        for spec, flat in zip(schema.tensors, flats, strict=True)
    }


def codec_of(payload: bytes) -> str:
    """The name of the codec that the sender was asked for, `auto` if it chose itself.

    Raises:
        RemoteProtocolError: the header is not a payload's.
    """
    asked, _seeded = _open(payload, None)
    return AUTO if asked == 0 else BY_NUMBER[asked].name


def payload_bytes_max(schema: Schema) -> int:
    """The largest payload that any codec makes of this schema."""
    header = HEADER_BYTES + _SEED.size + sum(_TENSOR_BYTES_MAX for _ in schema.tensors)
    bodies = 0
    for block in blocks_of(schema):
        symbols = coding.squeezed_bytes_max(block.size) + coding.plain_bytes_max(block.size)
        symbols += sum(chunks_of(piece.size).count for piece in block.pieces)
        bodies += 1 + 3 * VARINT_BYTES_MAX + max(symbols, 4 * block.size)
    return header + bodies


def _prefix(schema: Schema) -> bytes:
    return bytes.fromhex(schema.digest)[:_SCHEMA_BYTES]


def _open(payload: bytes, prefix: bytes | None) -> tuple[int, bool]:
    """The codec that was asked for and whether there is a seed, once the header holds."""
    if len(payload) < HEADER_BYTES:
        raise TruncatedError(f"a payload has at least {HEADER_BYTES} bytes, got {len(payload)}")
    layout, asked, schema = _HEAD.unpack_from(payload)
    if layout != LAYOUT:
        raise UnsupportedVersionError(f"payload layout {layout} is not known")
    number = asked & ~_SEEDED
    if number and number not in BY_NUMBER:
        raise UnknownCodecError(f"codec {number} is not known")
    (check,) = _CHECK.unpack_from(payload, _HEAD.size)
    rest = memoryview(payload)[HEADER_BYTES:]
    if zlib.crc32(rest, zlib.crc32(payload[: _HEAD.size])) != check:
        raise DigestMismatchError("the payload was damaged")
    if prefix is not None and schema != prefix:
        raise SchemaMismatchError("the payload was made for another schema")
    return number, bool(asked & _SEEDED)


def _decompress(zstd: zstandard.ZstdDecompressor, frame: bytes, size: int) -> bytes:
    data = _MAGIC + frame
    try:
        declared = zstandard.frame_content_size(data)
        if declared != size:
            raise BadCompressionError(f"zstd declares {declared} bytes, the header {size}")
        return zstd.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadCompressionError(str(error)) from error
