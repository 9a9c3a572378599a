"""The workloads by name: what is learnt, from whose data, and for how long.

All settings that shape a workload are in this file. Learning rates fall over the rounds as a
square: at a constant rate the few devices of the last cohort move the accuracy by points, which
would drown what codecs cost. Rounds are so many that the last quarter of a float32 run brings
little more (`python -m benchmarks.federated` prints the curves). For the two texts that holds of
the schedule and not of the task: both would gain from several times as many rounds.

The texts' gradients are clipped, since without it the rates that make progress diverge.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from benchmarks import sources
from benchmarks.cnn import Cnn
from benchmarks.data import Data, Images, Texts
from benchmarks.models import Mlp, Model, NextToken, descend
from edge_sdk import TaskError
from wire import Manifest, Schema, Tensors

DEVICES: Final = 50
COHORT: Final = 10
# As tables name them.
LETTERS: Final = MappingProxyType(
    {"A": "digits-mlp", "B": "mnist-cnn", "C": "next-char", "W": "next-word"}
)
_WORDS: Final = 3_000
_EVALUATE_BATCH: Final = 100
_MASK: Final = 2**64 - 1


class Workload(Protocol):
    """A model, its data on many devices, and how one device trains it."""

    @property
    def name(self) -> str:
        """As `workload` takes it."""
        ...

    @property
    def schema(self) -> Schema:
        """Of all tensors, which are all shared."""
        ...

    @property
    def initial(self) -> Tensors:
        """Where every run starts, float32 by name; not to be written to."""
        ...

    @property
    def devices(self) -> int:
        """How many devices have data."""
        ...

    @property
    def cohort(self) -> int:
        """Devices that train in a round."""
        ...

    @property
    def rounds(self) -> int:
        """Rounds of a full run."""
        ...

    def train(
        self, tensors: Tensors, device: int, seed: int, *, round_index: int = 0
    ) -> tuple[Tensors, int]:
        """One device's local training.

        Args:
            tensors: what the device holds; left as it is.
            device: 0 to devices - 1.
            seed: of the order of examples; the same arguments give the same bits.
            round_index: from 0; sets the learning rate where that falls over the rounds.

        Returns:
            The change of every tensor, and the device's number of examples (its weight).
        """
        ...

    def train_cohort(
        self,
        tensors: Tensors,
        devices: Sequence[int],
        seeds: Sequence[int],
        *,
        round_index: int = 0,
    ) -> list[tuple[Tensors, int]]:
        """`train` for each device, in order."""
        ...

    def accuracy(self, tensors: Tensors) -> float:
        """Share of the test set, 0 to 1, that is predicted right."""
        ...


@dataclass(frozen=True)
class LocalSgd:
    """A workload of mini-batch SGD with cross-entropy.

    Args:
        name: of the workload.
        model: gradients and logits.
        data: batches per device, and the test set.
        initial: tensors by name.
        rounds: of a full run.
        learning_rate: in the first round.
        learning_rate_last: in the last round; between them it falls as a square.
        clip_norm: a batch's gradient that is longer is shortened to this.
    """

    name: str
    model: Model
    data: Data
    initial: Tensors
    rounds: int
    learning_rate: float
    learning_rate_last: float
    clip_norm: float = math.inf
    cohort: int = COHORT

    @property
    def schema(self) -> Schema:
        """Of the initial tensors."""
        return Manifest(self.initial).schema

    @property
    def devices(self) -> int:
        """How many devices have data."""
        return self.data.devices

    def rate(self, round_index: int) -> float:
        """The learning rate of this round; past the last round, that of the last."""
        left = 1.0 - min(1.0, round_index / max(1, self.rounds - 1))
        span = self.learning_rate - self.learning_rate_last
        return self.learning_rate_last + span * left * left

    def train(
        self, tensors: Tensors, device: int, seed: int, *, round_index: int = 0
    ) -> tuple[Tensors, int]:
        """SGD from `tensors` over the device's batches; the change, and its examples."""
        chance = np.random.Generator(np.random.Philox(key=seed & _MASK))
        local = {name: values.copy() for name, values in tensors.items()}
        rate = self.rate(round_index)
        for x, y in self.data.batches(device, chance):
            gradients = self.model.gradients(local, x, y, rate)
            descend(local, gradients, norm_max=rate * self.clip_norm)
        for name in local:
            local[name] -= tensors[name]
        return local, self.data.examples(device)

    def train_cohort(
        self,
        tensors: Tensors,
        devices: Sequence[int],
        seeds: Sequence[int],
        *,
        round_index: int = 0,
    ) -> list[tuple[Tensors, int]]:
        """`train` for each device, in order."""
        return [
            self.train(tensors, device, seed, round_index=round_index)
            for device, seed in zip(devices, seeds, strict=True)
        ]

    def accuracy(self, tensors: Tensors) -> float:
        """Top-1 on the test set."""
        x, y = self.data.test
        right = 0
        for start in range(0, len(y), _EVALUATE_BATCH):
            batch = slice(start, start + _EVALUATE_BATCH)
            right += int((self.model.logits(tensors, x[batch]).argmax(axis=1) == y[batch]).sum())
        return right / len(y)


def _digits_mlp(seed: int) -> LocalSgd:
    x, y = sources.digits()
    data = Images(x, y, test=360, devices=DEVICES, epochs=2, batch=10, seed=seed)
    model = Mlp((64, 128, 64, 10))
    return LocalSgd("digits-mlp", model, data, model.initial(seed), 120, 0.1, 0.02)


def _mnist_cnn(seed: int) -> LocalSgd:
    x, y = sources.mnist()
    data = Images(x, y, test=1_000, devices=DEVICES, epochs=1, batch=10, seed=seed)
    model = Cnn(28, (16, 32), 256, 10)
    return LocalSgd("mnist-cnn", model, data, model.initial(seed), 120, 0.05, 0.01)


def _next_char(seed: int) -> LocalSgd:
    texts, alphabet = sources.topics()
    data = Texts(texts, context=12, steps=15, batch=32, test=4_000, seed=seed)
    model = NextToken(vocabulary=len(alphabet), context=12, embedding=24, hidden=320)
    return LocalSgd("next-char", model, data, model.initial(seed), 400, 3.0, 0.0, clip_norm=1.0)


def _next_word(seed: int) -> LocalSgd:
    texts = sources.ranked(sources.plays(), _WORDS)
    data = Texts(texts, context=4, steps=15, batch=32, test=4_000, seed=seed)
    model = NextToken(vocabulary=_WORDS, context=4, embedding=48, hidden=128, unknown=True)
    return LocalSgd("next-word", model, data, model.initial(seed), 100, 4.0, 0.0, clip_norm=3.0)


WORKLOADS: Final[Mapping[str, Callable[[int], LocalSgd]]] = MappingProxyType(
    {
        "digits-mlp": _digits_mlp,
        "mnist-cnn": _mnist_cnn,
        "next-char": _next_char,
        "next-word": _next_word,
    }
)


def workload(name: str, seed: int) -> Workload:
    """The workload of this name; the seed draws its split, its test set and its initial tensors.

    Raises:
        TaskError: no such workload, or a package that its data is in is not installed.
    """
    if name not in WORKLOADS:
        raise TaskError(f"workload {name!r}: there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name](seed)
