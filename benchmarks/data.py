"""Examples over devices: who has which, in what batches, and the test set that nobody has."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pilots.partition import partition

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Batch = tuple[NDArray[np.generic], Integers]

UNKNOWN: Final = -1
TRAIN_SHARE: Final = 0.9
_LABEL_SKEW: Final = "dirichlet:0.3"


class Data(Protocol):
    """Examples of all devices, and a test set."""

    @property
    def devices(self) -> int:
        """How many devices have data."""
        ...

    @property
    def test(self) -> Batch:
        """Test examples and their labels."""
        ...

    def examples(self, device: int) -> int:
        """How many examples the device has."""
        ...

    def batches(self, device: int, chance: np.random.Generator) -> Iterator[Batch]:
        """The batches of one local training, as drawn."""
        ...


class Images:
    """Labelled images, each class split over the devices by a Dirichlet draw with parameter 0.3.

    Args:
        x: images, float32[n, ...].
        y: labels, int64[n].
        test: images of the test set, drawn at random.
        devices: that share the others.
        epochs: of one local training.
        batch: images of a step; the last of an epoch may have fewer.
        seed: of both draws.
    """

    def __init__(
        self, x: Floats, y: Integers, *, test: int, devices: int, epochs: int, batch: int, seed: int
    ) -> None:
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(y))
        self._x, self._y = x, y
        held, train = order[:test], np.sort(order[test:])
        self.test: Batch = (x[held], y[held])
        shares = partition(_LABEL_SKEW, y[train], np.zeros(len(train), np.int64), devices, seed)
        self.shares = [train[share] for share in shares]
        self._epochs, self._batch = epochs, batch

    @property
    def devices(self) -> int:
        """How many devices have images."""
        return len(self.shares)

    def examples(self, device: int) -> int:
        """How many images the device has."""
        return len(self.shares[device])

    def batches(self, device: int, chance: np.random.Generator) -> Iterator[Batch]:
        """Every image once an epoch, in a new order each time."""
        for _epoch in range(self._epochs):
            rows = chance.permutation(self.shares[device])
            for start in range(0, len(rows), self._batch):
                batch = rows[start : start + self._batch]
                yield self._x[batch], self._y[batch]


class Texts:
    """One text a device: predict the next token from those before it.

    The last tenth of each text is for the test. Tokens that are `UNKNOWN` may stand in a context
    but are never to be predicted, neither in training nor in the test.

    Args:
        texts: tokens of each device, int64[n].
        context: tokens that a prediction sees.
        steps: batches of one local training.
        batch: windows of a step, drawn with replacement.
        test: windows of the test set, over all devices; fewer if there are not so many.
        seed: of the draw of the test set.
    """

    def __init__(
        self,
        texts: Sequence[Integers],
        *,
        context: int,
        steps: int,
        batch: int,
        test: int,
        seed: int,
    ) -> None:
        cuts = [int(len(text) * TRAIN_SHARE) for text in texts]
        trains = [_windows(text[:cut], context) for text, cut in zip(texts, cuts, strict=True)]
        tests = [_windows(text[cut:], context) for text, cut in zip(texts, cuts, strict=True)]
        self._windows = trains
        self._starts = [np.flatnonzero(windows[:, -1] != UNKNOWN) for windows in trains]
        every = np.concatenate([windows[windows[:, -1] != UNKNOWN] for windows in tests])
        chance = np.random.Generator(np.random.Philox(key=seed))
        drawn = every[chance.permutation(len(every))[:test]]
        self.test: Batch = (np.ascontiguousarray(drawn[:, :-1]), drawn[:, -1].copy())
        self._steps, self._batch = steps, batch

    @property
    def devices(self) -> int:
        """How many devices have a text."""
        return len(self._windows)

    def examples(self, device: int) -> int:
        """How many windows the device's text has for training."""
        return len(self._starts[device])

    def batches(self, device: int, chance: np.random.Generator) -> Iterator[Batch]:
        """As many batches as there are steps."""
        starts = self._starts[device]
        drawn = chance.integers(0, len(starts), (self._steps, self._batch))
        for rows in self._windows[device][starts[drawn]]:
            yield rows[:, :-1], rows[:, -1]


def _windows(tokens: Integers, context: int) -> Integers:
    """All runs of context + 1 tokens, int64[n - context, context + 1], a view."""
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)
