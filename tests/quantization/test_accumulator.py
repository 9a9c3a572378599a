import math
import random
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import CODEC_NAMES, SHARE_UNITS, Accumulator, Portion, decode, encode
from tests.quantization.forge import TROUBLE, bell, flat_schema, heavy, schema, tensors_of
from wire import Schema, Tensors, TensorSpec, limits
from wire.errors import LocalProtocolError, NotFiniteError, RemoteProtocolError, SchemaMismatchError

SCHEMA = schema((2, 3), (), (0,))
ONE = flat_schema(1)
WEIGHT_CAP = 100

Updates = list[tuple[Tensors, int]]


def update(seed: int) -> tuple[Tensors, int]:
    scale = 10.0 ** (seed % 9 - 6)
    tensors: Tensors = {
        spec.name: np.asarray(heavy(spec.size, seed).reshape(spec.shape) * np.float32(scale))
        for spec in SCHEMA.tensors
    }
    return tensors, 1 + seed % WEIGHT_CAP


UPDATES = st.lists(st.integers(0, 2**20).map(update), min_size=1, max_size=12)


def total_of(updates: Updates, *, updates_max: int = 64) -> Accumulator:
    total = Accumulator(SCHEMA, weight_cap=WEIGHT_CAP, updates_max=updates_max)
    for tensors, weight in updates:
        total.add_tensors(tensors, weight)
    return total


def bits(total: Accumulator) -> bytes:
    mean, weight = total.finish()
    return b"".join(mean[name].tobytes() for name in mean) + weight.to_bytes(8, "little")


# -- order -----------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(UPDATES, st.randoms(use_true_random=False), st.integers(1, 5))
def test_any_order_and_any_grouping_give_the_same_bits(
    updates: Updates, chance: random.Random, parts: int
) -> None:
    shuffled = list(updates)
    chance.shuffle(shuffled)
    sums = [total_of(shuffled[part::parts]) for part in range(parts)]
    chance.shuffle(sums)
    first, *others = sums
    for other in others:
        first.merge(other)
    assert bits(first) == bits(total_of(updates))
    assert first.count == len(updates)


@settings(max_examples=15)
@given(UPDATES)
def test_the_sum_is_that_of_big_integers(updates: Updates) -> None:
    """Each weighted value is rounded once, ties to even; what follows is exact."""
    total = total_of(updates)
    mean, weight = total.finish()
    assert weight == sum(each for _, each in updates)
    one = 2**total.fraction_bits
    for spec in SCHEMA.tensors:
        for at, value in enumerate(np.ravel(mean[spec.name])):
            integers = sum(
                round(Fraction(float(np.ravel(tensors[spec.name])[at])) * one * each)
                for tensors, each in updates
            )
            exact = Fraction(integers, one * weight)
            # Divided in float64, then rounded to float32.
            assert value == np.float32(float(np.float64(integers) / (float(one) * weight)))
            assert abs(Fraction(float(value)) - exact) <= abs(exact) * Fraction(1, 2**23)


@settings(max_examples=15)
@given(UPDATES)
def test_the_mean_is_the_weighted_mean(updates: Updates) -> None:
    total = total_of(updates)
    mean, weight = total.finish()
    for name, values in mean.items():
        exact = sum(tensors[name].astype(np.float64) * each for tensors, each in updates) / weight
        assert values.dtype == np.float32
        assert values.shape == updates[0][0][name].shape
        assert np.allclose(values, exact, rtol=1e-6, atol=2.0**-total.fraction_bits)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("trouble", ["bell", "sparse", "outlier, last", "zero", "denormal"])
def test_a_payload_adds_what_it_decodes_to(codec: str, trouble: str) -> None:
    """Also where only the values that are not 0 are looked at."""
    made = schema((40,), (), (700,), (0,), (1,))
    values = np.clip(TROUBLE[trouble](700), -4e3, 4e3)
    tensors = tensors_of(made, values)
    one = Accumulator(made, weight_cap=9, updates_max=9)
    other = Accumulator(made, weight_cap=9, updates_max=9)
    for seed in range(3):
        payload = encode(codec, tensors, made, seed=seed)
        try:
            one.add(payload, 3 + seed)
        except NotFiniteError:  # an estimate may be larger than what was sent
            continue
        other.add_tensors(decode(payload, made), 3 + seed)
    assert (one._sums == other._sums).all()
    assert (one.count, one.total_weight) == (other.count, other.total_weight)


