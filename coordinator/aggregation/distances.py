"""Rules that need nothing but how far updates are from each other.

All of them follow from the Gram matrix, n x n inner products, which is summed strip by strip; a
robust mean is then a weighted one, and takes one more pass. Inner products are exact: each row of a
strip is scaled by a power of two to integers of 17 bits, so that a float64 product of 65,536 of
them has no rounding to depend on, whatever a machine's BLAS adds first.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.spool import Spool

Gram = NDArray[np.float64]

# 2 * 17 bits a product, 16 bits of columns: 50 of float64's 53.
_BITS: Final = 17
_ROUNDS_MAX: Final = 64
_TOLERANCE: Final = 1e-9
# Pillutla et al. 2022: nu, here of the median distance.
_SMOOTHING: Final = 1e-6


def gram(spool: Spool) -> Gram:
    """Inner products of all pairs of updates: float64[n, n], symmetric."""
    total = np.zeros((len(spool), len(spool)), np.float64)
    for _start, strip in spool.strips():
        # In strips of at most a block, of 65,536 columns.
        largest = np.maximum(strip.max(axis=1), -strip.min(axis=1))
        _fraction, exponents = np.frexp(largest)
        scales = np.ldexp(1.0, exponents - _BITS)
        integers = strip / scales[:, None]
        np.rint(integers, out=integers)
        products = integers @ integers.T
        products *= scales[:, None]
        products *= scales[None, :]
        total += products
    return total


def distances(products: Gram) -> NDArray[np.float64]:
    """Squared distances of all pairs."""
    own = np.diag(products)
    return np.maximum(own[:, None] + own[None, :] - 2.0 * products, 0.0)


def krum_choice(products: Gram, attackers_max: float) -> frozenset[int]:
    """Rows that multi-Krum keeps: those with the least summed distance to their nearest.

    Blanchard et al. 2017, Machine Learning with Adversaries, section 4: of n updates, f of them
    bad, an update's score is the sum of the squared distances to its n - f - 2 nearest; the n - f
    best are averaged. f is the share `attackers_max`, as far as n >= 2 f + 3.
    """
    count = len(products)
    bad = max(0, min(math.floor(attackers_max * count), (count - 3) // 2))
    nearest = count - bad - 2
    if nearest < 1:
        return frozenset(range(count))
    apart = distances(products)
    np.fill_diagonal(apart, np.inf)
    apart.sort(axis=1)
    scores = apart[:, :nearest].sum(axis=1)
    best = np.argsort(scores, kind="stable")[: count - bad]
    return frozenset(int(row) for row in best)


def weiszfeld(products: Gram, weights: Sequence[float]) -> NDArray[np.float64]:
    """The geometric median as weights of the updates, which add up to 1.

    Pillutla et al. 2022, Robust Aggregation for Federated Learning, algorithm 2 (smoothed
    Weiszfeld): z <- mean of updates with weights alpha_i / max(nu, ||z - u_i||). It begins at 0,
    no update, where one of enormous length has no more say than another, and where float64 is
    enough for it.
    """
    alpha = np.array(weights, np.float64)
    alpha /= alpha.sum()
    own = np.diag(products)
    floor = max(_SMOOTHING * float(np.sqrt(np.median(own))), np.finfo(np.float64).tiny)
    beta = np.zeros_like(alpha)
    for _ in range(_ROUNDS_MAX):
        towards = np.sum(products * beta, axis=1)
        length = float(np.sum(beta * towards))
        apart = np.sqrt(np.maximum(own - 2.0 * towards + length, 0.0))
        after = alpha / np.maximum(apart, floor)
        after /= after.sum()
        moved = float(np.abs(after - beta).max())
        beta = after
        if moved < _TOLERANCE:
            break
    return beta
