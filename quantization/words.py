"""Unsigned integers of one width, packed to the bit: what masked words travel as.

Masked words are uniform on [0, 2**bits): no entropy stage can shorten them, and nothing but their
width decides their size. Bit j of word i, lowest first, is bit bits * i + j of the stream, and bit
p of the stream is bit p mod 8, lowest first, of byte p // 8. The bits left of the last byte are 0.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    TrailingBytesError,
    TruncatedError,
)

WORD_BITS_MAX: Final = 32
_BYTE_BITS: Final = 8
# A multiple of 8, so that blocks end with a byte at any width; a block's bits take 2 MB.
_BLOCK_WORDS: Final = 65_536


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes `count` words of `bits` bits take."""
    return -(-count * bits // _BYTE_BITS)


def pack_words(words: NDArray[np.uint32], bits: int) -> bytes:
    """Words to bytes.

    Args:
        words: uint32[count], each below 2**bits.
        bits: width of a word, 1 to 32.

    Raises:
        LocalProtocolError: a width out of bounds, or a word that does not fit it.
    """
    _check_width(bits)
    if int(words.max(initial=0)) >> bits:
        raise LocalProtocolError(f"a word of {int(words.max())} in {bits} bits")
    return b"".join(
        _packed(words[start : start + _BLOCK_WORDS], bits)
        for start in range(0, words.size, _BLOCK_WORDS)
    )


def unpack_words(data: bytes, count: int, bits: int) -> NDArray[np.uint32]:
    """The inverse of `pack_words`: fresh uint32[count].

    Args:
        data: as many bytes as `packed_bytes` says; checked before anything is allocated.
        count: of words, from the round's parameters.
        bits: width of a word, 1 to 32.

    Raises:
        TruncatedError: too few bytes.
        TrailingBytesError: too many.
        RemoteProtocolError: a bit after the last word is set.
        LocalProtocolError: a width out of bounds.
    """
    _check_width(bits)
    size = packed_bytes(count, bits)
    if len(data) < size:
        raise TruncatedError(f"{len(data)} bytes for {count} words of {bits} bits, not {size}")
    if len(data) > size:
        raise TrailingBytesError(f"{len(data)} bytes for {count} words of {bits} bits, not {size}")
    used_of_last = count * bits % _BYTE_BITS
    if used_of_last and data[-1] >> used_of_last:
        raise RemoteProtocolError("bits after the last word are not 0")
    stream = np.frombuffer(data, np.uint8)
    words = np.zeros(count, "<u4")
    for start in range(0, count, _BLOCK_WORDS):
        block = words[start : start + _BLOCK_WORDS]
        first = start * bits // _BYTE_BITS
        packed = stream[first : first + packed_bytes(block.size, bits)]
        spread = np.zeros((block.size, WORD_BITS_MAX), np.uint8)
        spread[:, :bits] = np.unpackbits(
            packed, count=block.size * bits, bitorder="little"
        ).reshape(-1, bits)
        block[:] = np.packbits(spread, axis=1, bitorder="little").view("<u4")[:, 0]
    return words.astype(np.uint32, copy=False)


def _packed(words: NDArray[np.uint32], bits: int) -> bytes:
    as_bytes = np.ascontiguousarray(words, "<u4").view(np.uint8)
    lowest_first = np.unpackbits(as_bytes, bitorder="little").reshape(-1, WORD_BITS_MAX)
    return np.packbits(lowest_first[:, :bits], bitorder="little").tobytes()


def _check_width(bits: int) -> None:
    if not 1 <= bits <= WORD_BITS_MAX:
        raise LocalProtocolError(f"words of {bits} bits, not 1 to {WORD_BITS_MAX}")
