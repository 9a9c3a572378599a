"""Small integers become bytes that an entropy coder likes: where the next one is, and its sign.

At the steps that federated learning tolerates most symbols are 0. What is left to say is how far it
is to the next that is not, whether it is larger than 1, and its sign. Gaps of independent symbols
are geometric, and a Huffman code of gaps is close to their entropy; where zeros cluster, as they do
in real updates, it needs less than the symbols' own entropy. (Five base-3 digits to a byte, which
was here before, took 10 to 40% more: Huffman cannot spend less than a bit on a byte.)

A block's symbols are two strings: `squeezed`, which is worth compressing, and `plain`, which is
noise. Little-endian, after a mode:

    0 zero    nothing: every symbol is 0
    1 gaps    squeezed: a token for each symbol that is not 0, in order. Its low 7 bits are the
              zeros before it, 0 to 126; its top bit says that |symbol| > 1. 127 stands for 127
              zeros and no symbol. Then, for each with the top bit, |symbol| - 2 as u8.
              plain: a bit for each symbol that is not 0, 1 when negative, lowest bit first
    2 gaps16  as gaps, |symbol| - 2 as u16: all low bytes, then all high bytes
    3 signs   plain: a bit for each symbol, all of them 1 or -1; 1 when negative, lowest first
    4 bytes   squeezed: i8 for each symbol
    5 words   squeezed: the low bytes of i16 for each symbol, then the high bytes
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire.errors import RemoteProtocolError, TrailingBytesError, TruncatedError

Symbols = NDArray[np.int16]

ZERO: Final = 0
GAPS: Final = 1
GAPS16: Final = 2
SIGNS: Final = 3
BYTES: Final = 4
WORDS: Final = 5

SYMBOL_ABS_MAX: Final = 32_767
_SKIP: Final = 127
_LARGE: Final = 128
_BYTE_ABS_MAX: Final = 127
_BYTE_VALUES: Final = 256
# Past this share of symbols that are not 0 a byte each is smaller; at half of them, 18% larger.
_GAPS_SHARE_MAX: Final = 0.6


@dataclass(frozen=True, slots=True)
class Packed:
    """A block's symbols as bytes; see the module."""

    mode: int
    squeezed: bytes
    plain: bytes


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A block's symbols.

    Attributes:
        symbols: int16[n], or int16[k] beside `positions`.
        positions: int64[k], increasing: where the symbols are that are not 0; None when `symbols`
            has all of them.
    """

    symbols: Symbols
    positions: NDArray[np.int64] | None


def plain_bytes_max(size: int) -> int:
    """The most that `pack` leaves uncompressed of `size` symbols."""
    return -(-size // 8)


def squeezed_bytes_max(size: int) -> int:
    """The most that `pack` hands on to be compressed of `size` symbols."""
    # Gaps: a token and two bytes for each symbol, and tokens of zeros alone.
    return 3 * size + size // _SKIP + 1


def pack(symbols: Symbols) -> Packed:
    """Symbols, flat int16 with |symbol| <= 32,767, in the mode that suits them."""
    positions = np.flatnonzero(symbols != 0)  # of bools: ten times as fast as of int16
    if len(positions) == 0:
        return Packed(ZERO, b"", b"")
    values = symbols[positions]
    magnitudes = np.abs(values)
    largest = int(magnitudes.max())
    if len(positions) <= _GAPS_SHARE_MAX * symbols.size:
        return _pack_gaps(positions, values, magnitudes, largest)
    if largest == 1 and len(positions) == symbols.size:
        return Packed(SIGNS, b"", np.packbits(symbols < 0, bitorder="little").tobytes())
    if largest <= _BYTE_ABS_MAX:
        return Packed(BYTES, symbols.astype(np.int8).tobytes(), b"")
    return Packed(WORDS, _planes(symbols.view(np.uint16)), b"")


def _pack_gaps(
    positions: NDArray[np.int64], values: Symbols, magnitudes: Symbols, largest: int
) -> Packed:
    gaps = np.diff(positions, prepend=-1) - 1
    large = magnitudes > 1
    skips = gaps // _SKIP
    skipped = int(skips.sum())
    ends = (gaps - _SKIP * skips + _LARGE * large).astype(np.uint8)
    if skipped:
        tokens = np.full(len(gaps) + skipped, _SKIP, np.uint8)
        tokens[np.cumsum(skips + 1) - 1] = ends
    else:
        tokens = ends
    rest = (magnitudes[large] - 2).astype(np.uint16)
    narrow = largest - 2 < _BYTE_VALUES
    tail = rest.astype(np.uint8).tobytes() if narrow else _planes(rest)
    return Packed(
        GAPS if narrow else GAPS16,
        tokens.tobytes() + tail,
        np.packbits(values < 0, bitorder="little").tobytes(),
    )


def _planes(words: NDArray[np.uint16]) -> bytes:
    """All low bytes, then all high bytes: the high ones are nearly all the same."""
    return (words & 0xFF).astype(np.uint8).tobytes() + (words >> 8).astype(np.uint8).tobytes()


def _from_planes(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    half = data.size // 2
    return np.asarray(data[:half] | (data[half:].astype(np.uint16) << 8), np.uint16)


def unpack(mode: int, squeezed: bytes, plain: bytes, size: int) -> Unpacked:
    """The inverse of `pack`, for `size` symbols.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong: bytes that `pack` does not
            make, whatever else they may mean.
    """
    if mode == ZERO:
        _expect(squeezed, 0)
        _expect(plain, 0)
        return Unpacked(np.empty(0, np.int16), np.empty(0, np.int64))
    if mode in (GAPS, GAPS16):
        return _unpack_gaps(mode, squeezed, plain, size)
    if mode == SIGNS:
        _expect(squeezed, 0)
        negative = _bits(plain, size)
        return Unpacked(np.where(negative, -1, 1).astype(np.int16), None)
    if mode not in (BYTES, WORDS):
        raise RemoteProtocolError(f"symbol mode {mode} is not known")
    _expect(plain, 0)
    data = np.frombuffer(squeezed, np.uint8)
    if mode == BYTES:
        _expect(squeezed, size)
        return Unpacked(data.view(np.int8).astype(np.int16), None)
    _expect(squeezed, 2 * size)
    return Unpacked(_from_planes(data).view(np.int16), None)


def _unpack_gaps(mode: int, squeezed: bytes, plain: bytes, size: int) -> Unpacked:
    # How many tokens there are is not sent: they are as many as have a sign bit, and the skips.
    data = np.frombuffer(squeezed, np.uint8)
    width = 1 if mode == GAPS else 2
    tokens = data[: _token_count(data, width)]
    rest = data[tokens.size :]
    steps = tokens & _SKIP
    kept = steps != _SKIP
    # A symbol is a step past its zeros, a skip is its 127 zeros and no symbol.
    steps += kept
    skips = np.count_nonzero(kept) != kept.size
    if skips and (tokens == _SKIP | _LARGE).any():
        raise RemoteProtocolError("a token that is both zeros alone and a symbol")
    positions = np.cumsum(steps, dtype=np.int64)
    positions -= 1
    if tokens.size == 0 or positions[-1] >= size or not kept[-1]:
        raise RemoteProtocolError("gaps lead out of the block, or nowhere")
    if skips:
        positions, tokens = positions[kept], tokens[kept]
    # 1 for a bit of 0, -1 for a bit of 1; int16 said aloud, which NumPy 1 makes int8 of a product.
    symbols = _bits(plain, positions.size).astype(np.int16)
    symbols *= -2
    symbols += 1
    large = np.flatnonzero(tokens >= _LARGE)
    if large.size:
        magnitudes = rest.astype(np.uint16) if width == 1 else _from_planes(rest)
        if magnitudes.size != large.size or magnitudes.max() > SYMBOL_ABS_MAX - 2:
            raise RemoteProtocolError("magnitudes do not fit their tokens")
        symbols[large] *= (magnitudes + 2).astype(np.int16)
    return Unpacked(symbols, positions)


def _token_count(data: NDArray[np.uint8], width: int) -> int:
    """How many tokens lead the data: t + width * (tokens with the top bit among them) = all.

    Each token adds 1 or 1 + width to the sum, so that it passes the data's length once at most.
    """
    # Nearly always right at once: only tokens have the top bit, magnitudes are small.
    large = np.count_nonzero(data >= _LARGE)
    guess = data.size - width * large
    if guess >= 0 and np.count_nonzero(data[:guess] >= _LARGE) == large:
        return int(guess)
    used = np.arange(1, data.size + 1) + width * np.cumsum(data >= _LARGE, dtype=np.int64)
    count = int(np.searchsorted(used, data.size, side="left")) + 1
    if count > data.size or used[count - 1] != data.size:
        raise RemoteProtocolError("tokens and magnitudes do not come out even")
    return count


def _bits(data: bytes, count: int) -> NDArray[np.bool_]:
    _expect(data, -(-count // 8))
    if count % 8 and data[-1] >> count % 8:
        raise RemoteProtocolError("bits are set behind the last sign")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")
    return bits.view(np.bool_)


def _expect(data: bytes, size: int) -> None:
    if len(data) < size:
        raise TruncatedError(f"{len(data)} bytes of symbols, {size} wanted")
    if len(data) > size:
        raise TrailingBytesError(f"{len(data)} bytes of symbols, {size} wanted")
