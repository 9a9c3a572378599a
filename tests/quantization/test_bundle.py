import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import CODEC_NAMES, Step, apply_bundle, encode, pack_bundle, unpack_bundle
from quantization.bundle import _HEAD, _STEP
from wire import Schema, Tensors, TensorSpec, limits
from wire.errors import (
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnsupportedVersionError,
)

SCHEMA = Schema((TensorSpec("w", (2, 3)), TensorSpec("b", ())))
STEPS = st.lists(st.binary(max_size=20), min_size=1, max_size=6)


def tensors_of(value: float) -> Tensors:
    return {
        "w": np.full((2, 3), value, np.float32),
        "b": np.asarray(-value, np.float32),
    }


def raw(value: float) -> bytes:
    return encode("raw", tensors_of(value), SCHEMA, seed=0)


@settings(max_examples=30)
@given(st.integers(-1, 2**40), st.lists(st.integers(1, 99), min_size=1, max_size=6), st.data())
def test_a_bundle_comes_back(from_version: int, gaps: list[int], data: st.DataObject) -> None:
    version, steps = from_version, []
    for gap in gaps:
        version += gap
        steps.append(Step(version, data.draw(st.binary(max_size=20))))
    bundle = unpack_bundle(pack_bundle(from_version, tuple(steps)))
    assert bundle.from_version == from_version
    assert bundle.steps == tuple(steps)


@settings(max_examples=20)
@given(STEPS)
def test_every_truncation_and_every_trailing_byte_is_a_typed_error(payloads: list[bytes]) -> None:
    packed = pack_bundle(0, tuple(Step(1 + i, each) for i, each in enumerate(payloads)))
    for end in range(len(packed)):
        with pytest.raises(TruncatedError):
            unpack_bundle(packed[:end])
    with pytest.raises(TrailingBytesError):
        unpack_bundle(packed + b"\x00")


@given(st.binary(max_size=64))
def test_any_bytes_are_a_bundle_or_a_typed_error(data: bytes) -> None:
    try:
        bundle = unpack_bundle(data)
    except RemoteProtocolError:
        return
    assert pack_bundle(bundle.from_version, bundle.steps) == data


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_bit_flip_is_a_typed_error_another_version_or_the_same_tensors(codec: str) -> None:
    payload = encode(codec, tensors_of(0.5), SCHEMA, seed=1)
    packed = pack_bundle(3, (Step(4, payload),))
    held = tensors_of(1.0)
    expected = apply_bundle(unpack_bundle(packed), SCHEMA, held)
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        try:
            bundle = unpack_bundle(bytes(damaged))
            applied = apply_bundle(bundle, SCHEMA, held)
        except RemoteProtocolError:
            continue
        relabelled = (bundle.from_version, bundle.steps[0].version) != (3, 4)
        assert relabelled or all((applied[name] == expected[name]).all() for name in expected)


def test_steps_add_up_on_what_is_held() -> None:
    packed = pack_bundle(3, (Step(4, raw(0.5)), Step(7, raw(0.25))))
    applied = apply_bundle(unpack_bundle(packed), SCHEMA, tensors_of(1.0))
    assert (applied["w"] == 1.75).all()
    assert applied["b"] == -1.75
    assert applied["b"].shape == ()


def test_what_is_held_is_not_changed_in_place() -> None:
    held = tensors_of(1.0)
    apply_bundle(unpack_bundle(pack_bundle(0, (Step(1, raw(2.0)),))), SCHEMA, held)
    assert (held["w"] == 1.0).all()


def test_a_snapshot_replaces_whatever_is_held_to_the_bit() -> None:
    zero = {"w": np.full((2, 3), -0.0, np.float32), "b": np.asarray(-0.0, np.float32)}
    packed = pack_bundle(-1, (Step(9, encode("raw", zero, SCHEMA, seed=0)),))
    for held in ({}, tensors_of(5.0)):
        applied = apply_bundle(unpack_bundle(packed), SCHEMA, held)
        assert np.signbit(applied["w"]).all()
        assert np.signbit(applied["b"])


def test_a_chain_gives_the_same_bits_in_one_bundle_or_in_two() -> None:
    payloads = [encode("ecq", tensors_of(0.1 * i), SCHEMA, seed=i) for i in range(1, 5)]
    steps = tuple(Step(i, payload) for i, payload in enumerate(payloads, start=1))
    at_once = apply_bundle(unpack_bundle(pack_bundle(0, steps)), SCHEMA, tensors_of(1.0))
    half = apply_bundle(unpack_bundle(pack_bundle(0, steps[:2])), SCHEMA, tensors_of(1.0))
    both = apply_bundle(unpack_bundle(pack_bundle(2, steps[2:])), SCHEMA, half)
    assert all(at_once[name].tobytes() == both[name].tobytes() for name in at_once)


def test_a_sum_that_leaves_float32_is_refused() -> None:
    held = {"w": np.full((2, 3), 3.4e38, np.float32), "b": np.asarray(0.0, np.float32)}
    step = Step(1, encode("raw", {"w": held["w"] * 0.02, "b": held["b"]}, SCHEMA, seed=0))
    with pytest.raises(NotFiniteError):
        apply_bundle(unpack_bundle(pack_bundle(0, (step,))), SCHEMA, held)


def test_a_delta_for_what_is_not_held_is_refused() -> None:
    bundle = unpack_bundle(pack_bundle(0, (Step(1, raw(1.0)),)))
    with pytest.raises(SchemaMismatchError):
        apply_bundle(bundle, SCHEMA, {})


@pytest.mark.parametrize(("first", "second"), [(4, 4), (5, 4), (3, 9), (0, 1)])
def test_versions_must_grow(first: int, second: int) -> None:
    with pytest.raises(RemoteProtocolError, match="after"):
        unpack_bundle(pack_bundle(3, (Step(first, b""), Step(second, b""))))


def test_a_bundle_from_before_nothing_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="from version -2"):
        unpack_bundle(_HEAD.pack(1, -2, 1) + _STEP.pack(0, 0))


def test_a_count_or_size_that_lies_allocates_nothing() -> None:
    with pytest.raises(TooLargeError):
        unpack_bundle(_HEAD.pack(1, 0, 65_535))
    with pytest.raises(TooLargeError):
        unpack_bundle(_HEAD.pack(1, 0, 0))
    with pytest.raises(TruncatedError):
        unpack_bundle(_HEAD.pack(1, 0, 1) + _STEP.pack(1, 2**32 - 1))


def test_another_layout_is_named() -> None:
    with pytest.raises(UnsupportedVersionError, match="layout 9"):
        unpack_bundle(_HEAD.pack(9, 0, 1) + _STEP.pack(1, 0))


@pytest.mark.parametrize("count", [0, limits.DELTAS_PER_BUNDLE_MAX + 1])
def test_a_bundle_has_one_to_sixty_four_steps(count: int) -> None:
    with pytest.raises(LocalProtocolError):
        pack_bundle(0, tuple(Step(1 + i, b"") for i in range(count)))
