"""A random rotation: it spreads what is in a few values evenly over their chunk.

Twice the randomized Hadamard transform, y = H D' H D x / c for a chunk of c values, D and D'
diagonals of random signs, H Sylvester's matrix (Ailon and Chazelle 2006, section 2; as a rotation
before quantization Suresh et al. 2017, section 3). It is orthonormal: norms and inner products
stay. Once is not enough where one value outweighs all others of its chunk: then all of y has the
same magnitude and says nothing of the others, whatever the signs. Of the second time's y every
value is a sum of random signs, and the mean over rotations of what is read is what was sent.

Chunks are short and of neighbours on purpose. In real updates energy differs from row to row; a
chunk inside a row keeps that difference, and the entropy stage lives on it. Nothing is padded, n
values become n values: the last chunk of a piece takes what is left, up to 511 values, and is
rotated through windows that overlap. A piece of less than 64 values is not rotated: so few make no
sum that is nearly normal. Each of its values is a chunk of its own.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.chance import Purpose, signs, stream

Flat = NDArray[np.float32]

CHUNK: Final = 256
ROTATED_MIN: Final = 64
# The second and third diagonal: a sign for each place in a chunk, the same in all of a piece.
_INNER_SIGNS: Final = 2 * CHUNK


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a piece is cut: `whole` chunks of `width`, then one of `rest` unless that is 0."""

    whole: int
    width: int
    rest: int

    @property
    def count(self) -> int:
        """How many there are."""
        return self.whole + (self.rest > 0)

    @property
    def edge(self) -> int:
        """Where the rest begins."""
        return self.whole * self.width


def chunks_of(size: int) -> Chunks:
    """The chunks of a piece of `size` values."""
    if size < ROTATED_MIN:
        return Chunks(size, 1, 0)
    if size % CHUNK == 0:
        return Chunks(size // CHUNK, CHUNK, 0)
    whole = max(size // CHUNK - 1, 0)
    return Chunks(whole, CHUNK, size - whole * CHUNK)


def rotate(values: Flat, seed: int, tensor: int = 0, piece: int = 0) -> Flat:
    """Rotate a piece; fresh float32[n].

    Args:
        values: float32[n].
        seed: public.
        tensor: index of the tensor, and
        piece: index of the piece within it: each has signs of its own.
    """
    if values.size < ROTATED_MIN:
        return values.copy()
    outer, inner = _signs(values.size, seed, tensor, piece)
    out = values * outer
    cut = chunks_of(values.size)
    if cut.whole:
        _turn_twice(out[: cut.edge], inner[0, :CHUNK])
    if cut.rest:
        rest = out[cut.edge :]
        windows = _windows(cut.rest)
        for number, window in enumerate(windows):
            rest[window] = _hadamard(rest[window, np.newaxis], None)[:, 0]
            if number < len(windows) - 1:
                rest *= inner[number, : cut.rest]
    return out


def unrotate(rotated: Flat, seed: int, tensor: int = 0, piece: int = 0) -> Flat:
    """The inverse of `rotate`."""
    if rotated.size < ROTATED_MIN:
        return rotated.copy()
    outer, inner = _signs(rotated.size, seed, tensor, piece)
    out = rotated.copy()
    cut = chunks_of(rotated.size)
    if cut.whole:
        _turn_twice(out[: cut.edge], inner[0, :CHUNK])
    if cut.rest:
        rest = out[cut.edge :]
        windows = _windows(cut.rest)
        for number in reversed(range(len(windows))):
            window = windows[number]
            rest[window] = _hadamard(rest[window, np.newaxis], None)[:, 0]
            if number:
                rest *= inner[number - 1, : cut.rest]
    out *= outer
    return out


def _turn_twice(values: Flat, between: Flat) -> None:
    """H D' H / c of each whole chunk, in place; its own inverse."""
    whole = values.reshape(-1, CHUNK)
    # Transposed, each step of the butterfly adds long rows.
    np.copyto(whole, _hadamard(_hadamard(whole.T, None), between).T)


def turn(values: Flat, chunk: int) -> Flat:
    """H x / sqrt(c) of each chunk of c values; fresh, and its own inverse.

    Args:
        values: float32[n], n a multiple of the chunk.
        chunk: a power of two.
    """
    out = np.empty_like(values)
    rows = np.array(values.reshape(-1, chunk).T, order="C")
    np.copyto(out.reshape(-1, chunk), _hadamard(rows, None).T)
    return out


def _signs(size: int, seed: int, tensor: int, piece: int) -> tuple[Flat, Flat]:
    """The first diagonal of all chunks, and the second and third of each."""
    bits = stream(seed, Purpose.ROTATION, tensor, piece)
    outer = signs(bits, size)
    return outer, signs(bits, 2 * _INNER_SIGNS).reshape(2, _INNER_SIGNS)


def _windows(size: int) -> list[slice]:
    """What of a chunk is transformed, one after the other.

    All of it, twice; if it is no power of two its beginning, its end, and its beginning again, each
    as long as the largest power of two in it.
    """
    width = 1 << (size.bit_length() - 1)
    first, last = slice(0, width), slice(size - width, size)
    return [first, last] if width == size else [first, last, first]


def _hadamard(rows: Flat, factors: Flat | None) -> Flat:
    """H @ (rows / sqrt(c)) for c rows, a power of two; rows times `factors` first, one for each.

    Sums and differences only, in a fixed order: no BLAS, whose bits differ between machines. What
    is divided first stays in float32.
    """
    count = len(rows)
    scale = np.float32(math.sqrt(1.0 / count))
    by = scale if factors is None else (factors * scale)[:, np.newaxis]
    rows = np.multiply(rows, by, order="C")
    other = np.empty(rows.shape, np.float32)
    half = 1
    while half < count:
        source = rows.reshape(count // (2 * half), 2, -1)
        target = other.reshape(source.shape)
        np.add(source[:, 0], source[:, 1], out=target[:, 0])
        np.subtract(source[:, 0], source[:, 1], out=target[:, 1])
        rows, other = other, rows
        half *= 2
    return rows
