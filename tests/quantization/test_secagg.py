import dataclasses
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantization import SecaggInt
from quantization.secagg import clamp_deviations
from wire import Schema, Tensors, TensorSpec, limits
from wire.errors import (
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TrailingBytesError,
    TruncatedError,
)

Words = NDArray[np.uint32]

SCHEMA = Schema(
    (
        TensorSpec("w", (7, 11)),
        TensorSpec("mine", (5,), part="personal"),
        TensorSpec("b", ()),
        TensorSpec("none", (0, 3)),
        TensorSpec("v", (43,)),
    )
)
CODEC = SecaggInt(
    SCHEMA, round_seed=3, devices_max=10, clip_norm=2.0, modulus_bits=8, keep_fraction=0.25
)
ALL_KEPT = dataclasses.replace(CODEC, keep_fraction=1.0)


def tensors_of(flat: NDArray[np.float64]) -> Tensors:
    shared = SCHEMA.shared
    assert flat.shape == (shared.parameters,)
    values = flat.astype(np.float32)
    tensors: Tensors = {}
    for spec in shared.tensors:
        tensors[spec.name], values = values[: spec.size].reshape(spec.shape), values[spec.size :]
    return tensors


def flat_of(tensors: Tensors) -> NDArray[np.float64]:
    return np.concatenate([np.ravel(tensors[s.name]) for s in SCHEMA.shared.tensors]).astype(float)


def update(seed: int, norm: float = 2.0, kind: str = "normal") -> Tensors:
    chance = np.random.Generator(np.random.Philox(key=seed))
    flat = chance.standard_normal(SCHEMA.shared.parameters)
    if kind == "heavy-tailed":
        flat = chance.standard_t(1.5, flat.size)
        flat[::3] = 0.0
    elif kind == "outlier":
        flat *= 1e-6
        flat[-1] = 1.0
    return tensors_of(flat * (norm / np.linalg.norm(flat)))


def random_words(codec: SecaggInt, seed: int) -> Words:
    raw = np.random.Philox(key=seed).random_raw(codec.words)
    return (raw & np.uint64(codec.modulus - 1)).astype(np.uint32)


def sum_of(codec: SecaggInt, words: list[Words]) -> Words:
    total = codec.zero()
    for each in words:
        total = codec.add(total, each)
    return total


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=10), st.randoms())
def test_the_same_words_in_any_order_give_the_same_sum(
    seeds: list[int], chance: random.Random
) -> None:
    words = [CODEC.encode(update(seed), noise_seed=seed) for seed in seeds]
    shuffled = chance.sample(words, len(words))
    assert (sum_of(CODEC, words) == sum_of(CODEC, shuffled)).all()
    left, right = sum_of(CODEC, words[:4]), sum_of(CODEC, words[4:])
    assert (CODEC.add(left, right) == sum_of(CODEC, words)).all()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=10))
def test_masks_that_cancel_leave_the_sum(seeds: list[int]) -> None:
    words = [CODEC.encode(update(seed), noise_seed=seed) for seed in seeds]
    masks = [random_words(CODEC, seed + 1) for seed in seeds]
    masked = [CODEC.add(one, mask) for one, mask in zip(words, masks, strict=True)]
    negated = [(np.uint32(0) - mask) & np.uint32(CODEC.modulus - 1) for mask in masks]
    assert (sum_of(CODEC, masked + negated) == sum_of(CODEC, words)).all()


def test_a_mask_that_was_left_in_the_sum_is_noticed() -> None:
    words = CODEC.encode(update(1), noise_seed=1)
    masked = CODEC.add(words, random_words(CODEC, 5))
    with pytest.raises(RemoteProtocolError, match="masks are left"):
        CODEC.decode_sum(masked, 1)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1.0, 0.25])
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "outlier"])
def test_the_sum_is_unbiased(kind: str, keep: float) -> None:
    """Over rounds and noise, for updates of half the clip norm, which are never clamped."""
    updates = [update(device, norm=1.0, kind=kind) for device in range(3)]
    exact = np.sum([flat_of(one) for one in updates], axis=0)
    sums = []
    for seed in range(400):
        codec = dataclasses.replace(CODEC, round_seed=seed, keep_fraction=keep)
        words = [codec.encode(one, noise_seed=9 * seed + i) for i, one in enumerate(updates)]
        sums.append(flat_of(codec.decode_sum(sum_of(codec, words), 3)))
    trials = np.array(sums)
    sigma = trials.std(axis=0) / math.sqrt(len(trials))
    assert (np.abs(trials.mean(axis=0) - exact) <= 4 * sigma + 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "outlier"])
