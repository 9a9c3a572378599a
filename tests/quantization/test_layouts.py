"""What a peer may do to the bytes of a payload or a bundle, and what it gets for it."""

import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from quantization import (
    CODEC_NAMES,
    Bundle,
    Step,
    apply_bundle,
    codec_of,
    decode,
    encode,
    pack_bundle,
    payload_bytes_max,
    unpack_bundle,
)
from quantization.codecs import BY_NUMBER, CODECS
from quantization.payload import HEADER_BYTES
from tests.wire.make_vectors import LONG, MODEL, SHARED, example_tensors, payload_around
from wire import Schema, TensorSpec, limits
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

DENSE = example_tensors()["dense"][1]
PAYLOADS = {codec: encode(codec, DENSE, SHARED, seed=1) for codec in CODEC_NAMES}
every_codec = pytest.mark.parametrize("codec", CODEC_NAMES)
SMALL = Schema((TensorSpec("w", (11,)), TensorSpec("b", ()), TensorSpec("e", (0,))))


# -- payloads ----------------------------------------------------------------------------------


@every_codec
def test_every_truncation_of_a_payload_is_a_protocol_error(codec: str) -> None:
    for size in range(len(PAYLOADS[codec])):
        with pytest.raises((TruncatedError, DigestMismatchError)):
            decode(PAYLOADS[codec][:size], SHARED)


@every_codec
def test_every_bit_of_a_payload_matters(codec: str) -> None:
    for bit in range(8 * len(PAYLOADS[codec])):
        flipped = bytearray(PAYLOADS[codec])
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(
            (DigestMismatchError, UnknownCodecError, UnsupportedVersionError, SchemaMismatchError)
        ):
            decode(bytes(flipped), SHARED)


@every_codec
def test_a_byte_behind_a_payload_is_a_digest_mismatch(codec: str) -> None:
    with pytest.raises(DigestMismatchError):
        decode(PAYLOADS[codec] + b"\x00", SHARED)


@every_codec
def test_a_payload_of_another_schema_is_a_mismatch(codec: str) -> None:
    for other in (MODEL, LONG, Schema(SHARED.tensors[::-1])):
        with pytest.raises(SchemaMismatchError):
            decode(PAYLOADS[codec], other)


@every_codec
def test_a_payload_is_no_larger_than_the_schema_implies(codec: str) -> None:
    chance = np.random.default_rng(5)
    noisy = {"w": chance.standard_normal(64).astype(np.float32)}
    assert len(encode(codec, noisy, LONG, seed=1)) <= payload_bytes_max(LONG)


@given(content=st.binary(max_size=80), number=st.sampled_from(sorted(BY_NUMBER)))
def test_any_content_decodes_to_finite_values_or_is_a_protocol_error(
    content: bytes, number: int
) -> None:
    try:
        tensors = decode(payload_around(content, number, SMALL), SMALL)
    except RemoteProtocolError:
        return
    SMALL.check(tensors)


