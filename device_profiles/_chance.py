"""Chance that can be asked for again: words of a counter, not of a stream that somebody holds.

Philox is counter-based: a key and a counter give four words, whichever were asked for before. So a
device's Tuesday can be looked up without living through its Monday.
"""

from typing import Final

import numpy as np

# One number space per purpose, so that no two of them share words.
DEVICE: Final = 1
DAY: Final = 2
HOUR: Final = 3
SHUFFLE: Final = 4

WORDS_PER_INDEX: Final = 4
# Days and hours before 1970 are negative; a counter is not.
_INDEX_BIAS: Final = 1 << 40


def words(seed: int, purpose: int, index: int, count: int = WORDS_PER_INDEX) -> tuple[int, ...]:
    """`count` uint64 words for `index`; each four further ones are those of the next index.

    Args:
        seed: 0 to 2**128 - 1, the Philox key.
        purpose: one of the constants above.
        index: a day, an hour, or 0; -2**40 to 2**40.
        count: how many words.
    """
    counter = (purpose << 64) | (index + _INDEX_BIAS)
    return tuple(np.random.Philox(key=seed, counter=counter).random_raw(count).tolist())


def uniform(word: int) -> float:
    """A float in [0, 1) from the 53 upper bits of a word: exact, so equal on any machine."""
    return (word >> 11) * 2.0**-53