@pytest.mark.slow
def test_several_blocks_add_like_their_tensors_in_any_order() -> None:
    made = schema((70_000,), (3,), (131_072,))
    payloads = [
        encode(codec, tensors_of(made, heavy(70_000, 3 + i)), made, seed=i)
        for i, codec in enumerate(("ecq_sr", "auto", "eden", "raw"))
    ]
    sums = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        total = Accumulator(made, weight_cap=9, updates_max=9)
        for which in order:
            total.add(payloads[which], 1 + which)
        sums.append(total)
    by_tensors = Accumulator(made, weight_cap=9, updates_max=9)
    for which, payload in enumerate(payloads):
        by_tensors.add_tensors(decode(payload, made), 1 + which)
    assert bits(sums[0]) == bits(sums[1]) == bits(by_tensors)


# -- portions --------------------------------------------------------------------------------------

PORTIONS = st.builds(
    Portion,
    st.integers(1, WEIGHT_CAP),
    st.integers(0, SHARE_UNITS),
    st.integers(0, SHARE_UNITS),
)


@settings(max_examples=15)
@given(st.integers(0, 2**20), PORTIONS, PORTIONS, st.sampled_from(["raw", "ecq_sr"]))
def test_what_was_added_is_exchanged_and_taken_back_to_the_bit(
    seed: int, one: Portion, other: Portion, codec: str
) -> None:
    total = total_of([update(7)])
    before = bits(total)
    payload = encode(codec, update(seed)[0], SCHEMA, seed=0)
    total.add(payload, one.weight)
    total.exchange(payload, Portion(one.weight), one)
    between = total._sums.copy()
    total.exchange(payload, one, other)
    total.exchange(payload, other, one)
    assert (total._sums == between).all()
    total.take_back(payload, one)
    assert bits(total) == before
    assert total.count == 1


def test_a_share_counts_of_value_and_weight_and_a_damp_of_the_value_alone() -> None:
    half = SHARE_UNITS // 2
    payload = encode("raw", {"t0": np.array([4.0], np.float32)}, ONE, seed=0)
    nothing = encode("raw", {"t0": np.array([0.0], np.float32)}, ONE, seed=0)
    total = Accumulator(ONE, weight_cap=2, updates_max=2)
    total.add(nothing, 1)
    total.add(payload, 2, share=half)
    assert total.total_weight == 2
    assert total.finish()[0]["t0"].tolist() == [2.0]
    total.exchange(payload, Portion(2, half), Portion(2, half, half))
    assert total.finish()[0]["t0"].tolist() == [1.0]


@pytest.mark.parametrize("codec", ["raw", "ecq_sr"])
def test_adding_and_measuring_tell_the_norm_of_what_was_decoded(codec: str) -> None:
    payload = encode(codec, update(11)[0], SCHEMA, seed=3)
    flat = np.concatenate([np.ravel(values) for values in decode(payload, SCHEMA).values()])
    total = total_of([])
    norm = total.measure(payload)
    assert math.isclose(norm, float(np.linalg.norm(flat.astype(np.float64))), rel_tol=1e-12)
    assert total.count == 0
    assert total.add(payload, 5) == norm


@pytest.mark.parametrize("portion", [Portion(0), Portion(1, -1), Portion(1, 1, SHARE_UNITS + 1)])
def test_a_portion_out_of_its_bounds_changes_nothing(portion: Portion) -> None:
    total = total_of([update(3)])
    payload = encode("raw", update(3)[0], SCHEMA, seed=0)
    before = bits(total)
    with pytest.raises(LocalProtocolError):
        total.exchange(payload, Portion(1), portion)
    assert bits(total) == before


# -- bounds ----------------------------------------------------------------------------------------


