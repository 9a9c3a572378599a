"""Public randomness: rounding noise, rotation signs and kept coordinates, the same on any machine.

NumPy promises what its generators' distributions give only per version, but a bit generator's raw
stream for good: everything here is made from `Philox.random_raw` (Salmon et al. 2011)
and integer arithmetic. A `Purpose` keeps streams of one seed apart. None of this is secret; masks
and keys come from elsewhere.

Annotations of `np.random` are quoted: NumPy loads it when it is used, an app pays for it then.
"""

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SEED_BITS: Final = 64
_SEED_MASK: Final = 2**_SEED_BITS - 1
_FRACTION_BITS: Final = 24


class Purpose(IntEnum):
    """What a stream is for; the upper half of Philox's key."""

    ROUNDING = 0
    ROTATION = 1
    SUBSET = 2
    SCALES = 3


def stream(seed: int, purpose: Purpose, tensor: int = 0, piece: int = 0) -> "np.random.Philox":
    """The bits for one piece of one tensor; each piece can be had without those before it."""
    return np.random.Philox(
        key=(seed & _SEED_MASK) | (int(purpose) << _SEED_BITS), counter=[0, 0, piece, tensor]
    )


def uniform(bits: "np.random.Philox", size: int) -> NDArray[np.float32]:
    """float32[size] in [0, 1), 24 bits each: all that float32 can tell apart."""
    raw = np.asarray(bits.random_raw(-(-size // 2)), "<u8")
    words = raw.view("<u4")[:size] >> np.uint32(32 - _FRACTION_BITS)
    fractions = words.astype(np.float32)
    fractions *= np.float32(2.0**-_FRACTION_BITS)
    return fractions


def signs(bits: "np.random.Philox", size: int) -> NDArray[np.float32]:
    """float32[size] of -1 and 1, one raw bit each, lowest first."""
    raw = np.asarray(bits.random_raw(-(-size // _SEED_BITS)), "<u8")
    ones = np.unpackbits(raw.view(np.uint8), count=size, bitorder="little").astype(np.float32)
    ones *= np.float32(2.0)
    ones -= np.float32(1.0)
    return ones


def subset(bits: "np.random.Philox", size: int, count: int) -> NDArray[np.int64]:
    """`count` of `size` positions, increasing, each subset as likely as any other.

    Those with the smallest raw words: a draw without replacement, ties (never seen) by position.
    """
    raw = np.asarray(bits.random_raw(size), np.uint64)
    if count == 0:
        return np.empty(0, np.int64)
    edge = np.partition(raw, count - 1)[count - 1]
    kept = raw < edge
    kept[np.flatnonzero(raw == edge)[: count - int(np.count_nonzero(kept))]] = True
    return np.flatnonzero(kept)
