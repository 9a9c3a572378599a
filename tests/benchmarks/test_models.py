from typing import Any

import numpy as np
import pytest

from benchmarks.cnn import Cnn
from benchmarks.models import Mlp, Model, NextToken, RowGradient, cross_entropy, descend

STEP = 1e-6
CHANCE = np.random.Generator(np.random.Philox(key=3))
PLACES_A_TENSOR = 12

CASES: dict[str, tuple[Model, Any, Any]] = {
    "mlp": (Mlp((6, 5, 4, 3)), CHANCE.normal(size=(7, 6)), CHANCE.integers(0, 3, 7)),
    "cnn": (Cnn(16, (3, 4), 5, 3), CHANCE.normal(size=(6, 16, 16)), CHANCE.integers(0, 3, 6)),
    "cnn of 20 pixels": (
        Cnn(20, (2, 3), 5, 3),
        CHANCE.normal(size=(4, 20, 20)),
        CHANCE.integers(0, 3, 4),
    ),
    "next token": (
        NextToken(vocabulary=9, context=3, embedding=4, hidden=6),
        CHANCE.integers(0, 9, (8, 3)),
        CHANCE.integers(0, 9, 8),
    ),
    "next token, some unknown": (
        NextToken(vocabulary=5, context=3, embedding=4, hidden=6, unknown=True),
        CHANCE.integers(-1, 5, (8, 3)),
        CHANCE.integers(0, 5, 8),
    ),
}


def float64(model: Model) -> Any:
    """The initial tensors in float64, biases too away from zero, where ReLU has its kink."""
    return {
        name: values + 0.1 * CHANCE.normal(size=values.shape)
        for name, values in model.initial(seed=5).items()
    }


def dense(gradient: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(gradient, RowGradient):
        return gradient
    whole = np.zeros(shape)
    whole[gradient.rows] = gradient.values
    return whole


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_numerical_differentiation(case: str) -> None:
    model, x, y = CASES[case]
    tensors = float64(model)
    gradients = model.gradients(tensors, x, y)
    assert gradients.keys() == tensors.keys()
    for name, values in tensors.items():
        gradient = dense(gradients[name], values.shape)
        assert gradient.shape == values.shape
        flat = values.reshape(-1)
        for place in CHANCE.permutation(flat.size)[:PLACES_A_TENSOR]:
            kept = flat[place]
            flat[place] = kept + STEP
            above = cross_entropy(model.logits(tensors, x), y)
            flat[place] = kept - STEP
            below = cross_entropy(model.logits(tensors, x), y)
            flat[place] = kept
            numerical = (above - below) / (2 * STEP)
            assert gradient.reshape(-1)[place] == pytest.approx(numerical, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_scaled_as_asked(case: str) -> None:
    model, x, y = CASES[case]
    tensors = float64(model)
    once, thrice = model.gradients(tensors, x, y), model.gradients(tensors, x, y, 3.0)
    for name, values in tensors.items():
        np.testing.assert_allclose(
            3.0 * dense(once[name], values.shape), dense(thrice[name], values.shape), atol=1e-12
        )


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case: str) -> None:
    model, x, y = CASES[case]
    tensors = model.initial(seed=5)
    descend(tensors, model.gradients(tensors, x, y, 0.1), norm_max=0.01)
    assert {values.dtype for values in tensors.values()} == {np.dtype(np.float32)}
    gradients = model.gradients(tensors, x, y, 0.1)
    parts = [part.values if isinstance(part, RowGradient) else part for part in gradients.values()]
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}


def test_of_equal_values_one_alone_gets_the_gradient_of_a_pool() -> None:
    model = Cnn(16, (2, 2), 3, 2)
    tensors: Any = float64(model)
    flat_images = np.ones((2, 16, 16))
    gradients: Any = model.gradients(tensors, flat_images, np.array([0, 1]))
    # Every patch is the same, so a kernel's places cannot differ in what they get.
    np.testing.assert_allclose(np.ptp(gradients["conv0_w"], axis=(0, 1)), 0.0, atol=1e-12)
    np.testing.assert_allclose(gradients["conv0_w"][0, 0, 0], gradients["conv0_b"])


def test_a_step_that_is_too_long_is_shortened() -> None:
    tensors = {"w": np.zeros(2, np.float32), "table": np.zeros((3, 1), np.float32)}
    rows = RowGradient(np.array([2]), np.array([[12.0]], np.float32))
    descend(tensors, {"w": np.array([3.0, 4.0], np.float32), "table": rows}, norm_max=1.3)
    np.testing.assert_allclose(tensors["w"], [-0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(tensors["table"], [[0.0], [0.0], [-1.2]], rtol=1e-6)


def test_a_step_that_is_short_enough_is_taken_whole() -> None:
    tensors = {"w": np.zeros(2, np.float32)}
    descend(tensors, {"w": np.array([3.0, 4.0], np.float32)}, norm_max=5.1)
    assert tensors["w"].tolist() == [-3.0, -4.0]
    descend(tensors, {"w": np.zeros(2, np.float32)}, norm_max=5.0)
    assert tensors["w"].tolist() == [-3.0, -4.0]
