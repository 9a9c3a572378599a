"""Tasks whose training costs next to nothing: what a round takes then is what potluck takes.

A device's update is like a real one (`codec_speed.update_like`), made once; each round sends it
shifted and with a sign of its own, so that codecs see new values and nobody draws random numbers.
"""

import time
from typing import Final

import numpy as np

from benchmarks.codec_speed import SCHEMA, update_like
from edge_sdk import DeviceInfo, EvalResult, Model, TrainResult
from edge_sdk.trainer import Stop
from wire import Manifest, Plan, Schema, Tensors, TensorSpec

EXAMPLES: Final = 20
# Devices beyond share the updates, so that a fleet of a thousand does not hold a thousand.
_DISTINCT: Final = 8
_LOOK_EVERY_S: Final = 0.02
# 64-128-64-10, the 17,226 parameters of the MLP that learns the digits.
DIGITS_SCHEMA: Final = Schema(
    (
        *(TensorSpec("w0", (64, 128)), TensorSpec("b0", (128,))),
        *(TensorSpec("w1", (128, 64)), TensorSpec("b1", (64,))),
        *(TensorSpec("w2", (64, 10)), TensorSpec("b2", (10,))),
    )
)


class QuickTrainer:
    """Adds a prepared update to the model.

    Args:
        update: what to add, by tensor.
        endless: whether to go on until told to stop instead.
    """

    def __init__(self, update: Tensors, *, endless: bool = False) -> None:
        self._update = update
        self._endless = endless

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """The model and the update, rolled by the round's seed."""
        while self._endless and not stop():
            time.sleep(_LOOK_EVERY_S)
        shift = plan.seed % 997
        sign = np.float32(1.0 if plan.seed % 2 else -1.0)
        tensors = {
            name: model.tensors[name] + sign * np.roll(values, shift)
            for name, values in self._update.items()
        }
        return TrainResult(tensors, EXAMPLES, {})

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - as above
        """There is no hold-out."""
        return EvalResult(0.0, 0, {})


class QuickTask:
    """A model of a schema, all zeros, and devices that train it in no time.

    Args:
        schema: of the model.
        endless: whether training never ends, for rounds that stay open.
    """

    def __init__(self, schema: Schema, *, endless: bool = False) -> None:
        self._schema = schema
        self._endless = endless
        self._updates: dict[int, Tensors] = {}

    def model(self) -> Manifest:
        """All zeros."""
        return Manifest(self._schema.zeros())

    def trainer(self, device: DeviceInfo) -> QuickTrainer:
        """The device's own update, or one that it shares."""
        number = device.index % _DISTINCT
        if number not in self._updates:
            self._updates[number] = update_like(number, self._schema)
        return QuickTrainer(self._updates[number], endless=self._endless)


million = QuickTask(SCHEMA)
digits = QuickTask(DIGITS_SCHEMA)
endless = QuickTask(DIGITS_SCHEMA, endless=True)