@given(st.integers(1, limits.WEIGHT_MAX), st.integers(1, limits.UPDATES_PER_ROUND_MAX))
def test_the_largest_sum_that_the_bounds_allow_fits(weight_cap: int, updates_max: int) -> None:
    bits_left = Accumulator(ONE, weight_cap=weight_cap, updates_max=updates_max).fraction_bits
    largest = int(limits.UPDATE_VALUE_ABS_MAX) * 2**bits_left * weight_cap * updates_max
    assert largest <= 2**62
    assert bits_left >= 13


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_values_at_the_largest_weight_do_not_wrap(sign: float) -> None:
    total = Accumulator(ONE, weight_cap=limits.WEIGHT_MAX, updates_max=8)
    largest = {"t0": np.array([sign * limits.UPDATE_VALUE_ABS_MAX], np.float32)}
    for _ in range(8):
        total.add_tensors(largest, limits.WEIGHT_MAX)
    mean, _ = total.finish()
    assert mean["t0"].tolist() == [sign * limits.UPDATE_VALUE_ABS_MAX]


def test_products_are_of_float64_and_not_of_float32() -> None:
    """NumPy 1 multiplies float32 by a float64 scalar in float32, where 24 bits are left."""
    total = Accumulator(ONE, weight_cap=999_983, updates_max=1)
    value = np.float32(1.0 + 2.0**-23)
    total.add_tensors({"t0": np.array([value])}, 999_983)
    exact = round(Fraction(float(value)) * 999_983 * 2**total.fraction_bits)
    assert total._sums.tolist() == [exact]


def test_a_sum_with_a_larger_weight_cap_cannot_be_merged_past_the_bound() -> None:
    """Both have the same fraction bits, yet sixty-four of the second would not fit."""
    few = Accumulator(ONE, weight_cap=2**16, updates_max=1)
    many = Accumulator(ONE, weight_cap=2**10, updates_max=2**6)
    assert few.fraction_bits == many.fraction_bits
    few.add_tensors({"t0": np.array([limits.UPDATE_VALUE_ABS_MAX], np.float32)}, 2**16)
    with pytest.raises(LocalProtocolError, match="bounds"):
        many.merge(few)


def test_one_update_more_than_was_planned_is_refused() -> None:
    total = total_of([update(1), update(2)], updates_max=2)
    before = bits(total)
    with pytest.raises(LocalProtocolError, match="2 updates"):
        total.add_tensors(*update(3))
    with pytest.raises(LocalProtocolError, match="2 updates"):
        total.add(encode("raw", update(3)[0], SCHEMA, seed=0), 1)
    with pytest.raises(LocalProtocolError, match="more than 2"):
        total.merge(total_of([update(3)], updates_max=2))
    assert bits(total) == before


def test_sums_of_other_schemas_do_not_merge() -> None:
    total = total_of([update(1)])
    with pytest.raises(LocalProtocolError):
        total.merge(Accumulator(ONE, weight_cap=WEIGHT_CAP, updates_max=64))


# -- all or nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 4_097.0, -1e30])
def test_a_poisoned_update_leaves_nothing_behind(bad: float) -> None:
    total = total_of([update(1)])
    before = bits(total)
    tensors, _ = update(2)
    # In the last tensor: those before it must not have been added either.
    tensors["t1"] = np.asarray(bad, np.float32)
    with pytest.raises(NotFiniteError, match="t1"):
        total.add_tensors(tensors, 1)
    if abs(bad) < 1e37:
        with pytest.raises(NotFiniteError, match="t1"):
            total.add(encode("raw", tensors, SCHEMA, seed=0), 1)
    assert bits(total) == before
    assert total.count == 1


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_CAP + 1, 2**70])
def test_a_weight_out_of_bounds_is_refused(weight: int) -> None:
    total = total_of([])
    with pytest.raises(LocalProtocolError, match="weight"):
        total.add_tensors(update(1)[0], weight)
    with pytest.raises(LocalProtocolError, match="weight"):
        total.add(encode("raw", update(1)[0], SCHEMA, seed=0), weight)
    assert total.count == 0


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_a_payload_whose_last_block_is_bad_adds_nothing(codec: str) -> None:
    total = total_of([update(7)])
    before = bits(total)
    payload = encode(codec, update(4)[0], SCHEMA, seed=0)
    for end in range(len(payload)):
        with pytest.raises(RemoteProtocolError):
            total.add(payload[:end], 1)
    assert bits(total) == before
    assert total.count == 1


