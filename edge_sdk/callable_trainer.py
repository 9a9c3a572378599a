"""Trainers that are made of plain functions: yours, which know nothing of federations.

`CallableTrainer` is two functions and a source of examples. `FreshTrainer` makes another trainer
anew for each piece of work, so that it sees the examples that have come since.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edge_sdk.examples import Arrays, Source, current
from edge_sdk.trainer import (
    EvalResult,
    Model,
    Stop,
    Trainer,
    TrainingStoppedError,
    TrainResult,
)
from edge_sdk.user_code import offer, raising
from wire import Plan, Tensors


class CallableTrainer:
    """Two functions as a trainer.

    Args:
        train: `train(tensors, *arrays, plan)` with the arrays of the source in their order, for
            instance `x, y`. It returns the new tensors, or None when it has changed those that it
            was given. It may ask `stop()` between batches, if it has a parameter of that name, or
            be a generator that yields between batches; else it cannot be stopped before it returns.
            If it has one named `trainable` it is told which tensors to change (`Model.trainable`).
        data: an `ExampleStore`; a function that returns `(train, holdout)`, each a sequence of
            arrays; or the arrays to train on. Asked at each piece of work.
        evaluate: `evaluate(tensors, *arrays)`, called with the hold-out unless that is empty: it
            returns the mean loss, or the loss and a dict of metrics; it may have `stop` too.
        holdout: arrays that are never trained on, instead of those of `data`.
    """

    def __init__(
        self,
        train: Callable[..., Any],
        data: Source,
        *,
        evaluate: Callable[..., Any] | None = None,
        holdout: Sequence[ArrayLike] | None = None,
    ) -> None:
        self._train = train
        self._evaluate = evaluate
        self._data = data
        self._holdout = holdout

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """Call the function with the examples that are there now.

        Raises:
            TrainingStoppedError: `stop()` said so when the function asked or yielded.
        """
        arrays = current(self._data, self._holdout).train
        count = _count(arrays)
        if count == 0:
            return TrainResult({}, 0)
        train = offer(self._train, stop=raising(stop), trainable=model.trainable)
        answer = train(model.tensors, *arrays, plan)
        if isinstance(answer, Generator):
            answer = _step(answer, stop)
        if stop():
            raise TrainingStoppedError("training was stopped")
        tensors = model.tensors if answer is None else answer
        if not isinstance(tensors, Mapping):
            raise TypeError(
                f"train returned {type(answer).__name__}, not a dict of tensors (or None, if it"
                " has changed those that it was given)"
            )
        return TrainResult({name: _plain(value) for name, value in tensors.items()}, count)

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        """Call the function with the hold-out that is there now."""
        arrays = current(self._data, self._holdout).holdout
        count = _count(arrays)
        if self._evaluate is None or count == 0:
            return EvalResult(0.0, 0)
        answer = offer(self._evaluate, stop=raising(stop))(model.tensors, *arrays)
        loss, metrics = answer if isinstance(answer, tuple) else (answer, {})
        return EvalResult(
            float(loss), count, {name: float(value) for name, value in metrics.items()}
        )


class FreshTrainer:
    """A trainer that is made anew for each piece of work: over the examples that are there then.

    Args:
        make: for instance `lambda: NumpyTrainer(*store.train(), holdout=store.holdout())`.
    """

    def __init__(self, make: Callable[[], Trainer]) -> None:
        self._make = make

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """Make it, and train."""
        return self._make().train(model, plan, stop=stop)

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:
        """Make it, and evaluate."""
        return self._make().evaluate(model, plan, stop=stop)


def _count(arrays: Arrays) -> int:
    return len(arrays[0]) if arrays else 0


def _plain(value: Any) -> Any:
    """Scalars and lists as arrays; what is wrong about them, the caller of trainers says."""
    return value if isinstance(value, np.ndarray) else np.asarray(value)


def _step(steps: Generator[Any, None, Tensors | None], stop: Stop) -> Tensors | None:
    """Run a generator to its end, and look at `stop` whenever it yields."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: Tensors | None = end.value
            return answer
        if stop():
            steps.close()
            raise TrainingStoppedError("stopped between two batches")
