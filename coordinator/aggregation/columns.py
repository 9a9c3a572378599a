"""Rules that look at each coordinate alone, over all updates of a round (Yin et al. 2018).

Yin et al. 2018, Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, options
I (coordinate-wise median) and II (trimmed mean). Updates weigh the same: what a device says of its
examples has no say here.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.spool import Flat, Matrix, Spool

# Sorting is in small caches: so many columns at a time are turned round.
_TURNED_BYTES_MAX: Final = 8 << 20
_FLOAT32_BYTES: Final = 4

Column = Callable[[Matrix], NDArray[np.float64]]


def trimmed(count: int, attackers_max: float) -> int:
    """How many of `count` values go at each end; at least one is left."""
    return min(math.floor(attackers_max * count), (count - 1) // 2)


def median(spool: Spool, parameters: int) -> Flat:
    """Of each coordinate the middle value, or the mean of the middle two."""
    low, high = (len(spool) - 1) // 2, len(spool) // 2

    def middle(rows: Matrix) -> NDArray[np.float64]:
        return (rows[:, low].astype(np.float64) + rows[:, high]) / 2.0

    return _by_column(spool, parameters, middle)


def trimmed_mean(spool: Spool, parameters: int, attackers_max: float) -> Flat:
    """Of each coordinate the mean without the largest and the smallest share of values."""
    cut = trimmed(len(spool), attackers_max)
    kept = slice(cut, len(spool) - cut)

    def mean(rows: Matrix) -> NDArray[np.float64]:
        # Value after value: the order of a float sum is part of the result.
        total = np.zeros(len(rows), np.float64)
        for column in rows[:, kept].T:
            total += column
        return total / (kept.stop - kept.start)

    return _by_column(spool, parameters, mean)


def _by_column(spool: Spool, parameters: int, of_sorted: Column) -> Flat:
    """Apply to each column, sorted; a column of the spool is a row here."""
    change = np.zeros(parameters, np.float32)
    width = max(1, _TURNED_BYTES_MAX // (_FLOAT32_BYTES * max(1, len(spool))))
    for start, strip in spool.strips(wide=True):
        for first in range(0, strip.shape[1], width):
            turned = np.ascontiguousarray(strip[:, first : first + width].T)
            turned.sort(axis=1)
            at = start + first
            change[at : at + len(turned)] = of_sorted(turned)
    return change