def test_tensors_of_another_shape_are_refused_not_broadcast() -> None:
    tensors, _ = update(1)
    with pytest.raises(SchemaMismatchError):
        total_of([]).add_tensors(tensors | {"t0": np.zeros((1, 3), np.float32)}, 1)


def test_the_mean_of_nothing_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="no updates"):
        total_of([]).finish()
    for cap, count in ((0, 1), (1, 0)):
        with pytest.raises(LocalProtocolError, match="at least 1"):
            Accumulator(SCHEMA, weight_cap=cap, updates_max=count)


def test_a_model_without_values_has_a_mean_too() -> None:
    total = Accumulator(Schema(()), weight_cap=1, updates_max=1)
    total.add(encode("raw", {}, Schema(()), seed=0), 1)
    assert total.finish() == ({}, 1)


def test_small_values_keep_their_worth_beside_the_largest_cap() -> None:
    """At the protocol's widest bounds an update is still summed to a ten-thousandth."""
    total = Accumulator(ONE, weight_cap=limits.WEIGHT_MAX, updates_max=limits.UPDATES_PER_ROUND_MAX)
    total.add_tensors({"t0": np.array([0.001], np.float32)}, 1)
    mean, _ = total.finish()
    assert math.isclose(float(mean["t0"][0]), 0.001, abs_tol=2.0**-14)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["ecq_sr", "eden"])
def test_memory_does_not_grow_with_the_number_of_updates(codec: str) -> None:
    made = flat_schema(200_000)
    payloads = [encode(codec, {"t0": bell(200_000, 9 + i)}, made, seed=i) for i in range(3)]
    total = Accumulator(made, weight_cap=1, updates_max=100)
    tracemalloc.start()
    peaks = []
    try:
        for count in (3, 30):
            tracemalloc.reset_peak()
            for i in range(count):
                total.add(payloads[i % 3], 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] <= peaks[0] + 50_000
    assert peaks[1] < 16 * 200_000


# -- factors ---------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 30), st.floats(-4.0, 4.0, width=32)),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_discounted_updates_add_the_same_in_any_order_and_to_the_weighted_mean(
    updates: list[tuple[int, int, float]], chance: random.Random
) -> None:
    schema = Schema((TensorSpec("w", (1,)),))
    factors = [(1.0 + staleness) ** -0.5 for _, staleness, _ in updates]
    sums = []
    order = list(range(len(updates)))
    for _ in range(2):
        total = Accumulator(schema, weight_cap=100, updates_max=12)
        for at in order:
            weight, _, value = updates[at]
            tensors = {"w": np.array([value], np.float32)}
            total.add(
                encode("raw", tensors, schema, seed=0),
                weight,
                share=round(factors[at] * SHARE_UNITS),
            )
        sums.append(total.finish()[0]["w"])
        chance.shuffle(order)
    assert sums[0].tobytes() == sums[1].tobytes()
    weights = [weight * factor for (weight, _, _), factor in zip(updates, factors, strict=True)]
    mean = sum(w * value for w, (_, _, value) in zip(weights, updates, strict=True)) / sum(weights)
    assert float(sums[0][0]) == pytest.approx(mean, abs=1e-4)


def test_a_factor_of_one_changes_no_bit() -> None:
    schema = Schema((TensorSpec("w", (3,)),))
    payload = encode("raw", {"w": np.array([0.1, -2.0, 3.3], np.float32)}, schema, seed=0)
    plain, discounted = (Accumulator(schema, weight_cap=9, updates_max=6) for _ in range(2))
    for weight in (7, 9, 1):
        plain.add(payload, weight)
        discounted.add(payload, weight, share=SHARE_UNITS)
    assert plain.finish()[0]["w"].tobytes() == discounted.finish()[0]["w"].tobytes()
    plain.merge(discounted)
    assert plain.finish()[0]["w"].tobytes() == discounted.finish()[0]["w"].tobytes()
