from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.config import Rounds
from edge_sdk import DeviceInfo, EvalResult, Model, TrainResult
from edge_sdk.trainer import Stop
from tests.support.loopback import Loopback
from wire import Manifest, Plan, Tensors

ROUNDS = Rounds(count=3, cohort=4, quorum=1.0, deadline_s=60.0)
SHARED = {"layer.weight", "norm.weight"}


class Trainer:
    """Moves everything by an amount of its own, as a model with batch normalization would."""

    def __init__(self, amount: float) -> None:
        self.amount = np.float32(amount)

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:  # noqa: ARG002 - the Protocol's
        tensors: dict[str, Any] = {n: t + self.amount for n, t in model.tensors.items()}
        counted = model.tensors["norm.num_batches_tracked"].astype(np.int64) + 5
        tensors["norm.num_batches_tracked"] = counted
        return TrainResult(tensors, 10)

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        return EvalResult(float(model.tensors["norm.running_mean"].mean()), 4)


class Task:
    def model(self) -> Manifest:
        made: dict[str, Any] = {
            "layer.weight": np.zeros(4, np.float16),
            "norm.weight": np.ones(2, np.float64),
            "norm.running_mean": np.zeros(2, np.float32),
            "norm.running_var": np.ones(2, np.float32),
            "norm.num_batches_tracked": np.array(0),
        }
        return Manifest(made)

    def trainer(self, device: DeviceInfo) -> Trainer:
        return Trainer(0.5 * (device.seed + 1))


class Seen:
    """What the task's test data would be measured on."""

    def __init__(self) -> None:
        self.tensors: list[Tensors] = []

    def evaluate(self, model: Any, plan: Plan, *, stop: Any) -> EvalResult:  # noqa: ARG002 - the Protocol's
        self.tensors.append(model.tensors)
        return EvalResult(0.1, 5, {"accuracy": 0.5})


@pytest.fixture
def played(tmp_path: Path) -> tuple[Loopback, Seen]:
    seen = Seen()
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS, task=Task(), evaluator=seen)
    loopback.start()
    loopback.play()
    assert loopback.coordinator.models.version == 3
    return loopback, seen


def test_statistics_and_counters_never_reach_the_coordinator(
    played: tuple[Loopback, Seen],
) -> None:
    loopback, seen = played
    assert set(loopback.coordinator.models.served) == SHARED
    # It evaluates the whole model: what did not travel is as the task made it.
    for tensors in seen.tensors:
        assert tensors["norm.running_mean"].tolist() == [0.0, 0.0]
        assert tensors["norm.running_var"].tolist() == [1.0, 1.0]
        assert tensors["norm.num_batches_tracked"] == 0.0
    assert (seen.tensors[-1]["layer.weight"] > 0.0).all()


def test_a_released_model_has_the_devices_own_statistics(played: tuple[Loopback, Seen]) -> None:
    loopback, _ = played
    whole = loopback.coordinator.models.served
    for number, device in enumerate(loopback.devices):
        released = device.released
        assert released.version == 3
        assert list(released.tensors) == list(Task().model().tensors)
        for name in SHARED:
            np.testing.assert_array_equal(released.tensors[name], whole[name])
        mean = released.tensors["norm.running_mean"]
        np.testing.assert_array_equal(mean, np.full(2, 1.5 * (number + 1)))
        assert released.tensors["norm.num_batches_tracked"] == 15.0


def test_devices_evaluate_with_their_own_statistics(played: tuple[Loopback, Seen]) -> None:
    loopback, _ = played
    store = loopback.coordinator.store
    losses = {metrics["base_loss"] for _, metrics in store.update_metrics(3)}
    assert losses == {1.0 * (number + 1) for number in range(4)}
