"""Handwritten digits: 1,797 images of 8 x 8 from scikit-learn's package, 14 blocks of writers.

The file is read where pip has put it; scikit-learn itself is never imported. A fifth of each block
is the test set, which no device sees; the rest is split as the federation's file says.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk import DeviceInfo, NumpyTrainer, TaskError
from pilots.partition import partition
from wire import Manifest

FEATURES: Final = 64
HIDDEN: Final = 200
CLASSES: Final = 10
# The file lists its writers one after the other; these are where the style changes.
BLOCK_STARTS: Final = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)
TEST_EVERY: Final = 5
HOLDOUT_EVERY: Final = 8
SPLIT_SEED: Final = 1
_FILE: Final = "datasets/data/digits.csv.gz"
_GREY_MAX: Final = 16.0

Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
Side = tuple[NDArray[np.float32], NDArray[np.int64]]


@functools.cache
def _read() -> Data:
    """Images in 0..1, labels, and the block of each."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise TaskError("digits: needs scikit-learn's data file: pip install 'potluck[pilots]'")
    table = np.loadtxt(Path(found.origin).parent / _FILE, delimiter=",", dtype=np.float32)
    block_of = np.searchsorted(BLOCK_STARTS, np.arange(len(table)), side="right") - 1
    return table[:, :-1] / np.float32(_GREY_MAX), table[:, -1].astype(np.int64), block_of


@functools.cache
def _shares(how: str, count: int) -> list[NDArray[np.int64]]:
    _x, y, block_of = _read()
    train = np.flatnonzero(np.arange(len(y)) % TEST_EVERY != 0)
    return [train[rows] for rows in partition(how, y[train], block_of[train], count, SPLIT_SEED)]


def share(device: DeviceInfo) -> tuple[Side, Side]:
    """A device's own images and labels, and the eighth of them that is held out."""
    x, y, _block = _read()
    rows = _shares(device.partition, device.count)[device.index]
    held = np.arange(len(rows)) % HOLDOUT_EVERY == HOLDOUT_EVERY - 1
    return (x[rows[~held]], y[rows[~held]]), (x[rows[held]], y[rows[held]])


def test_set() -> Side:
    """Every fifth image, which no device has."""
    x, y, _block = _read()
    test = np.arange(len(y)) % TEST_EVERY == 0
    return x[test], y[test]


class Digits:
    """The task: a perceptron of 64-200-10."""

    def model(self) -> Manifest:
        """15,010 parameters."""
        return NumpyTrainer.manifest(FEATURES, HIDDEN, CLASSES, seed=7)

    def trainer(self, device: DeviceInfo) -> NumpyTrainer:
        """The device's own share, an eighth of it held out."""
        train, held = share(device)
        return NumpyTrainer(*train, holdout=held, seed=device.seed)

    def test(self) -> NumpyTrainer:
        """Every fifth image, which no device has."""
        test = test_set()
        return NumpyTrainer(*test, holdout=test)


task = Digits()
