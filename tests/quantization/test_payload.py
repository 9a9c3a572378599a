import zlib
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import CODEC_NAMES, codec_of, decode, encode, payload_bytes_max
from quantization.codecs import CODECS
from quantization.payload import _CHECK, _HEADER, HEADER_BYTES
from wire import Schema, Tensors, TensorSpec
from wire.errors import (
    BadCompressionError,
    DigestMismatchError,
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnknownCodecError,
    UnsupportedVersionError,
)

SCHEMA = Schema(
    (
        TensorSpec("w", (3, 4)),
        TensorSpec("b", ()),
        TensorSpec("none", (0, 7)),
        TensorSpec("z", (6,)),
    )
)
RAW_BYTES = 4 * SCHEMA.parameters
BY_CODEC = pytest.mark.parametrize("codec", CODEC_NAMES)


def tensors_of(seed: int, scale: float = 1.0) -> Tensors:
    chance = np.random.default_rng(seed)
    made = {
        spec.name: np.asarray(chance.standard_normal(spec.shape) * scale, np.float32)
        for spec in SCHEMA.tensors
    }
    made["z"] = np.zeros(6, np.float32)
    return made


def sealed(
    compressed: bytes,
    *,
    content_bytes: int,
    codec: int = 1,
    layout: int = 1,
    schema: Schema = SCHEMA,
) -> bytes:
    """A payload whose own check holds, whatever is inside: what an attacker would send."""
    header = _HEADER.pack(codec, layout, bytes.fromhex(schema.digest)[:8], content_bytes)
    return header + _CHECK.pack(zlib.crc32(compressed, zlib.crc32(header))) + compressed


def zstd(content: bytes, *, declare: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=declare).compress(content)


def same(one: Tensors, other: Tensors) -> bool:
    return list(one) == list(other) and all(
        one[name].tobytes() == other[name].tobytes() and one[name].shape == other[name].shape
        for name in one
    )


@BY_CODEC
@settings(max_examples=50)
@given(st.integers(0, 2**32), st.floats(1e-30, 1e30))
def test_tensors_come_back_with_names_shapes_and_order(codec: str, seed: int, scale: float) -> None:
    tensors = tensors_of(seed, scale)
    payload = encode(codec, tensors, SCHEMA, seed=seed)
    back = decode(payload, SCHEMA)
    SCHEMA.check(back)
    assert list(back) == [spec.name for spec in SCHEMA.tensors]
    assert not back["z"].any()
    assert codec_of(payload) == codec
    assert len(payload) <= payload_bytes_max(SCHEMA)
    if codec == "raw":
        assert same(back, {spec.name: tensors[spec.name] for spec in SCHEMA.tensors})


@BY_CODEC
def test_encoding_does_not_depend_on_the_order_of_the_dict(codec: str) -> None:
    tensors = tensors_of(1)
    backwards = dict(reversed(tensors.items()))
    assert encode(codec, tensors, SCHEMA, seed=9) == encode(codec, backwards, SCHEMA, seed=9)


@BY_CODEC
def test_what_was_decoded_is_fresh_and_writable(codec: str) -> None:
    payload = encode(codec, tensors_of(1), SCHEMA, seed=0)
    once = decode(payload, SCHEMA)
    once["w"][0, 0] += 1.0
    assert not same(once, decode(payload, SCHEMA))


@BY_CODEC
def test_a_schema_of_nothing_travels(codec: str) -> None:
    assert decode(encode(codec, {}, Schema(()), seed=0), Schema(())) == {}


@BY_CODEC
def test_a_payload_of_noise_stays_within_its_bound(codec: str) -> None:
    schema = Schema((TensorSpec("w", (40_000,)),))
    noise = np.random.default_rng(0).integers(-(2**30), 2**30, 40_000).astype(np.float32)
    assert len(encode(codec, {"w": noise}, schema, seed=0)) <= payload_bytes_max(schema)


@BY_CODEC
def test_every_truncation_is_a_typed_error(codec: str) -> None:
    payload = encode(codec, tensors_of(2), SCHEMA, seed=0)
    for end in range(len(payload)):
        with pytest.raises((TruncatedError, DigestMismatchError)):
            decode(payload[:end], SCHEMA)


@BY_CODEC
def test_every_bit_flip_is_a_typed_error_or_the_same_arrays(codec: str) -> None:
    payload = encode(codec, tensors_of(3), SCHEMA, seed=0)
    expected = decode(payload, SCHEMA)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        try:
            assert same(decode(bytes(damaged), SCHEMA), expected)
        except RemoteProtocolError:
            continue


@BY_CODEC
def test_a_bit_flipped_on_purpose_under_a_right_check_gives_finite_tensors_or_a_typed_error(
    codec: str,
) -> None:
    payload = encode(codec, tensors_of(4), SCHEMA, seed=0)
    content = zstandard.ZstdDecompressor().decompress(payload[HEADER_BYTES:])
    for bit in range(8 * len(content)):
        forged = bytearray(content)
        forged[bit >> 3] ^= 1 << (bit & 7)
        try:
            SCHEMA.check(
                decode(
                    sealed(
                        zstd(bytes(forged)),
                        content_bytes=len(content),
                        codec=CODECS[codec].number,
                    ),
                    SCHEMA,
                )
            )
        except RemoteProtocolError:
            continue