@given(st.data())
def test_a_damaged_content_decodes_to_finite_values_or_is_a_protocol_error(
    data: st.DataObject,
) -> None:
    codec = data.draw(st.sampled_from(CODEC_NAMES))
    payload = PAYLOADS[codec]
    content = bytearray(zstandard.ZstdDecompressor().decompress(payload[HEADER_BYTES:]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for made in (bytes(content), cut):
        try:
            tensors = decode(payload_around(made, payload[0], SHARED), SHARED)
        except RemoteProtocolError:
            continue
        SHARED.check(tensors)


@given(st.binary(max_size=60))
def test_noise_is_no_payload(noise: bytes) -> None:
    for read in (codec_of, lambda data: decode(data, SHARED)):
        with pytest.raises(RemoteProtocolError):
            read(noise)


def test_an_unknown_codec_is_named() -> None:
    for number in set(range(256)) - set(BY_NUMBER):
        with pytest.raises(UnknownCodecError, match=str(number)):
            decode(payload_around(b"", number, SHARED), SHARED)


def test_another_layout_is_an_unsupported_version() -> None:
    payload = bytearray(PAYLOADS["raw"])
    payload[1] = 2
    with pytest.raises(UnsupportedVersionError):
        decode(bytes(payload), SHARED)


def around(body: bytes, content_bytes: int) -> bytes:
    """A `raw` payload for `LONG` around any body, its header right."""
    head = struct.pack("<BB8sI", 1, 1, bytes.fromhex(LONG.digest)[:8], content_bytes)
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(2**24))
    with pytest.raises(TooLargeError):
        decode(around(bomb, 2**24), LONG)
    with pytest.raises(BadCompressionError):
        decode(around(bomb, 256), LONG)


def test_a_stream_without_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(BadCompressionError):
        decode(around(compressor.compress(bytes(256)), 256), LONG)


def test_what_is_not_one_zstd_frame_is_refused() -> None:
    good = zstandard.ZstdCompressor().compress(bytes(256))
    for body in (b"", b"zstd", good[:-1], good + b"\x00", good + good, b"\x50\x2a\x4d\x18" + good):
        with pytest.raises(BadCompressionError):
            decode(around(body, 256), LONG)


def content_for(codec: str, content: bytes) -> bytes:
    return payload_around(content, CODECS[codec].number, LONG)


SCALE = struct.pack("<f", 1.0)
BAD_CONTENTS: dict[str, tuple[str, bytes, type[RemoteProtocolError]]] = {
    "raw short": ("raw", bytes(255), TruncatedError),
    "raw nan": ("raw", bytes(252) + b"\x00\x00\xc0\x7f", NotFiniteError),
    "raw infinite": ("raw", bytes(252) + b"\x00\x00\x80\x7f", NotFiniteError),
    "f16 nan": ("f16", SCALE + bytes(126) + b"\x00\x7e", NotFiniteError),
    "f16 overflow": ("f16", struct.pack("<f", 3e38) + b"\x00\x40" * 64, NotFiniteError),
    "f16 negative scale": ("f16", struct.pack("<f", -1.0) + bytes(128), NotFiniteError),
    "f16 behind a zero scale": ("f16", bytes(4 + 128), TrailingBytesError),
    "q8 nan scale": ("q8", b"\x00\x00\xc0\x7f" + bytes(64), NotFiniteError),
    "q8 overflow": ("q8", struct.pack("<f", 3e38) + b"\x7f" * 64, NotFiniteError),
    "q8 short": ("q8", SCALE + bytes(63), TruncatedError),
    "zero, then more": ("ecq_sr", b"\x00\x00", TrailingBytesError),
    "no mode": ("ecq_sr", b"", TruncatedError),
    "unknown mode": ("ecq_sr", b"\x04" + bytes(64), RemoteProtocolError),
    "no step": ("ecq_sr", b"\x02" + b"\x01" * 64, TruncatedError),
    "infinite step": ("ecq_sr", b"\x02" + b"\x01" * 64 + b"\x00\x00\x80\x7f", NotFiniteError),
    "no level": ("ecq", b"\x02" + b"\x01" * 64 + SCALE, TruncatedError),
    "step overflow": (
        "ecq",
        b"\x03" + b"\xff\x7f" * 64 + struct.pack("<ff", 3e38, 1.0),
        NotFiniteError,
    ),
    "digit above 242": ("ecq_sr", b"\x01" + bytes(4) + b"\xf3" * 13 + SCALE, RemoteProtocolError),
    "too many escapes": ("ecq_sr", b"\x01\x41\x00\x00\x00" + bytes(100), RemoteProtocolError),
    "huge escapes": ("ecq_sr", b"\x01\xff\xff\xff\xff" + bytes(100), RemoteProtocolError),
    "escape out of range": (
        "ecq_sr",
        b"\x01" + struct.pack("<IIh", 1, 64, 5) + b"\x79" * 13 + SCALE,
        RemoteProtocolError,
    ),
    "escapes out of order": (
        "ecq_sr",
        b"\x01" + struct.pack("<IIIhh", 2, 9, 3, 5, 5) + b"\x79" * 13 + SCALE,
        RemoteProtocolError,
    ),
    "an escape twice": (
        "ecq_sr",
        b"\x01" + struct.pack("<IIIhh", 2, 9, 9, 5, 5) + b"\x79" * 13 + SCALE,
        RemoteProtocolError,
    ),
    "an escape that is none": (
        "ecq_sr",
        b"\x01" + struct.pack("<IIh", 1, 9, 1) + b"\x79" * 13 + SCALE,
        RemoteProtocolError,
    ),
}


@pytest.mark.parametrize("what", BAD_CONTENTS)
def test_a_content_that_no_encoder_writes_is_refused(what: str) -> None:
    codec, content, error = BAD_CONTENTS[what]
    with pytest.raises(error) as caught:
        decode(content_for(codec, content), LONG)
    assert type(caught.value) is error


# -- bundles -----------------------------------------------------------------------------------

CHAIN = (Step(4, PAYLOADS["ecq"]), Step(7, PAYLOADS["q8"]))
BUNDLE = pack_bundle(3, CHAIN)


def test_every_truncation_of_a_bundle_is_truncated() -> None:
    for size in range(len(BUNDLE)):
        with pytest.raises(TruncatedError):
            unpack_bundle(BUNDLE[:size])


def test_bytes_behind_a_bundle_are_trailing_bytes() -> None:
    with pytest.raises(TrailingBytesError):
        unpack_bundle(BUNDLE + b"\x00")


@given(st.binary(max_size=60) | st.binary(max_size=40).map(BUNDLE[:11].__add__))
def test_noise_is_no_bundle(noise: bytes) -> None:
    try:
        bundle = unpack_bundle(noise)
    except RemoteProtocolError:
        return
    assert pack_bundle(bundle.from_version, bundle.steps) == noise


@given(
    from_version=st.integers(-1, 2**40),
    gaps=st.lists(st.integers(1, 2**20), min_size=1, max_size=limits.DELTAS_PER_BUNDLE_MAX),
    payload=st.binary(max_size=10),
)
def test_a_bundle_is_unpacked_as_it_was_packed(
    from_version: int, gaps: list[int], payload: bytes
) -> None:
    steps = tuple(Step(int(v), payload) for v in from_version + np.cumsum(gaps, dtype=np.int64))
    assert unpack_bundle(pack_bundle(from_version, steps)) == Bundle(from_version, steps)


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (struct.pack("<BqH", 2, 3, 1), UnsupportedVersionError),
        (struct.pack("<BqH", 1, 3, 0), TooLargeError),
        (struct.pack("<BqH", 1, 3, 65), TooLargeError),
        (struct.pack("<BqH", 1, -2, 1), RemoteProtocolError),
        (struct.pack("<BqH", 1, -(2**63), 1), RemoteProtocolError),
        (struct.pack("<BqH", 1, 4, 2), RemoteProtocolError),
    ],
)
def test_a_head_that_no_packer_writes_is_refused(
    head: bytes, error: type[RemoteProtocolError]
) -> None:
    with pytest.raises(error):
        unpack_bundle(head + BUNDLE[11:])


