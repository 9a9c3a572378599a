import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import AutoRule, Payload, PayloadBudgetError, decode, encode
from quantization.auto import choose
from quantization.codecs import CODECS
from tests.quantization.forge import TROUBLE, Flat, bell, flat_schema, heavy, schema, tensors_of
from wire import Schema
from wire.errors import LocalProtocolError

CHANCE = np.random.Generator(np.random.Philox(3))
DENSE = CHANCE.standard_normal(20_000).astype(np.float32)
SPARSE = (DENSE * (CHANCE.random(20_000) < 0.02)).astype(np.float32)
ROWS = (DENSE * np.repeat(2.0 ** np.linspace(-4, 4, 50), 400)).astype(np.float32)


def error_of(values: Flat, rule: AutoRule, seeds: int = 4) -> float:
    made = flat_schema(values.size)
    energy = float(np.sum(np.square(values, dtype=np.float64)))
    total = 0.0
    for seed in range(seeds):
        back = decode(encode("auto", {"t0": values}, made, seed=seed, rule=rule), made)["t0"]
        total += float(np.sum(np.square(back.astype(np.float64) - values))) / energy / seeds
    return total


def codec_of_one(values: Flat, rule: AutoRule | None = None) -> str | None:
    made = flat_schema(values.size)
    (codec,) = Payload(encode("auto", {"t0": values}, made, seed=1, rule=rule), made).codecs
    return codec


@pytest.mark.parametrize("error_max", [0.02, 0.1, 0.3, 0.7, 2.0, 6.0])
@pytest.mark.parametrize("values", [DENSE, SPARSE, ROWS], ids=["dense", "sparse", "rows"])
def test_the_error_is_what_the_rule_allows(values: Flat, error_max: float) -> None:
    """Estimated on a sample of 64 runs: off by a third at most, where rows differ by 2**8."""
    assert error_of(values, AutoRule(error_max)) <= 1.35 * error_max


