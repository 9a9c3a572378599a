"""The smallest task that can be learned: which of two numbers is larger. For worlds and tests."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk import DeviceInfo, NumpyTrainer
from wire import Manifest

FEATURES: Final = 8
EXAMPLES: Final = 24
HELD_OUT: Final = 16


def _draw(seed: int, count: int) -> NDArray[np.float32]:
    words = np.asarray(np.random.Philox(key=seed).random_raw(count * FEATURES), np.uint64)
    uniform = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23)
    return (uniform - np.float32(1.0)).reshape(count, FEATURES)


class ToyTask:
    """A perceptron of 8-6-2: 68 parameters, some forty examples a device, no test data.

    Args:
        hidden: how many hidden units; more make a larger model of the same use.
        flops_per_example: what a training step is said to cost, so that in a world it takes a
            while; None for what it does cost.
    """

    def __init__(self, flops_per_example: float | None = None, hidden: int = 6) -> None:
        self._hidden = hidden
        self._flops_per_example = flops_per_example

    def model(self) -> Manifest:
        """The same on every machine."""
        tensors = NumpyTrainer.manifest(FEATURES, self._hidden, 2, seed=3).tensors
        return Manifest(tensors, flops_per_example=self._flops_per_example)

    def trainer(self, device: DeviceInfo) -> NumpyTrainer:
        """Examples from the device's seed."""
        x = _draw(device.seed, EXAMPLES + HELD_OUT)
        y = (x[:, 0] > x[:, 1]).astype(np.int64)
        held = (x[EXAMPLES:], y[EXAMPLES:])
        return NumpyTrainer(x[:EXAMPLES], y[:EXAMPLES], holdout=held, seed=device.seed)


task = ToyTask()
