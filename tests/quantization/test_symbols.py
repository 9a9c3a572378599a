import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantization.symbols import (
    BYTES,
    SYMBOL_ABS_MAX,
    TRITS,
    WORDS,
    ZERO,
    Reader,
    pack,
    symbol_bytes_max,
    unpack,
)
from wire.errors import RemoteProtocolError, TruncatedError

Symbols = NDArray[np.int16]
ANY = hnp.arrays(
    np.int16, st.integers(0, 50), elements=st.integers(-SYMBOL_ABS_MAX, SYMBOL_ABS_MAX)
)
# What updates look like: digits with a rare outlier.
SPARSE = hnp.arrays(
    np.int16,
    st.integers(0, 200),
    elements=st.sampled_from([0] * 20 + [-1, 1] * 5 + [2, -300, SYMBOL_ABS_MAX]),
)


def trits(size: int, positions: list[int], values: list[int], digits: bytes | None = None) -> bytes:
    """What a stranger may claim to be packed."""
    return b"".join(
        (
            bytes((TRITS,)),
            len(positions).to_bytes(4, "little"),
            np.array(positions, "<u4").tobytes(),
            np.array(values, "<i2").tobytes(),
            bytes(-(-size // 5)) if digits is None else digits,
        )
    )


@given(ANY | SPARSE)
def test_symbols_come_back(symbols: Symbols) -> None:
    packed = pack(symbols)
    reader = Reader(packed)
    back = unpack(reader, symbols.size)
    assert back.dtype == np.int16
    assert (back == symbols).all()
    assert reader.left == 0
    assert len(packed) <= symbol_bytes_max(symbols.size)


@pytest.mark.parametrize(
    ("symbols", "mode", "size"),
    [
        ([], ZERO, 1),
        ([0] * 1000, ZERO, 1),
        ([0, 1, -1, 1, 0, 0], TRITS, 1 + 4 + 2),
        ([0] * 79 + [2], TRITS, 1 + 4 + 6 + 16),
        ([2, -128 + 1, 3], BYTES, 1 + 3),
        ([2, 300, 3], WORDS, 1 + 6),
    ],
)
def test_the_smallest_mode_is_taken(symbols: list[int], mode: int, size: int) -> None:
    packed = pack(np.array(symbols, np.int16))
    assert packed[0] == mode
    assert len(packed) == size


@given(ANY | SPARSE)
def test_every_truncation_is_a_truncated_error(symbols: Symbols) -> None:
    packed = pack(symbols)
    for end in range(0, len(packed), max(1, len(packed) // 16)):
        with pytest.raises(TruncatedError):
            unpack(Reader(packed[:end]), symbols.size)


@given(st.binary(max_size=60), st.integers(0, 30))
def test_any_bytes_are_symbols_or_a_typed_error(data: bytes, size: int) -> None:
    try:
        symbols = unpack(Reader(data), size)
    except RemoteProtocolError:
        return
    assert symbols.shape == (size,)
    assert symbols.dtype == np.int16


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes((4,)), "mode 4"),
        (bytes((255,)), "mode 255"),
        (trits(5, [0] * 6, [2] * 6), "6 escapes for 5"),
        (trits(5, [5], [2]), "out of range"),
        (trits(5, [2**32 - 1], [2]), "out of range"),
        (trits(5, [3, 1], [2, 2]), "out of order"),
        (trits(5, [3, 3], [2, 2]), "out of order"),
        (trits(5, [3], [1]), "not an outlier"),
        (trits(5, [3], [0]), "not an outlier"),
        (trits(5, [], [], bytes((243,))), "base-3"),
        (trits(5, [], [], bytes((255,))), "base-3"),
    ],
)
def test_escapes_that_pack_would_not_write_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        unpack(Reader(data), 5)


def test_a_claim_of_four_billion_escapes_allocates_nothing() -> None:
    with pytest.raises(RemoteProtocolError, match="4294967295 escapes"):
        unpack(Reader(bytes((TRITS,)) + b"\xff" * 4), 5)


def test_the_lowest_int16_is_an_outlier_like_any_other() -> None:
    assert unpack(Reader(trits(5, [2], [-32_768])), 5).tolist() == [-1, -1, -32_768, -1, -1]


def test_a_reader_never_reads_past_its_end() -> None:
    reader = Reader(b"abc")
    assert bytes(reader.take(2)) == b"ab"
    with pytest.raises(TruncatedError, match="1 bytes left, 2 wanted"):
        reader.take(2)
    assert reader.left == 1
