import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization import stages
from quantization.chance import Purpose, stream, uniform
from quantization.stages import (
    NO_SCALES,
    Coded,
    Flat,
    Place,
    Stage,
    bfloat16,
    chain,
    energy,
    from_bfloat16,
    nearest,
    range_over,
    rms,
    rms_times,
    stochastic,
    to_bfloat16,
)
from quantization.symbols import SYMBOL_ABS_MAX
from tests.quantization.forge import LARGEST, TINY, TROUBLE, bell

HERE = Place(5)
FLOATS = st.floats(-LARGEST, LARGEST, width=32)
ANY_TENSOR = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)


def adds(number: float, name: str) -> Stage:
    """A stage that adds, and says so."""

    def forward(values: Flat, _place: Place) -> Coded:
        return Coded(values + np.float32(number), (number,))

    def backward(values: Flat, parameters: tuple[float, ...], *_: object) -> Flat:
        assert parameters == (number,)
        return np.asarray(values - np.float32(number), np.float32)

    return Stage(name, forward, backward)


def times(number: float) -> Stage:
    """A stage that multiplies, with scales."""

    def forward(values: Flat, _place: Place) -> Coded:
        return Coded(values * np.float32(number), (), np.array([7], np.uint8))

    def backward(values: Flat, _parameters: tuple[float, ...], scales: object, _at: Place) -> Flat:
        assert np.asarray(scales).tolist() == [7]
        return np.asarray(values / np.float32(number), np.float32)

    return Stage("", forward, backward, local=False, seeded=True, scaled=True)


def test_a_chain_goes_forward_in_order_and_back_in_the_other() -> None:
    made = chain(adds(2.0, "f"), times(3.0), adds(-1.0, "b"))
    assert (made.parameters, made.local, made.seeded, made.scaled) == ("fb", False, True, True)
    coded = made.forward(np.array([1.0, 4.0], np.float32), HERE)
    assert coded.values.tolist() == [8.0, 17.0]
    assert coded.parameters == (2.0, -1.0)
    assert coded.scales.tolist() == [7]
    back = made.backward(coded.values, coded.parameters, coded.scales, HERE)
    assert back.tolist() == [1.0, 4.0]


def test_a_chain_of_one_is_that_one() -> None:
    one = adds(2.0, "f")
    made = chain(one)
    assert (made.parameters, made.local, made.seeded, made.scaled) == ("f", True, False, False)
    assert made.forward(bell(3), HERE).scales is NO_SCALES


# -- numbers ---------------------------------------------------------------------------------------


@given(st.floats(0.0, LARGEST, width=32))
def test_bfloat16_is_the_nearest_and_ties_are_even(value: float) -> None:
    rounded = bfloat16(value)
    bits = to_bfloat16(rounded)
    assert from_bfloat16(bits) == rounded
    near = [from_bfloat16(each) for each in (max(bits - 1, 0), bits, bits + 1)]
    off = [abs(Fraction(each) - Fraction(value)) for each in near]
    assert off[1] == min(off)
    assert off.count(off[1]) == 1 or bits % 2 == 0 or bits == 0


@settings(max_examples=25)
@given(ANY_TENSOR)
def test_energy_is_the_sum_of_squares_at_any_magnitude(values: Flat) -> None:
    exact = sum(Fraction(float(value)) ** 2 for value in values)
    # Squares far below the largest are lost, as they are in any sum of floats.
    assert math.isclose(energy(values), float(exact), rel_tol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537])
def test_rms_of_a_constant_is_its_magnitude(size: int) -> None:
    for scale in (TINY, 1e-38, 1e-20, 1.0, 1e20, LARGEST):
        values = np.full(size, -scale, np.float32)
        assert math.isclose(rms(values), abs(float(values[0])) if size else 0.0, rel_tol=1e-6)


