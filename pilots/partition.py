"""Splitting one data set over many devices, the way that papers on non-IID data do.

`iid` deals cards. `blocks` gives each device what one writer (hospital, role, ...) made. With
`dirichlet:A` every class is split over the devices by a draw from a symmetric Dirichlet with
parameter A (Hsu, Qi and Brown 2019, section 3): 0.5 is rough, 100 is nearly even.
`blocks+dirichlet:A` does that among the devices of each block.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
_BLOCKS: Final = "blocks"
_DIRICHLET: Final = "dirichlet:"


class PartitionError(ValueError):
    """A partition that is not known; the text says which there are."""


def partition(
    how: str, labels: NDArray[np.int64], block_of: Rows, count: int, seed: int
) -> list[Rows]:
    """Rows for each of `count` devices: disjoint, together all of them, nobody without any.

    Args:
        how: "iid", "blocks", "dirichlet:A" or "blocks+dirichlet:A".
        labels: the class of each row, int64[n].
        block_of: the block of each row, int64[n].
        count: devices, at most n.
        seed: of the draws.

    Raises:
        PartitionError: `how` is none of them, or there are more devices than rows.
    """
    if not 1 <= count <= len(labels):
        raise PartitionError(f"{len(labels)} examples cannot be split over {count} devices")
    chance = np.random.Generator(np.random.Philox(key=seed % 2**64))
    rows = chance.permutation(len(labels))
    by_block, _, rest = how.rpartition("+") if "+" in how else ("", "", how)
    if how == "iid":
        shares = list(np.array_split(rows, count))
    elif how == _BLOCKS:
        shares = _in_blocks(rows, block_of, count, lambda r, n: list(np.array_split(r, n)))
    elif rest.startswith(_DIRICHLET) and by_block in ("", _BLOCKS):
        alpha = _alpha(rest, how)

        def split(part: Rows, devices: int) -> list[Rows]:
            return _dirichlet(part, labels, devices, alpha, chance)

        shares = _in_blocks(rows, block_of, count, split) if by_block else split(rows, count)
    else:
        raise PartitionError(
            f"partition {how!r}: write iid, blocks, dirichlet:0.5 or blocks+dirichlet:0.5"
        )
    return _nobody_empty(shares)


def _alpha(text: str, how: str) -> float:
    try:
        alpha = float(text.removeprefix(_DIRICHLET))
    except ValueError:
        alpha = 0.0
    if not alpha > 0.0:
        raise PartitionError(f"partition {how!r}: the number after dirichlet: must be above 0")
    return alpha


def _in_blocks(
    rows: Rows, block_of: Rows, count: int, split: Callable[[Rows, int], list[Rows]]
) -> list[Rows]:
    """Blocks over devices in order: several devices share a block, or several blocks a device."""
    blocks = [rows[block_of[rows] == block] for block in np.unique(block_of)]
    if count <= len(blocks):
        groups = np.array_split(np.arange(len(blocks)), count)
        return [np.concatenate([blocks[block] for block in group]) for group in groups]
    shares: list[Rows] = []
    for block, devices in zip(blocks, np.array_split(np.arange(count), len(blocks)), strict=True):
        shares += split(block, len(devices))
    return shares


def _dirichlet(
    rows: Rows,
    labels: NDArray[np.int64],
    count: int,
    alpha: float,
    chance: np.random.Generator,
) -> list[Rows]:
    parts: list[list[Rows]] = [[] for _ in range(count)]
    for label in np.unique(labels[rows]):
        of_class = rows[labels[rows] == label]
        cuts = (np.cumsum(chance.dirichlet([alpha] * count)) * len(of_class)).astype(np.int64)
        for device, part in enumerate(np.split(of_class, cuts[:-1])):
            parts[device].append(part)
    return [np.concatenate(part) for part in parts]


def _nobody_empty(shares: Sequence[Rows]) -> list[Rows]:
    """Whoever has nothing gets one row of whoever has most."""
    full = list(shares)
    for device, rows in enumerate(full):
        if len(rows) == 0:
            richest = max(range(len(full)), key=lambda other: len(full[other]))
            full[device], full[richest] = full[richest][:1], full[richest][1:]
    return full