def test_at_the_clip_norm_clamping_takes_no_more_than_its_probability(kind: str) -> None:
    """With the fewest levels, where it is seen at all: the sum shrinks by 7%, and does not turn."""
    codec = dataclasses.replace(CODEC, modulus_bits=5, keep_fraction=1.0)
    assert codec.levels == 1
    one = update(4, kind=kind)
    exact = flat_of(one)
    along = []
    for seed in range(400):
        each = dataclasses.replace(codec, round_seed=seed)
        back = each.decode_sum(each.encode(one, noise_seed=seed), 1)
        along.append(flat_of(back) @ exact / (exact @ exact))
    sigma = np.std(along) / math.sqrt(len(along))
    assert 1.0 - codec.clamp_probability - 4 * sigma <= np.mean(along) <= 1.0


def test_with_all_kept_and_many_levels_an_update_comes_back() -> None:
    codec = dataclasses.replace(ALL_KEPT, modulus_bits=24, devices_max=1)
    one = update(8)
    back = codec.decode_sum(codec.encode(one, noise_seed=0), 1)
    assert list(back) == ["w", "b", "none", "v"]
    for name, values in back.items():
        assert values.dtype == np.float32
        assert values.shape == one[name].shape
        assert values.flags.c_contiguous
        assert np.allclose(values, one[name], atol=2e-6)


def test_identical_words_for_identical_seeds() -> None:
    """Byte for byte, on any machine: the values are exact in float32 at every step."""
    schema = Schema((TensorSpec("w", (16,)),))
    codec = SecaggInt(
        schema, round_seed=2024, devices_max=5, clip_norm=4.0, modulus_bits=9, keep_fraction=0.5
    )
    delta = {"w": np.array([1, -1, 0.5, 0, 0, 2, -0.25, 0, 0, 0, 1.5, 0, -1, 0, 0, 0.75], "f4")}
    words = codec.encode(delta, noise_seed=7)
    assert words.tolist() == [3, 494, 7, 505, 12, 508, 486, 510]
    assert codec.pack(words).hex() == "03dc1fc8cf80bf79ff"
    assert (words == codec.encode(delta, noise_seed=7)).all()
    assert (words != codec.encode(delta, noise_seed=8)).any()


@given(st.integers(1, limits.UPDATES_PER_ROUND_MAX), st.integers(2, 24))
def test_the_extremes_of_all_devices_do_not_wrap(devices: int, bits: int) -> None:
    if 2 * devices + 1 > 2**bits:
        with pytest.raises(LocalProtocolError, match="no room"):
            dataclasses.replace(ALL_KEPT, devices_max=devices, modulus_bits=bits)
        return
    codec = dataclasses.replace(ALL_KEPT, devices_max=devices, modulus_bits=bits)
    assert 2 * codec.levels * devices + 1 <= codec.modulus
    assert 2 * (codec.levels + 1) * devices + 1 > codec.modulus
    for level in (codec.levels, -codec.levels):
        # As many additions as there are devices, at once.
        total = np.full(codec.words, level * devices % codec.modulus, np.uint32)
        back = flat_of(codec.decode_sum(total, devices))
        expected = level * devices * codec.step * math.sqrt(codec.parameters)
        assert math.isclose(np.linalg.norm(back), abs(expected), rel_tol=1e-4)