def test_versions_that_do_not_rise_are_refused() -> None:
    for versions in ((4, 4), (5, 4), (3, 4)):
        steps = tuple(Step(version, b"") for version in versions)
        with pytest.raises(RemoteProtocolError, match="version"):
            unpack_bundle(pack_bundle(3, steps))


def test_a_bundle_of_no_or_too_many_steps_is_not_packed() -> None:
    for count in (0, limits.DELTAS_PER_BUNDLE_MAX + 1):
        with pytest.raises(LocalProtocolError):
            pack_bundle(0, tuple(Step(number + 1, b"") for number in range(count)))


def test_a_chain_needs_what_it_starts_from() -> None:
    with pytest.raises(SchemaMismatchError):
        apply_bundle(unpack_bundle(BUNDLE), SHARED, {})


def test_sums_that_leave_float32_are_not_finite() -> None:
    huge = {"w": np.full(64, 3e38, np.float32)}
    content = struct.pack("<64f", *[3e38] * 64)
    bundle = Bundle(0, (Step(1, content_for("raw", content)),))
    with pytest.raises(NotFiniteError):
        apply_bundle(bundle, LONG, huge)


def test_what_is_held_is_not_changed() -> None:
    held = {name: array.copy() for name, array in DENSE.items()}
    apply_bundle(unpack_bundle(BUNDLE), SHARED, held)
    assert all((held[name] == array).all() for name, array in DENSE.items())
