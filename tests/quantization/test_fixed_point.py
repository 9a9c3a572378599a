import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import FixedPointSum, encode
from wire import Schema, Tensors, TensorSpec, limits
from wire.errors import LocalProtocolError, NotFiniteError, RemoteProtocolError, SchemaMismatchError

SCHEMA = Schema((TensorSpec("w", (2, 3)), TensorSpec("b", ()), TensorSpec("none", (0,))))
ONE = Schema((TensorSpec("w", (1,)),))
WEIGHT_CAP = 100

Updates = list[tuple[Tensors, int]]


def update(seed: int) -> tuple[Tensors, int]:
    chance = np.random.default_rng(seed)
    scale = 10.0 ** chance.integers(-6, 3)
    tensors: Tensors = {
        spec.name: np.asarray(chance.standard_normal(spec.shape) * scale, np.float32)
        for spec in SCHEMA.tensors
    }
    return tensors, int(chance.integers(1, WEIGHT_CAP + 1))


UPDATES = st.lists(st.integers(0, 2**32).map(update), min_size=1, max_size=12)


def total_of(updates: Updates, *, updates_max: int = 64) -> FixedPointSum:
    total = FixedPointSum(SCHEMA, weight_cap=WEIGHT_CAP, updates_max=updates_max)
    for tensors, weight in updates:
        total.add_tensors(tensors, weight)
    return total


def bits(total: FixedPointSum) -> bytes:
    mean, weight = total.finish()
    return b"".join(mean[name].tobytes() for name in mean) + weight.to_bytes(8, "little")


@settings(max_examples=40)
@given(UPDATES, st.randoms(use_true_random=False))
def test_the_same_updates_in_any_order_give_the_same_bits(
    updates: Updates, chance: random.Random
) -> None:
    shuffled = list(updates)
    chance.shuffle(shuffled)
    assert bits(total_of(updates)) == bits(total_of(shuffled))


@settings(max_examples=40)
@given(UPDATES, st.integers(0, 12))
def test_sums_of_parts_merge_to_the_sum_of_all(updates: Updates, cut: int) -> None:
    left, right = total_of(updates[:cut]), total_of(updates[cut:])
    left.merge(right)
    assert bits(left) == bits(total_of(updates))
    assert left.count == len(updates)


@settings(max_examples=40)
@given(UPDATES)
def test_the_mean_is_the_weighted_mean(updates: Updates) -> None:
    total = total_of(updates)
    mean, weight = total.finish()
    assert weight == sum(each for _, each in updates)
    for name, values in mean.items():
        exact = sum(tensors[name].astype(np.float64) * each for tensors, each in updates) / weight
        assert values.dtype == np.float32
        assert np.allclose(values, exact, rtol=1e-6, atol=2.0**-total.fraction_bits)


@given(st.integers(1, limits.WEIGHT_MAX), st.integers(1, limits.UPDATES_PER_ROUND_MAX))
def test_the_largest_sum_that_the_bounds_allow_fits(weight_cap: int, updates_max: int) -> None:
    bits_left = FixedPointSum(ONE, weight_cap=weight_cap, updates_max=updates_max).fraction_bits
    largest = int(limits.UPDATE_VALUE_ABS_MAX) * 2**bits_left * weight_cap * updates_max
    assert largest <= 2**62
    assert bits_left >= 13


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_values_at_the_largest_weight_do_not_wrap(sign: float) -> None:
    total = FixedPointSum(ONE, weight_cap=limits.WEIGHT_MAX, updates_max=8)
    largest = {"w": np.array([sign * limits.UPDATE_VALUE_ABS_MAX], np.float32)}
    for _ in range(8):
        total.add_tensors(largest, limits.WEIGHT_MAX)
    mean, _ = total.finish()
    assert mean["w"].tolist() == [sign * limits.UPDATE_VALUE_ABS_MAX]


def test_a_sum_with_a_larger_weight_cap_cannot_be_merged_past_the_bound() -> None:
    """Both have the same fraction bits, yet sixty-four of the second would not fit."""
    few = FixedPointSum(ONE, weight_cap=2**16, updates_max=1)
    many = FixedPointSum(ONE, weight_cap=2**10, updates_max=2**6)
    assert few.fraction_bits == many.fraction_bits
    few.add_tensors({"w": np.array([limits.UPDATE_VALUE_ABS_MAX], np.float32)}, 2**16)
    with pytest.raises(LocalProtocolError, match="bounds"):
        many.merge(few)


def test_one_update_more_than_was_planned_is_refused() -> None:
    total = total_of([update(1), update(2)], updates_max=2)
    before = bits(total)
    with pytest.raises(LocalProtocolError, match="2 updates"):
        total.add_tensors(*update(3))
    with pytest.raises(LocalProtocolError, match="more than 2"):
        total.merge(total_of([update(3)], updates_max=2))
    assert bits(total) == before


def test_sums_of_other_schemas_do_not_merge() -> None:
    total = total_of([update(1)])
    with pytest.raises(LocalProtocolError):
        total.merge(FixedPointSum(ONE, weight_cap=WEIGHT_CAP, updates_max=64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 4_097.0, -1e30])
def test_a_poisoned_update_leaves_nothing_behind(bad: float) -> None:
    total = total_of([update(1)])
    before = bits(total)
    tensors, _ = update(2)
    # In the last tensor: those before it must not have been added either.
    tensors["b"] = np.asarray(bad, np.float32)
    with pytest.raises(NotFiniteError, match="b"):
        total.add_tensors(tensors, 1)
    assert bits(total) == before
    assert total.count == 1


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_CAP + 1, 2**70])
def test_a_weight_out_of_bounds_is_refused(weight: int) -> None:
    total = total_of([])
    with pytest.raises(LocalProtocolError, match="weight"):
        total.add_tensors(update(1)[0], weight)
    assert total.count == 0


def test_a_payload_is_decoded_and_added_or_nothing_happens() -> None:
    total = total_of([])
    tensors, weight = update(4)
    payload = encode("raw", tensors, SCHEMA, seed=0)
    total.add(payload, weight)
    assert bits(total) == bits(total_of([(tensors, weight)]))
    with pytest.raises(RemoteProtocolError):
        total.add(payload[:-1], weight)
    assert bits(total) == bits(total_of([(tensors, weight)]))


def test_tensors_of_another_shape_are_refused_not_broadcast() -> None:
    tensors, _ = update(1)
    with pytest.raises(SchemaMismatchError):
        total_of([]).add_tensors(tensors | {"w": np.zeros((1, 3), np.float32)}, 1)


def test_the_mean_of_nothing_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="no updates"):
        total_of([]).finish()
    for cap, count in ((0, 1), (1, 0)):
        with pytest.raises(LocalProtocolError, match="at least 1"):
            FixedPointSum(SCHEMA, weight_cap=cap, updates_max=count)


def test_small_values_keep_their_worth_beside_the_largest_cap() -> None:
    """At the protocol's widest bounds an update is still summed to a ten-thousandth."""
    total = FixedPointSum(
        ONE, weight_cap=limits.WEIGHT_MAX, updates_max=limits.UPDATES_PER_ROUND_MAX
    )
    total.add_tensors({"w": np.array([0.001], np.float32)}, 1)
    mean, _ = total.finish()
    assert math.isclose(float(mean["w"][0]), 0.001, abs_tol=2.0**-14)
