import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk import Model, NumpyTrainer, TrainingStoppedError
from edge_sdk.numpy_trainer import _gradients
from wire import Plan


def never() -> bool:
    return False


def separable(seed: int = 0, n: int = 200) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chance = np.random.default_rng(seed)
    x = chance.standard_normal((n, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (4, 6, 5, 3)])
def test_gradients_match_finite_differences(sizes: tuple[int, ...]) -> None:
    chance = np.random.default_rng(1)
    tensors = {
        name: chance.standard_normal(array.shape).astype(np.float64)
        for name, array in NumpyTrainer.manifest(*sizes).tensors.items()
    }
    x, y = chance.standard_normal((7, 4)), chance.integers(0, 3, 7)
    _loss, gradients = _gradients(tensors, x, y)  # type: ignore[arg-type] # float64, to be exact
    for name, values in tensors.items():
        for at in ((0,) * values.ndim, (-1,) * values.ndim):
            moved = {other: array.copy() for other, array in tensors.items()}
            moved[name][at] += 1e-3
            up = _gradients(moved, x, y)[0]  # type: ignore[arg-type] # as above
            moved[name][at] -= 2e-3
            down = _gradients(moved, x, y)[0]  # type: ignore[arg-type] # as above
            assert gradients[name][at] == pytest.approx((up - down) / 2e-3, abs=1e-3)


def test_training_learns_and_evaluation_says_so() -> None:
    x, y = separable()
    trainer = NumpyTrainer(x[:150], y[:150], holdout=(x[150:], y[150:]))
    model = Model(0, NumpyTrainer.manifest(4, 8, 2, seed=1).tensors)
    result = trainer.train(model, Plan(local_epochs=10, batch=10), stop=never)
    before = trainer.evaluate(model, Plan(), stop=never)
    after = trainer.evaluate(Model(1, result.tensors), Plan(), stop=never)
    assert result.num_examples == 150
    assert after.loss < before.loss
    assert after.metrics["accuracy"] > 0.9


def test_training_leaves_the_model_that_it_was_given_alone() -> None:
    x, y = separable()
    model = Model(0, NumpyTrainer.manifest(4, 2).tensors)
    kept = {name: array.copy() for name, array in model.tensors.items()}
    NumpyTrainer(x, y).train(model, Plan(), stop=never)
    for name, array in kept.items():
        np.testing.assert_array_equal(model.tensors[name], array)


def test_the_same_seeds_give_the_same_bits_and_other_seeds_others() -> None:
    x, y = separable()
    model = Model(0, NumpyTrainer.manifest(4, 8, 2, seed=1).tensors)

    def weights(plan_seed: int, device_seed: int) -> bytes:
        trainer = NumpyTrainer(x, y, seed=device_seed)
        return trainer.train(model, Plan(seed=plan_seed), stop=never).tensors["w0"].tobytes()

    assert weights(1, 2) == weights(1, 2)
    assert len({weights(1, 2), weights(2, 2), weights(1, 3)}) == 3


def test_the_proximal_term_keeps_a_device_near_the_model() -> None:
    x, y = separable()
    model = Model(0, NumpyTrainer.manifest(4, 8, 2, seed=1).tensors)

    def distance(mu: float) -> float:
        plan = Plan(local_epochs=5, proximal_mu=mu)
        tensors = NumpyTrainer(x, y).train(model, plan, stop=never).tensors
        return sum(float(np.abs(tensors[n] - model.tensors[n]).sum()) for n in tensors)

    assert distance(1.0) < distance(0.0)


def test_stop_is_heeded_between_two_batches() -> None:
    x, y = separable()
    calls = iter([False, False, True])
    with pytest.raises(TrainingStoppedError):
        NumpyTrainer(x, y).train(
            Model(0, NumpyTrainer.manifest(4, 2).tensors),
            Plan(batch=10),
            stop=lambda: next(calls),
        )


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((3, 4)), np.zeros(2)),
        (np.zeros(3), np.zeros(3)),
        (np.full((3, 4), np.nan), np.zeros(3)),
        (np.zeros((3, 4)), np.array([0, -1, 0])),
    ],
)
def test_data_that_does_not_fit_is_refused(x: object, y: object) -> None:
    with pytest.raises(ValueError, match="x "):
        NumpyTrainer(x, y)  # type: ignore[arg-type] # that is what is tested


def test_a_head_alone_is_trained_as_it_would_be_with_all_else_held_fixed() -> None:
    x, y = np.random.default_rng(3).normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3
    trainer = NumpyTrainer(x, y, seed=4)
    tensors = NumpyTrainer.manifest(5, 7, 6, 3, seed=2).tensors
    plan = Plan(local_epochs=3, batch=8, learning_rate=0.2, proximal_mu=0.1)
    for trainable in (("w2", "b2"), ("w1",), ("b0", "w2"), ()):
        model = Model(0, tensors, trainable=trainable)
        alone = trainer.train(model, plan, stop=lambda: False).tensors
        expected = {name: array.copy() for name, array in tensors.items()}
        bits = np.random.Philox(key=(plan.seed * 2_654_435_761 + 4) % 2**64)
        for _ in range(plan.local_epochs):
            order = np.argsort(bits.random_raw(len(x)), kind="stable")
            for start in range(0, len(x), plan.batch):
                rows = order[start : start + plan.batch]
                _, gradients = _gradients(expected, x[rows], y[rows])
                for name in trainable:
                    pull = np.float32(plan.proximal_mu) * (expected[name] - tensors[name])
                    expected[name] -= np.float32(0.2) * (gradients[name] + pull)
        for name, array in tensors.items():
            if name in trainable:
                np.testing.assert_allclose(alone[name], expected[name], rtol=0.0, atol=1e-5)
            else:
                assert alone[name].tobytes() == array.tobytes()


def test_what_lies_below_the_head_is_computed_in_batches_that_can_be_stopped() -> None:
    trainer = NumpyTrainer(np.zeros((4, 2)), [0, 1, 0, 1])
    model = Model(0, NumpyTrainer.manifest(2, 3, 2).tensors, trainable=("w1",))
    with pytest.raises(TrainingStoppedError):
        trainer.train(model, Plan(), stop=lambda: True)
    empty = NumpyTrainer(np.zeros((0, 2)), [])
    assert empty.train(model, Plan(), stop=lambda: False).num_examples == 0
