"""The randomized Hadamard transform: it spreads what is in a few values evenly over their chunk.

y = H D x / sqrt(c) for each chunk of c values, D a diagonal of random signs, H Sylvester's matrix
(Ailon and Chazelle 2006, section 2; as a rotation before quantization Suresh et al. 2017, section
3). It is orthonormal: norms and inner products stay, and D x = H y / sqrt(c) takes it back.

Chunks are short and of neighbours on purpose. In real updates energy differs from row to row; a
chunk inside a row keeps that difference, and the entropy stage lives on it. What is left at the end
of a piece is cut into powers of two, so that nothing is padded: n values become n values.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.chance import Purpose, signs, stream

Flat = NDArray[np.float32]

CHUNK: Final = 256


def rotate(values: Flat, seed: int, tensor: int = 0, piece: int = 0, chunk: int = CHUNK) -> Flat:
    """Rotate a piece; fresh float32[n].

    Args:
        values: float32[n].
        seed: public.
        tensor: index of the tensor, and
        piece: index of the piece within it: each has signs of its own.
        chunk: values per transform, a power of two.
    """
    return _transform(
        values * signs(stream(seed, Purpose.ROTATION, tensor, piece), values.size), chunk
    )


def unrotate(rotated: Flat, seed: int, tensor: int = 0, piece: int = 0, chunk: int = CHUNK) -> Flat:
    """The inverse of `rotate`."""
    values = _transform(rotated, chunk)
    values *= signs(stream(seed, Purpose.ROTATION, tensor, piece), values.size)
    return values


def _transform(values: Flat, chunk: int) -> Flat:
    out = np.empty_like(values)
    for start, stop, width in _runs(values.size, chunk):
        # Transposed, each step of the butterfly adds long rows.
        rows = np.array(values[start:stop].reshape(-1, width).T, order="C")
        rows = _hadamard(rows)
        rows *= np.float32(width**-0.5)
        np.copyto(out[start:stop].reshape(-1, width), rows.T)
    return out


def _runs(size: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, chunk size): whole chunks, then the rest by its binary digits."""
    start = size - size % chunk
    if start:
        yield 0, start, chunk
    width = chunk // 2
    while width:
        if (size - start) & width:
            yield start, start + width, width
            start += width
        width //= 2


def _hadamard(rows: Flat) -> Flat:
    """H @ rows for H of as many columns as there are rows, a power of two.

    Sums and differences only, in a fixed order: no BLAS, whose bits differ between machines.
    """
    count = len(rows)
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
