"""A round's payloads as a matrix, a strip of columns at a time, in bounded memory.

Robust rules look at one coordinate of all updates, or at all pairs of updates. A thousand updates
of a million parameters are 4 GB as float32: they stay as they were sent, and are decoded block by
block. What is kept between two looks (payloads, decoded blocks) is bounded; what does not fit is
read and decoded again. Rows are in canonical order, by update id, so that nothing depends on who
was first.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantization import Payload, PieceValues
from wire import Schema

Flat = NDArray[np.float32]
Matrix = NDArray[np.float32]

# A strip as float32. Rules that make float64 of it hold three times that; those that do not may
# have it wider, and decode less often.
STRIP_BYTES_MAX: Final = 8 << 20
_WIDER: Final = 6
PAYLOADS_BYTES_MAX: Final = 24 << 20
BLOCK_BYTES_MAX: Final = 24 << 20
_FLOAT32_BYTES: Final = 4


class Spool:
    """The payloads of some updates of one round, each validated before.

    Args:
        schema: what they are payloads of.
        ids: whose, in canonical order.
        read: a payload by its update id.
        strip_bytes_max: of a strip's float32 matrix; a column is the least there is.
    """

    def __init__(
        self,
        schema: Schema,
        ids: Sequence[bytes],
        read: Callable[[bytes], bytes],
        *,
        strip_bytes_max: int = STRIP_BYTES_MAX,
    ) -> None:
        self.schema = schema
        self._ids = tuple(ids)
        self._read = read
        self._strip_bytes_max = strip_bytes_max
        self._kept: dict[int, Payload] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._ids)

    def payload(self, row: int) -> bytes:
        """One update as it was sent."""
        return self._read(self._ids[row])

    def opened(self, row: int) -> Payload:
        """One update, ready to decode blocks of."""
        known = self._kept.get(row)
        if known is not None:
            return known
        data = self.payload(row)
        opened = Payload(data, self.schema)
        if self._kept_bytes + len(data) <= PAYLOADS_BYTES_MAX:
            self._kept[row] = opened
            self._kept_bytes += len(data)
        return opened

    def along(self, row: int, blocks: Sequence[int], direction: Flat) -> tuple[float, float]:
        """Of one update in these blocks: its inner product with a flattened model, its square."""
        opened = self.opened(row)
        dot = square = 0.0
        for number in blocks:
            for part in opened.block(number):
                start = opened.blocks[number].start + part.piece.at
                piece = direction[start : start + part.piece.size]
                if part.positions is not None:
                    piece = piece[part.positions]
                values = part.values.astype(np.float64)
                dot += float(np.sum(values * piece))
                square += float(np.sum(np.square(values)))
        return dot, square

    def strips(self, *, wide: bool = False) -> Iterator[tuple[int, Matrix]]:
        """Columns of all updates, strip after strip.

        Args:
            wide: in fewer strips, six times as large.

        Yields:
            Where the strip begins in the flattened model, and float32[updates, columns] that is
            overwritten by the next one.
        """
        if not self._ids:
            return
        every = self.opened(0).blocks
        width_max = max((block.size for block in every), default=0)
        bytes_max = self._strip_bytes_max * (_WIDER if wide else 1)
        columns = bytes_max // (_FLOAT32_BYTES * len(self))
        columns = max(1, min(columns, width_max))
        matrix = np.empty((len(self), columns), np.float32)
        for number, block in enumerate(every):
            decoded = _Decoded(self, number)
            for start in range(0, block.size, columns):
                width = min(columns, block.size - start)
                strip = matrix[:, :width]
                for row in range(len(self)):
                    _fill(strip[row], decoded.row(row), start)
                yield block.start + start, strip


class _Decoded:
    """One block of all updates, as much of it as fits; the rest is decoded at every look."""

    def __init__(self, spool: Spool, number: int) -> None:
        self._spool = spool
        self._number = number
        self._rows: dict[int, list[PieceValues]] = {}
        self._bytes = 0

    def row(self, row: int) -> list[PieceValues]:
        known = self._rows.get(row)
        if known is not None:
            return known
        parts = [_compact(part) for part in self._spool.opened(row).block(self._number)]
        size = sum(
            part.values.nbytes + (0 if part.positions is None else part.positions.nbytes)
            for part in parts
        )
        if self._bytes + size <= BLOCK_BYTES_MAX:
            self._rows[row] = parts
            self._bytes += size
        return parts


def _compact(part: PieceValues) -> PieceValues:
    """The same with two bytes a position: a piece has at most 65,536 values."""
    if part.positions is None:
        return part
    positions: Any = part.positions.astype(np.uint16)  # `_fill` alone reads it
    return PieceValues(part.piece, part.values, positions)


def _fill(into: Flat, parts: list[PieceValues], start: int) -> None:
    """The values of a decoded block from `start` on, zeros where the update says nothing."""
    stop = start + into.size
    into[:] = 0.0
    for part in parts:
        first, last = part.piece.at, part.piece.at + part.piece.size
        if last <= start or first >= stop:
            continue
        if part.positions is None:
            low, high = max(start, first), min(stop, last)
            into[low - start : high - start] = part.values[low - first : high - first]
            continue
        positions = part.positions.astype(np.int64)
        low, high = np.searchsorted(positions, (start - first, stop - first))
        into[positions[low:high] + (first - start)] = part.values[low:high]