@given(st.sampled_from(CODEC_NAMES), st.binary(max_size=4 * 20))
def test_any_content_is_finite_tensors_or_a_typed_error(codec: str, content: bytes) -> None:
    payload = sealed(zstd(content), content_bytes=len(content), codec=CODECS[codec].number)
    try:
        SCHEMA.check(decode(payload, SCHEMA))
    except RemoteProtocolError:
        return


@given(st.binary(max_size=64))
def test_any_bytes_are_no_payload(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data, SCHEMA)
    with pytest.raises(RemoteProtocolError):
        codec_of(data)


@given(st.binary(max_size=64))
def test_any_compressed_stream_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(sealed(data, content_bytes=RAW_BYTES), SCHEMA)


def test_a_zstd_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = zstd(bytes(2**24))
    assert len(bomb) < 2_000
    with pytest.raises(TooLargeError):
        decode(sealed(bomb, content_bytes=2**24), SCHEMA)
    with pytest.raises(BadCompressionError, match="declares"):
        decode(sealed(bomb, content_bytes=RAW_BYTES), SCHEMA)


def test_a_frame_that_inflates_past_its_own_declared_size_is_refused() -> None:
    frame = bytearray(zstd(bytes(200)))
    # Single segment, one byte of content size behind the descriptor: 200 becomes what raw takes.
    assert frame[5] == 200
    frame[5] = RAW_BYTES
    with pytest.raises(BadCompressionError):
        decode(sealed(bytes(frame), content_bytes=RAW_BYTES), SCHEMA)


def test_a_stream_of_undeclared_size_is_refused() -> None:
    with pytest.raises(BadCompressionError, match="declares -1"):
        decode(sealed(zstd(bytes(RAW_BYTES), declare=False), content_bytes=RAW_BYTES), SCHEMA)


def test_a_second_frame_is_refused() -> None:
    two = zstd(bytes(RAW_BYTES)) + zstd(b"more")
    with pytest.raises(BadCompressionError):
        decode(sealed(two, content_bytes=RAW_BYTES), SCHEMA)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(BadCompressionError):
        decode(sealed(zstd(bytes(RAW_BYTES)) + b"\x00", content_bytes=RAW_BYTES), SCHEMA)
    content = bytes(len(SCHEMA.tensors) + 1)
    longer = sealed(zstd(content), content_bytes=len(content), codec=CODECS["ecq"].number)
    with pytest.raises(TrailingBytesError, match="1 bytes after the last tensor"):
        decode(longer, SCHEMA)


def test_bytes_after_an_empty_frame_are_refused() -> None:
    nothing = Schema(())
    assert decode(sealed(zstd(b""), content_bytes=0, schema=nothing), nothing) == {}
    with pytest.raises(RemoteProtocolError):
        decode(sealed(zstd(b"") + bytes(9), content_bytes=0, schema=nothing), nothing)


def test_a_payload_for_another_schema_is_refused() -> None:
    other = Schema((TensorSpec("w", (4, 3)), *SCHEMA.tensors[1:]))
    with pytest.raises(SchemaMismatchError):
        decode(encode("raw", tensors_of(1), SCHEMA, seed=0), other)


def test_an_unknown_codec_or_layout_is_named() -> None:
    with pytest.raises(UnknownCodecError, match="codec 77"):
        decode(sealed(zstd(b""), content_bytes=0, codec=77), SCHEMA)
    with pytest.raises(UnsupportedVersionError, match="layout 2"):
        decode(sealed(zstd(b""), content_bytes=0, layout=2), SCHEMA)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_both_ways(bad: float) -> None:
    tensors = tensors_of(1)
    tensors["w"][1, 1] = bad
    for codec in CODEC_NAMES:
        with pytest.raises(NotFiniteError, match="w"):
            encode(codec, tensors, SCHEMA, seed=0)
    content = b"".join(tensors[spec.name].tobytes() for spec in SCHEMA.tensors)
    with pytest.raises(NotFiniteError, match="w"):
        decode(sealed(zstd(content), content_bytes=len(content)), SCHEMA)


def test_tensors_that_are_not_the_schemas_are_refused() -> None:
    tensors = tensors_of(1)
    wrong: list[Any] = [
        {k: v for k, v in tensors.items() if k != "b"},
        tensors | {"extra": np.zeros(1, np.float32)},
        tensors | {"z": np.zeros(7, np.float32)},
        tensors | {"z": np.zeros(6, np.float64)},
    ]
    for each in wrong:
        with pytest.raises(SchemaMismatchError):
            encode("raw", each, SCHEMA, seed=0)
    with pytest.raises(LocalProtocolError, match="zip"):
        encode("zip", tensors, SCHEMA, seed=0)