# -- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e-3, 0.02, 0.25, 8.0])
@pytest.mark.parametrize("size", [1, 100, 5_000, 65_537])
@pytest.mark.parametrize("large", [1.0, 3.1e-38, 9.7e36])
def test_no_step_is_so_small_that_a_symbol_leaves_int16(
    factor: float, size: int, large: float
) -> None:
    """A step that was rounded down to bfloat16 once let the outlier wrap to the other sign."""
    values = np.zeros(size, np.float32)
    for tweak in np.linspace(1.0, 2.0, 23):
        values[size // 2] = large * tweak / 2.0
        for make in (stochastic, nearest):
            stage = make(rms_times(factor))
            coded = stage.forward(values, HERE)
            assert coded.values.min() >= 0
            assert coded.values.max() <= SYMBOL_ABS_MAX
            back = stage.backward(coded.values, coded.parameters, NO_SCALES, HERE)
            assert np.abs(back - values).max() <= coded.parameters[0] * 1.01


@given(st.floats(TINY, LARGEST, width=32), st.sampled_from([7, 127]))
def test_the_largest_magnitude_is_within_the_levels(value: float, levels: int) -> None:
    values = np.array([value, -value, 0.0], np.float32)
    coded = stochastic(range_over(levels)).forward(values, HERE)
    assert np.abs(coded.values).max() <= levels
    # And the step is not larger than it need be, but for bfloat16's grid and the smallest step.
    assert coded.parameters[0] <= max(value / levels * (1.0 + 2.0**-5), stages.SMALLEST_STEP)


def test_steps_travel_as_they_are_used() -> None:
    for trouble, make in TROUBLE.items():
        (step,) = stochastic(rms_times(8.0)).forward(make(100), HERE).parameters
        assert bfloat16(step) == step, trouble


# -- rounding --------------------------------------------------------------------------------------


def test_stochastic_is_the_floor_of_the_value_in_steps_and_a_uniform_number() -> None:
    values = bell(65_536 + 50)
    coded = stochastic(rms_times(1.0)).forward(values, Place(3, 4))
    (step,) = coded.parameters
    for number, piece in ((0, slice(0, 65_536)), (1, slice(65_536, None))):
        part = values[piece]
        noise = uniform(stream(3, Purpose.ROUNDING, 4, number), part.size)
        expected = np.floor(part / np.float32(step) + noise)
        assert (coded.values[piece] == expected).all()


@settings(max_examples=25)
@given(st.sampled_from(sorted(TROUBLE)), st.integers(1, 300), st.floats(1e-3, 20.0))
def test_stochastic_is_off_by_less_than_a_step(trouble: str, size: int, factor: float) -> None:
    values = TROUBLE[trouble](size)
    stage = stochastic(rms_times(factor))
    coded = stage.forward(values, HERE)
    back = stage.backward(coded.values, coded.parameters, NO_SCALES, HERE)
    off = np.abs(back.astype(np.float64) - values)
    assert (off <= coded.parameters[0] * (1.0 + 1e-6) + 1e-7 * np.abs(values)).all()


@settings(max_examples=25)
@given(st.sampled_from(sorted(TROUBLE)), st.integers(1, 300), st.floats(1e-3, 20.0))
def test_nearest_is_off_by_half_a_step_or_the_width_of_the_first_cell(
    trouble: str, size: int, factor: float
) -> None:
    values = TROUBLE[trouble](size)
    stage = nearest(rms_times(factor))
    coded = stage.forward(values, HERE)
    back = stage.backward(coded.values, coded.parameters, NO_SCALES, HERE)
    off = np.abs(back.astype(np.float64) - values)
    step = coded.parameters[0]
    bound = np.where(np.abs(coded.values) == 1, step, step / 2.0)
    assert (off <= bound * (1.0 + 1e-6) + 1e-7 * np.abs(values) + TINY).all()


def test_the_first_level_is_the_mean_of_its_cell() -> None:
    values = np.array([0.1, 0.6, -0.8, 1.3, 1.6, -2.0], np.float32)
    stage = nearest(lambda _values: 1.0)
    coded = stage.forward(values, HERE)
    assert coded.values.tolist() == [0, 1, -1, 1, 2, -2]
    assert np.allclose(coded.parameters, (1.0, 0.9))


def test_where_nothing_reaches_the_first_level_signs_are_kept() -> None:
    values = np.array([0.25, -0.1875, 0.0, 0.25], np.float32)
    stage = nearest(rms_times(3.0))
    coded = stage.forward(values, HERE)
    back = stage.backward(coded.values, coded.parameters, NO_SCALES, HERE)
    mean = np.float32(0.6875 / 3.0)
    assert np.allclose(back, np.array([mean, -mean, 0.0, mean]))


@settings(max_examples=25)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-8, 8, width=32)))
def test_the_largest_share_is_kept_first_come_first_of_equals(values: Flat) -> None:
    stage = stages.largest(0.1)
    coded = stage.forward(values, HERE)
    kept = np.asarray(coded.values)
    count = max(1, round(0.1 * values.size))
    order = sorted(range(values.size), key=lambda i: (-abs(values[i]), i))[:count]
    expected = np.zeros_like(values)
    expected[order] = values[order]
    assert kept.tobytes() == expected.tobytes() or (kept == expected).all()


def test_one_sign_and_one_magnitude_are_left() -> None:
    values = np.array([3.0, 0.0, -1.0, 2.0], np.float32)
    coded = stages.sign().forward(values, HERE)
    assert coded.values.tolist() == [1, 0, -1, 1]
    assert coded.parameters == (2.0,)
