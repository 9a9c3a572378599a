import itertools
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import (
    CODEC_NAMES,
    Payload,
    codec_of,
    decode,
    encode,
    payload_bytes_max,
)
from quantization.blocks import blocks_of
from quantization.payload import HEADER_BYTES
from quantization.reader import Reader, varint
from tests.quantization.forge import (
    TROUBLE,
    bell,
    flat_schema,
    heavy,
    outlier,
    schema,
    sealed,
    tensors_of,
)
from wire import Schema, Tensors, TensorSpec
from wire.errors import (
    DigestMismatchError,
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TruncatedError,
)

SCHEMA = schema((3, 4), (), (0, 7), (70,), (6,))
WIDE = schema((70_000,), (3,), (131_072,), (100,), (200, 300))
BY_CODEC = pytest.mark.parametrize("codec", CODEC_NAMES)


def some(made: Schema, salt: int = 1) -> Tensors:
    """A tensor like an update each, the last one zero."""
    values = {
        spec.name: (heavy if i % 2 else bell)(spec.size, salt + i).reshape(spec.shape)
        for i, spec in enumerate(made.tensors)
    }
    values[made.tensors[-1].name][:] = 0.0
    return values


def same(one: Tensors, other: Tensors) -> bool:
    return list(one) == list(other) and all(
        one[name].tobytes() == other[name].tobytes() and one[name].shape == other[name].shape
        for name in one
    )


# -- what comes back -------------------------------------------------------------------------------


@BY_CODEC
@settings(max_examples=10)
@given(st.integers(0, 2**32), st.integers(1, 100))
def test_tensors_come_back_with_names_shapes_and_order(codec: str, seed: int, salt: int) -> None:
    tensors = some(SCHEMA, salt)
    payload = encode(codec, tensors, SCHEMA, seed=seed)
    back = decode(payload, SCHEMA)
    SCHEMA.check(back)
    assert list(back) == [spec.name for spec in SCHEMA.tensors]
    assert not back["t4"].any()
    assert codec_of(payload) == codec
    assert len(payload) <= payload_bytes_max(SCHEMA)
    if codec == "raw":
        assert same(back, tensors)


@BY_CODEC
def test_encoding_does_not_depend_on_the_order_of_the_dict(codec: str) -> None:
    tensors = some(SCHEMA)
    backwards = dict(reversed(tensors.items()))
    assert encode(codec, tensors, SCHEMA, seed=9) == encode(codec, backwards, SCHEMA, seed=9)


@BY_CODEC
def test_encoding_does_not_depend_on_the_layout_in_memory(codec: str) -> None:
    made = schema((20, 30))
    values = bell(600).reshape(20, 30)
    turned = np.asfortranarray(values)
    assert encode(codec, {"t0": values}, made, seed=1) == encode(
        codec, {"t0": turned}, made, seed=1
    )


@BY_CODEC
def test_what_was_decoded_is_fresh_and_writable(codec: str) -> None:
    payload = encode(codec, some(SCHEMA), SCHEMA, seed=0)
    once = decode(payload, SCHEMA)
    once["t0"][0, 0] += 1.0
    assert not same(once, decode(payload, SCHEMA))


@BY_CODEC
def test_a_schema_of_nothing_travels(codec: str) -> None:
    for made in (Schema(()), schema((0, 3), (0,))):
        payload = encode(codec, tensors_of(made, bell(1)), made, seed=0)
        assert len(payload) == HEADER_BYTES
        assert same(decode(payload, made), tensors_of(made, bell(1)))


@BY_CODEC
def test_a_seed_travels_only_where_it_is_needed(codec: str) -> None:
    payload = encode(codec, some(SCHEMA), SCHEMA, seed=0xDEADBEEF)
    seeded = struct.pack("<I", 0xDEADBEEF) in payload[: HEADER_BYTES + 4]
    assert seeded == bool(payload[1] & 128)
    codecs = Payload(payload, SCHEMA).codecs
    assert seeded == bool({"eden", "eden1"} & set(codecs))
    assert codecs[2] is None