@pytest.mark.parametrize("values", [DENSE, SPARSE, ROWS], ids=["dense", "sparse", "rows"])
def test_more_error_is_fewer_bytes(values: Flat) -> None:
    made = flat_schema(values.size)
    sizes = [
        len(encode("auto", {"t0": values}, made, seed=1, rule=AutoRule(error)))
        for error in (0.02, 0.1, 0.3, 0.7, 2.0, 6.0, 24.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 4


def test_dense_tensors_are_rotated_and_sparse_ones_are_not() -> None:
    assert codec_of_one(DENSE) == "eden"
    assert codec_of_one(SPARSE) == "ecq_sr"


def test_what_is_chosen_is_unbiased() -> None:
    for make in TROUBLE.values():
        for size in (1, 5, 300, 9_000):
            for codecs in choose([make(size)], AutoRule()):
                assert all(codec.unbiased for codec in codecs)


def test_few_values_travel_as_floats_and_zeros_as_nothing() -> None:
    assert codec_of_one(bell(4)) == "f16"
    assert codec_of_one(np.zeros(4, np.float32)) == "ecq_sr"
    assert codec_of_one(np.full(9_000, 1e-45, np.float32)) is not None


def test_an_error_of_almost_nothing_is_floats() -> None:
    assert codec_of_one(DENSE, AutoRule(1e-6)) == "f16"
    assert error_of(DENSE, AutoRule(1e-6), 1) <= 1e-6


def test_no_codec_that_was_named_does_better_at_the_same_error() -> None:
    """Steps are tried in quarters: to a tenth."""
    made = flat_schema(DENSE.size)
    rule = AutoRule(0.8)
    size = len(encode("auto", {"t0": DENSE}, made, seed=1, rule=rule))
    for spec in ("eden:1.5", "eden:2", "ecq_sr:1", "ecq_sr:1.4", "q4", "eden1"):
        payload = encode(spec, {"t0": DENSE}, made, seed=1)
        error = float(np.sum(np.square(decode(payload, made)["t0"] - DENSE, dtype=np.float64)))
        if error / float(np.sum(np.square(DENSE, dtype=np.float64))) <= 0.8:
            assert size <= 1.1 * len(payload), spec


# -- budgets ---------------------------------------------------------------------------------------

LAYERS = schema((40, 100), (40,), (10, 40), (10,))


@settings(max_examples=6)
@given(st.integers(150, 3_000), st.integers(1, 20))
def test_a_budget_is_kept_or_refused(budget: int, salt: int) -> None:
    tensors = tensors_of(LAYERS, heavy(5_000, salt))
    rule = AutoRule(payload_bytes_max=budget)
    try:
        payload = encode("auto", tensors, LAYERS, seed=1, rule=rule)
    except PayloadBudgetError as error:
        assert str(budget) in str(error)  # noqa: PT017 - the text is half of the property
        return
    assert len(payload) <= budget
    LAYERS.check(decode(payload, LAYERS))


def test_a_budget_that_is_not_needed_changes_nothing() -> None:
    tensors = tensors_of(LAYERS, heavy(5_000))
    free = encode("auto", tensors, LAYERS, seed=1)
    assert encode("auto", tensors, LAYERS, seed=1, rule=AutoRule(payload_bytes_max=9_000)) == free


def test_a_budget_costs_error_and_not_more_than_it_must() -> None:
    tensors = tensors_of(LAYERS, heavy(5_000))
    free = len(encode("auto", tensors, LAYERS, seed=1))
    rule = AutoRule(payload_bytes_max=free // 2)
    assert free / 4 < len(encode("auto", tensors, LAYERS, seed=1, rule=rule)) <= free // 2


def test_a_budget_that_nothing_fits_is_our_own_mistake() -> None:
    with pytest.raises(PayloadBudgetError, match="20 are allowed"):
        encode("auto:0.7:20", tensors_of(LAYERS, bell(5_000)), LAYERS, seed=1)
    assert issubclass(PayloadBudgetError, LocalProtocolError)


# -- rules -----------------------------------------------------------------------------------------


def test_a_larger_cohort_bears_more_error() -> None:
    errors = [AutoRule.for_cohort(cohort).error_max for cohort in (0, 1, 10, 100, 10_000)]
    assert errors == sorted(errors)
    assert errors[2] == AutoRule().error_max
    assert errors[0] == errors[1]
    assert math.isclose(errors[3], errors[2] * math.sqrt(10.0))


@given(st.floats(1e-3, 1e3), st.integers(0, 10**7))
def test_a_rule_is_a_spec_and_a_spec_a_rule(error: float, budget: int) -> None:
    rule = AutoRule(error, budget)
    read = AutoRule().with_setting(rule.spec)
    assert read.payload_bytes_max == budget
    assert math.isclose(read.error_max, error, rel_tol=1e-3)
    assert read.with_setting(read.spec) == read


def test_a_spec_goes_before_the_rule_that_is_passed_along() -> None:
    rule = AutoRule(0.1, 5_000)
    assert rule.with_setting("auto") == rule
    assert rule.with_setting("auto:0.5") == AutoRule(0.5, 5_000)
    assert rule.with_setting("auto:0.5:100") == AutoRule(0.5, 100)


def test_a_budget_of_less_than_a_byte_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(LocalProtocolError, match="whole number of bytes"):
        AutoRule().with_setting("auto:0.5:0.3")


def test_a_link_bounds_the_bytes() -> None:
    assert AutoRule(0.5).for_link(1_000.0, 2.0) == AutoRule(0.5, 2_000)
    assert AutoRule(0.5, 100).for_link(1_000.0, 2.0) == AutoRule(0.5, 100)
    assert AutoRule(0.5, 100).for_link(10.0, 2.0) == AutoRule(0.5, 20)
    assert AutoRule().for_link(0.0, 2.0).payload_bytes_max == 1


def test_a_model_without_values_needs_no_choice() -> None:
    for made in (Schema(()), schema((0,))):
        payload = encode("auto", tensors_of(made, bell(1)), made, seed=1)
        assert decode(payload, made).keys() == {spec.name for spec in made.tensors}
    assert set(CODECS) >= {"f16", "ecq_sr", "eden"}


def test_a_budget_is_refused_for_the_fewest_bytes_and_not_for_the_most() -> None:
    made = flat_schema(DENSE.size)
    least = len(encode("auto:1e6:100000", {"t0": SPARSE}, made, seed=0))
    for feedback in (False, True):
        with pytest.raises(PayloadBudgetError) as refused:
            encode("auto:7:20", {"t0": SPARSE}, made, seed=0, feedback=feedback)
        assert f"takes {least} bytes" in str(refused.value)
    assert len(encode(f"auto:7:{least}", {"t0": SPARSE}, made, seed=0)) <= least


@pytest.mark.parametrize("feedback", [False, True])
def test_a_budget_reaches_dense_tensors_whatever_the_error_that_was_asked_for(
    feedback: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    made = flat_schema(DENSE.size)
    payload = encode("auto:1e6:400", {"t0": DENSE}, made, seed=0, feedback=feedback)
    assert len(payload) <= 400


def test_rows_that_the_sample_misses_are_looked_at() -> None:
    """As of an embedding: 20 of 4,000 rows of 64 have changed, none of them in the sample."""
    rows = np.zeros((4_000, 64), np.float32)
    rows[8:28] = DENSE[: 20 * 64].reshape(20, 64)
    values = rows.ravel()
    assert error_of(values, AutoRule(0.5)) < 0.5
