"""A task whose devices have their model from the coordinator: `w` is learned, `table` is frozen."""

from typing import Final

import numpy as np

from edge_sdk import DeviceInfo, EvalResult, Model, TrainResult
from edge_sdk.trainer import Stop
from tests.wire.make_descriptions import artefact_of
from wire import Manifest, Plan

# In chunks of 3 KB, the smallest, it has some 28.
TABLE: Final = 20_000


class DescribedTask:
    """The model of a federation; `frozen` and `file` may be others after a restart."""

    def __init__(self, *, frozen: float = 0.25, file: bytes = b"") -> None:
        self._frozen = frozen
        self._file = file

    def model(self) -> Manifest:
        """The same on every machine."""
        tensors = {
            "w": np.arange(8, dtype=np.float32),
            "table": np.full(TABLE, self._frozen, np.float32),
            "own": np.zeros(2, np.float32),
        }
        parts = {"table": "frozen", "own": "personal"}
        made = Manifest(tensors, parts=parts)  # type: ignore[arg-type] # literals, widened
        if not self._file:
            return made
        return Manifest(tensors, parts=made.parts, artefact=artefact_of(made, self._file))

    def trainer(self, device: DeviceInfo) -> "Nudge":
        """One that knows which model the coordinator has sent."""
        return Nudge(device)


class Nudge:
    """Moves `w` by the device's seed, and says which table it was given."""

    def __init__(self, device: DeviceInfo) -> None:
        assert device.manifest is not None
        self._by = np.float32(device.seed + 1)
        self._manifest = device.manifest

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:  # noqa: ARG002 - the Protocol's
        """Add the device's number."""
        assert model.artefact == self._manifest.artefact
        np.testing.assert_array_equal(model.tensors["table"], self._manifest.tensors["table"])
        moved = {"w": model.tensors["w"] + self._by, "own": model.tensors["own"] + self._by}
        return TrainResult(moved, 1, {"frozen": float(model.tensors["table"][0])})

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - as above
        """How large the model has become."""
        return EvalResult(float(np.abs(model.tensors["w"]).mean()), 1)


class TrainerOnly:
    """The same task as a device has it: without a model."""

    def trainer(self, device: DeviceInfo) -> Nudge:
        """One that knows which model the coordinator has sent."""
        return Nudge(device)


task = DescribedTask()
device_task = TrainerOnly()