def test_a_seed_is_taken_modulo_two_to_the_32() -> None:
    tensors = some(SCHEMA)
    for codec in ("ecq_sr", "eden"):
        one, other = (encode(codec, tensors, SCHEMA, seed=s) for s in (5, 5 + 2**32))
        assert one == other


# -- blocks ----------------------------------------------------------------------------------------


def damaged_in_block(payload: bytes, number: int) -> bytes:
    """A byte of one block changed, and the check made right; as it was if the block has none."""
    starts = [body.at for body in Payload(payload, WIDE)._bodies] + [len(payload)]
    if starts[number + 1] - starts[number] < 2:
        return payload
    damaged = bytearray(payload)
    damaged[starts[number] + 1] ^= 0x5A
    return sealed(bytes(damaged))


@pytest.mark.slow
@BY_CODEC
def test_blocks_one_by_one_are_the_whole_and_need_no_other(codec: str) -> None:
    payload = encode(codec, some(WIDE), WIDE, seed=4)
    expected = decode(payload, WIDE)
    blocks = blocks_of(WIDE)
    assert len(blocks) >= 4
    # Backwards: no block may lean on one before it.
    for number in reversed(range(len(blocks))):
        others = payload
        for other in {0, len(blocks) - 2, len(blocks) - 1} - {number}:
            others = damaged_in_block(others, other)
        assert others != payload
        parts = Payload(others, WIDE).block(number)
        assert [part.piece for part in parts] == list(blocks[number].pieces)
        for part in parts:
            values = np.zeros(part.piece.size, np.float32)
            values[slice(None) if part.positions is None else part.positions] = part.values
            name = WIDE.tensors[part.piece.tensor].name
            stop = part.piece.start + part.piece.size
            assert (values == np.ravel(expected[name])[part.piece.start : stop]).all()


def test_tensors_of_different_codecs_share_a_payload_and_a_block() -> None:
    made = schema((3,), (500,), (500,), (2000,))
    tensors = {
        "t0": bell(3),
        "t1": np.where(np.arange(500) % 50 == 0, heavy(500), 0.0).astype(np.float32),
        "t2": np.zeros(500, np.float32),
        "t3": bell(2000),
    }
    payload = encode("auto", tensors, made, seed=1)
    assert Payload(payload, made).codecs == ("f16", "ecq_sr", "ecq_sr", "eden")
    back = decode(payload, made)
    assert np.allclose(back["t0"], tensors["t0"], rtol=2**-10)
    assert not back["t2"].any()
    assert codec_of(payload) == "auto"


# -- damage ----------------------------------------------------------------------------------------


@BY_CODEC
def test_every_truncation_is_a_typed_error(codec: str) -> None:
    payload = encode(codec, some(SCHEMA), SCHEMA, seed=0)
    for end in range(len(payload)):
        with pytest.raises((TruncatedError, DigestMismatchError)):
            decode(payload[:end], SCHEMA)
        with pytest.raises((TruncatedError, DigestMismatchError)):
            codec_of(payload[:end])


@BY_CODEC
def test_every_bit_flip_is_a_typed_error(codec: str) -> None:
    payload = encode(codec, some(SCHEMA), SCHEMA, seed=0)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(RemoteProtocolError):
            decode(bytes(damaged), SCHEMA)


@BY_CODEC
def test_every_byte_more_is_a_typed_error(codec: str) -> None:
    payload = encode(codec, some(SCHEMA), SCHEMA, seed=0)
    for more in (b"\x00", b"\xff", payload):
        with pytest.raises(RemoteProtocolError):
            decode(payload + more, SCHEMA)
        with pytest.raises(RemoteProtocolError):
            decode(sealed(payload + more), SCHEMA)


@given(st.binary(max_size=64))
def test_any_bytes_are_no_payload(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data, SCHEMA)
    with pytest.raises(RemoteProtocolError):
        codec_of(data)