def test_the_largest_words_of_ten_devices_add_to_the_largest_sum() -> None:
    for level in (CODEC.levels, -CODEC.levels):
        words = np.full(CODEC.words, level % CODEC.modulus, np.uint32)
        total = sum_of(CODEC, [words] * 10)
        ten = flat_of(CODEC.decode_sum(total, 10))
        assert np.allclose(ten, 10 * flat_of(CODEC.decode_sum(words, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_count_that_the_parameters_do_not_allow_is_refused(count: int) -> None:
    with pytest.raises(LocalProtocolError, match="not 1 to 10"):
        CODEC.decode_sum(CODEC.zero(), count)


@given(st.integers(2, 24), st.floats(0.001, 1.0), st.integers(0, 2**32))
def test_words_are_packed_in_as_many_bytes_as_the_parameters_say(
    bits: int, keep: float, seed: int
) -> None:
    codec = dataclasses.replace(CODEC, modulus_bits=bits, keep_fraction=keep, devices_max=1)
    words = random_words(codec, seed)
    data = codec.pack(words)
    assert len(data) == codec.payload_bytes == -(-codec.words * bits // 8)
    assert (codec.unpack(data) == words).all()


def test_every_truncation_extension_and_dirty_padding_is_a_typed_error() -> None:
    codec = dataclasses.replace(CODEC, modulus_bits=7)
    data = codec.pack(random_words(codec, 1))
    assert codec.words * 7 % 8
    for size in range(len(data)):
        with pytest.raises(TruncatedError):
            codec.unpack(data[:size])
    with pytest.raises(TrailingBytesError):
        codec.unpack(data + b"\0")
    for bit in range(codec.words * 7 % 8, 8):
        with pytest.raises(RemoteProtocolError, match="not 0"):
            codec.unpack(data[:-1] + bytes([data[-1] | 1 << bit]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NotFiniteError, match="b has"):
        CODEC.encode(update(1) | {"b": np.asarray(bad, np.float32)}, noise_seed=0)


def test_other_tensors_than_the_shared_ones_are_refused() -> None:
    one = update(1)
    others: list[Tensors] = [
        one | {"mine": np.zeros(5, np.float32)},
        {name: values for name, values in one.items() if name != "b"},
        one | {"w": np.zeros((11, 7), np.float32)},
        one | {"w": one["w"].astype(np.float64)},
    ]
    for other in others:
        with pytest.raises(SchemaMismatchError):
            CODEC.encode(other, noise_seed=0)


@pytest.mark.parametrize("scale", [1.01, 1e3, 1e30])
def test_an_update_that_was_not_clipped_is_our_own_mistake(scale: float) -> None:
    long = {name: values * np.float32(scale) for name, values in update(1).items()}
    with pytest.raises(LocalProtocolError, match="clipped at 2"):
        CODEC.encode(long, noise_seed=0)


def test_words_of_other_parameters_are_refused() -> None:
    other = dataclasses.replace(CODEC, keep_fraction=0.5)
    wrong: list[Words] = [
        other.zero(),
        CODEC.zero() + np.uint32(CODEC.modulus),
        CODEC.zero().astype(np.int64),
    ]
    for words, use in itertools.product(
        wrong,
        (lambda w: CODEC.add(CODEC.zero(), w), CODEC.pack, lambda w: CODEC.decode_sum(w, 1)),
    ):
        with pytest.raises(LocalProtocolError):
            use(words)


@pytest.mark.parametrize(
    "change",
    [
        {"devices_max": 0},
        {"devices_max": limits.UPDATES_PER_ROUND_MAX + 1},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"clip_norm": math.nan},
        {"keep_fraction": 0.0},
        {"keep_fraction": 1.1},
        {"keep_fraction": math.nan},
        {"modulus_bits": 0},
        {"modulus_bits": 25},
        {"modulus_bits": 4},
    ],
)
def test_parameters_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        dataclasses.replace(CODEC, **change)


def test_updates_of_zeros_sum_to_zeros() -> None:
    words = [CODEC.encode(SCHEMA.shared.zeros(), noise_seed=seed) for seed in range(10)]
    assert not flat_of(CODEC.decode_sum(sum_of(CODEC, words), 10)).any()


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (0,)])
def test_the_smallest_models_travel_too(shape: tuple[int, ...]) -> None:
    codec = dataclasses.replace(
        ALL_KEPT, schema=Schema((TensorSpec("w", shape),)), modulus_bits=24, keep_fraction=1.0
    )
    one = {"w": np.full(shape, 0.5, np.float32)}
    back = codec.decode_sum(codec.unpack(codec.pack(codec.encode(one, noise_seed=1))), 1)
    assert np.allclose(back["w"], one["w"], atol=1e-4)
    assert back["w"].shape == shape


def test_a_model_that_shares_nothing_sends_nothing() -> None:
    codec = dataclasses.replace(CODEC, schema=Schema((TensorSpec("mine", (4,), part="personal"),)))
    assert codec.pack(codec.encode({}, noise_seed=0)) == b""
    assert codec.decode_sum(codec.zero(), 1) == {}


@settings(max_examples=40)
@given(st.integers(1, 10_000), st.integers(1, 1_000))
def test_no_other_step_has_a_smaller_error(levels: int, devices: int) -> None:
    def error(t: float) -> float:
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        beyond = (1 + t * t) * math.erfc(t / math.sqrt(2)) - 2 * t * density
        return t * t / (6 * levels**2) + devices * beyond

    best = clamp_deviations(levels, devices)
    assert error(best) <= min(error(best * 0.98), error(best * 1.02))
    assert clamp_deviations(levels + 1, devices) > best
