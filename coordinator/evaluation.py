"""How good a version is: on the task's own test data, or on what devices measured themselves."""

import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from coordinator.models import Models
from wire import Plan, Tensors

HOLDOUT_WEIGHT_MAX: Final = 1_000.0
LOSS_MAX: Final = 1e6


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What an evaluator is handed: the model that devices have."""

    version: int
    tensors: Tensors


class Evaluation(Protocol):
    """The result of an evaluation, as `edge_sdk.EvalResult`."""

    @property
    def loss(self) -> float:
        """Mean loss over the examples."""
        ...

    @property
    def num_examples(self) -> int:
        """How many examples were looked at."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """More figures; `accuracy` where it means something."""
        ...


class Evaluator(Protocol):
    """What `task.test()` returns: a trainer that is bound to test data."""

    def evaluate(self, model: ServedModel, plan: Plan, *, stop: Callable[[], bool]) -> Evaluation:
        """Evaluate the model, unless `stop()` says otherwise."""
        ...


def evaluate(evaluator: Evaluator, models: Models, plan: Plan) -> dict[str, float]:
    """Loss and metrics of the latest version on the task's test data."""
    model = ServedModel(models.version, models.whole(models.served))
    result = evaluator.evaluate(model, plan, stop=lambda: False)
    measured = {**result.metrics, "loss": result.loss}
    return {str(name): float(value) for name, value in measured.items() if math.isfinite(value)}


def pooled_metrics(measured: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """What devices said of their base model on their hold-outs, weighted by examples.

    A device's word is bounded: its hold-out weighs no more than `HOLDOUT_WEIGHT_MAX` examples, and
    an accuracy is 0 to 1.
    """
    pooled: dict[str, float] = {}
    for name in ("accuracy", "loss"):
        figures = [
            (
                min(m["base_examples"], HOLDOUT_WEIGHT_MAX),
                min(max(m[f"base_{name}"], 0.0), 1.0 if name == "accuracy" else LOSS_MAX),
            )
            for _, m in measured
            if m.get("base_examples", 0.0) > 0.0 and f"base_{name}" in m
        ]
        total = sum(weight for weight, _ in figures)
        if total > 0.0:
            pooled[name] = sum(weight * value for weight, value in figures) / total
    return pooled


def pooled_evaluations(reports: Sequence[sqlite3.Row]) -> dict[str, float]:
    """What devices measured of a version in an evaluation round, weighted by examples.

    A hold-out weighs no more than `HOLDOUT_WEIGHT_MAX` examples; figures were bounded when they
    were written down.
    """
    pooled: dict[str, float] = {}
    for name in ("accuracy", "loss"):
        figures = [
            (min(float(row["num_examples"]), HOLDOUT_WEIGHT_MAX), float(row[name]))
            for row in reports
            if row[name] is not None
        ]
        total = sum(weight for weight, _ in figures)
        if total > 0.0:
            pooled[name] = sum(weight * value for weight, value in figures) / total
    return pooled