def test_a_payload_for_another_schema_is_refused() -> None:
    other = Schema((TensorSpec("t0", (4, 3)), *SCHEMA.tensors[1:]))
    with pytest.raises(SchemaMismatchError):
        decode(encode("raw", some(SCHEMA), SCHEMA, seed=0), other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_both_ways(bad: float) -> None:
    tensors = some(SCHEMA)
    tensors["t0"][1, 1] = bad
    for codec in CODEC_NAMES:
        with pytest.raises(NotFiniteError, match="t0"):
            encode(codec, tensors, SCHEMA, seed=0)
    payload = encode("raw", some(SCHEMA), SCHEMA, seed=0)
    damaged = bytearray(payload)
    damaged[-8:-4] = struct.pack("<f", bad)
    with pytest.raises(NotFiniteError, match="tensor 4"):
        decode(sealed(bytes(damaged)), SCHEMA)


def test_tensors_that_are_not_the_schemas_are_refused() -> None:
    tensors = some(SCHEMA)
    wrong: list[Any] = [
        {k: v for k, v in tensors.items() if k != "t1"},
        tensors | {"extra": np.zeros(1, np.float32)},
        tensors | {"t4": np.zeros(7, np.float32)},
        tensors | {"t4": np.zeros(6, np.float64)},
        tensors | {"t4": np.zeros(6, np.float16)},
        tensors | {"t4": np.zeros(6, np.int32)},
    ]
    for each in wrong:
        with pytest.raises(SchemaMismatchError):
            encode("raw", each, SCHEMA, seed=0)
    with pytest.raises(LocalProtocolError, match="zip"):
        encode("zip", tensors, SCHEMA, seed=0)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [[(65_537,)], [(1,)] * 40, [(40_000,), (), (63,), (30_000,)]])
def test_no_codec_makes_more_than_the_bound_of_any_tensors(shapes: list[tuple[int, ...]]) -> None:
    made = schema(*shapes)
    bound = payload_bytes_max(made)
    for codec, trouble in itertools.product([*CODEC_NAMES, "ecq_sr:0.0001", "ecq:1e-9"], TROUBLE):
        tensors = {
            spec.name: TROUBLE[trouble](spec.size).reshape(spec.shape) for spec in made.tensors
        }
        assert len(encode(codec, tensors, made, seed=1)) <= bound


@given(st.integers(0, 2**35 - 1))
def test_a_varint_comes_back_and_is_as_short_as_it_can_be(value: int) -> None:
    data = varint(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    reader = Reader(memoryview(data))
    assert reader.varint() == value
    assert reader.left == 0
    for end in range(len(data)):
        with pytest.raises(TruncatedError):
            Reader(memoryview(data[:end])).varint()


@pytest.mark.parametrize(
    "data", ["8000", "ff00", "808000", "ffffffffff01", "8080808080", "ffffffffff7f"]
)
def test_a_varint_that_is_longer_than_it_need_be_is_refused(data: str) -> None:
    with pytest.raises(RemoteProtocolError, match="more bytes than it needs"):
        Reader(memoryview(bytes.fromhex(data))).varint()


def test_a_reader_never_reads_past_its_end() -> None:
    reader = Reader(memoryview(b"abc"))
    assert bytes(reader.take(2)) == b"ab"
    with pytest.raises(TruncatedError, match="1 bytes left, 2 wanted"):
        reader.take(2)
    assert reader.left == 1


def test_the_smallest_update_of_a_million_values_is_a_few_bytes() -> None:
    made = flat_schema(2**20)
    payload = encode("ecq_sr", {"t0": np.zeros(2**20, np.float32)}, made, seed=1)
    assert len(payload) == HEADER_BYTES + 3 + 16
    alone = encode("ecq", {"t0": outlier(2**20, 5, 1e6)}, made, seed=1)
    assert len(alone) < 100
