from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import (
    CallableTrainer,
    ExampleError,
    ExampleStore,
    FreshTrainer,
    Model,
    NumpyTrainer,
    TrainingStoppedError,
)
from wire import Plan, Tensors

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.arange(6)
DATA = ((X, Y), (X[:2], Y[:2]))


def model() -> Model:
    return Model(0, {"w": np.zeros(2, np.float32)})


def never() -> bool:
    return False


class After:
    """True from the n-th time on."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self) -> bool:
        self.count -= 1
        return self.count < 0


def test_a_function_that_returns_tensors_is_a_trainer() -> None:
    def train(tensors: Tensors, x: Any, y: Any, plan: Plan) -> Tensors:
        return {"w": tensors["w"] + np.float32(plan.learning_rate) * x.mean(axis=0) + y.sum()}

    trainer = CallableTrainer(train, lambda: DATA, evaluate=lambda _t, x, _y: float(x.sum()))
    result = trainer.train(model(), Plan(learning_rate=1.0), stop=never)
    assert result.num_examples == 6
    np.testing.assert_allclose(result.tensors["w"], X.mean(axis=0) + 15.0)
    measured = trainer.evaluate(model(), Plan(), stop=never)
    assert (measured.loss, measured.num_examples, measured.metrics) == (6.0, 2, {})


def test_a_function_that_changes_what_it_was_given_may_return_nothing() -> None:
    def train(tensors: Tensors, x: Any, _y: Any, _plan: Plan) -> None:
        tensors["w"] += x[-1]

    result = CallableTrainer(train, (X, Y)).train(model(), Plan(), stop=never)
    assert result.tensors["w"].tolist() == [10.0, 11.0]


def test_a_generator_is_stopped_where_it_yields_and_may_clean_up() -> None:
    seen: list[str] = []

    def train(tensors: Tensors, x: Any, _y: Any, _plan: Plan) -> Iterator[None]:
        try:
            for row in x:
                tensors["w"] += row
                seen.append("batch")
                yield
        finally:
            seen.append("end")

    whole = CallableTrainer(train, (X, Y)).train(model(), Plan(), stop=never)
    assert whole.tensors["w"].tolist() == X.sum(axis=0).tolist()
    seen.clear()
    with pytest.raises(TrainingStoppedError):
        CallableTrainer(train, (X, Y)).train(model(), Plan(), stop=After(2))
    assert seen == ["batch"] * 3 + ["end"]


def test_a_generator_may_return_tensors() -> None:
    def train(tensors: Tensors, x: Any, _y: Any, _plan: Plan) -> Any:
        yield
        return {"w": tensors["w"] + x[0]}

    result = CallableTrainer(train, (X, Y)).train(model(), Plan(), stop=never)
    assert result.tensors["w"].tolist() == [0.0, 1.0]


def test_a_function_that_asks_stop_is_stopped_there() -> None:
    seen: list[int] = []

    def train(_tensors: Tensors, x: Any, _y: Any, _plan: Plan, *, stop: Any) -> None:
        for number, _row in enumerate(x):
            stop()
            seen.append(number)

    with pytest.raises(TrainingStoppedError):
        CallableTrainer(train, (X, Y)).train(model(), Plan(), stop=After(3))
    assert seen == [0, 1, 2]


def test_a_function_that_never_asks_is_not_believed_when_it_was_stopped_meanwhile() -> None:
    trainer = CallableTrainer(lambda t, _x, _y, _p: t, (X, Y))
    with pytest.raises(TrainingStoppedError):
        trainer.train(model(), Plan(), stop=After(0))


def test_metrics_are_the_second_of_what_evaluate_returns() -> None:
    trainer = CallableTrainer(
        lambda *_: None, (X, Y), holdout=(X, Y), evaluate=lambda _t, _x, _y: (0.5, {"accuracy": 1})
    )
    measured = trainer.evaluate(model(), Plan(), stop=never)
    assert (measured.loss, measured.num_examples, measured.metrics) == (0.5, 6, {"accuracy": 1.0})


def test_without_examples_nothing_is_called() -> None:
    def never_called(*_arguments: object) -> None:
        raise AssertionError

    trainer = CallableTrainer(never_called, (X[:0], Y[:0]), evaluate=never_called)
    assert trainer.train(model(), Plan(), stop=never).num_examples == 0
    assert trainer.evaluate(model(), Plan(), stop=never).num_examples == 0
    assert CallableTrainer(never_called, ()).train(model(), Plan(), stop=never).num_examples == 0


def test_something_else_than_tensors_and_arrays_of_other_lengths_are_errors_that_say_so() -> None:
    with pytest.raises(TypeError, match="train returned float"):
        CallableTrainer(lambda *_: 1.0, (X, Y)).train(model(), Plan(), stop=never)
    with pytest.raises(ExampleError, match=r"\[6, 5\]"):
        CallableTrainer(lambda *_: None, (X, Y[:5])).train(model(), Plan(), stop=never)


def test_each_piece_of_work_sees_the_examples_that_have_come_since(tmp_path: Path) -> None:
    fields = {"x": ("float32", (2,)), "y": ("int64", ())}
    with ExampleStore(tmp_path / "examples.sqlite", fields, holdout=0.3) as store:
        plain = CallableTrainer(lambda t, _x, _y, _p: t, store)
        fresh = FreshTrainer(lambda: NumpyTrainer(*store.train(), holdout=store.holdout()))
        manifest = NumpyTrainer.manifest(2, 3)
        counts = []
        for start in (0, 40):
            for number in range(start, start + 40):
                store.add([number, -number], number % 3)
            ours = plain.train(model(), Plan(), stop=never).num_examples
            theirs = fresh.train(Model(0, manifest.complete()), Plan(), stop=never).num_examples
            held = fresh.evaluate(Model(0, manifest.complete()), Plan(), stop=never).num_examples
            assert ours == theirs == start + 40 - held
            counts.append(ours)
        assert counts[0] < counts[1]


def test_a_function_may_be_told_what_to_train() -> None:
    def train(tensors: Tensors, _x: Any, _y: Any, _plan: Plan, trainable: Any) -> Tensors:
        return {name: tensors[name] + np.float32(1.0) for name in trainable}

    head = Model(0, {"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)}, trainable=("v",))
    result = CallableTrainer(train, (X, Y)).train(head, Plan(), stop=never)
    assert set(result.tensors) == {"v"}
