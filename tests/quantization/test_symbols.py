import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantization.symbols import (
    BYTES,
    GAPS,
    GAPS16,
    SIGNS,
    SYMBOL_ABS_MAX,
    WORDS,
    ZERO,
    Packed,
    Symbols,
    pack,
    plain_bytes_max,
    squeezed_bytes_max,
    unpack,
)
from wire.errors import RemoteProtocolError, TrailingBytesError, TruncatedError

ANY = hnp.arrays(
    np.int16, st.integers(0, 50), elements=st.integers(-SYMBOL_ABS_MAX, SYMBOL_ABS_MAX)
)
SPARSE = hnp.arrays(
    np.int16,
    st.integers(0, 900),
    elements=st.sampled_from([-1, 1, 2, -3, 257, 258, -300, SYMBOL_ABS_MAX]),
    fill=st.just(0),
)
SIGNS_ALONE = hnp.arrays(np.int16, st.integers(0, 70), elements=st.sampled_from([-1, 1]))


def whole(packed: Packed, size: int) -> Symbols:
    """All symbols, those that are 0 among them."""
    back = unpack(packed.mode, packed.squeezed, packed.plain, size)
    assert back.symbols.dtype == np.int16
    if back.positions is None:
        return back.symbols
    assert (np.diff(back.positions) > 0).all()
    assert back.symbols.all()
    symbols = np.zeros(size, np.int16)
    symbols[back.positions] = back.symbols
    return symbols


def ones_at(size: int, *positions: int) -> Symbols:
    symbols = np.zeros(size, np.int16)
    symbols[list(positions)] = 1
    return symbols


@settings(max_examples=60)
@given(ANY | SPARSE | SIGNS_ALONE)
@example(ones_at(65_536, 0, 65_535))
@example(ones_at(128, 127))
@example(ones_at(127, 126))
@example(ones_at(255, 0, 128))
@example(np.full(65_536, SYMBOL_ABS_MAX, np.int16))
def test_symbols_come_back_within_the_bounds_of_their_bytes(symbols: Symbols) -> None:
    packed = pack(symbols)
    assert (whole(packed, symbols.size) == symbols).all()
    assert len(packed.squeezed) <= squeezed_bytes_max(symbols.size)
    assert len(packed.plain) <= plain_bytes_max(symbols.size)


@pytest.mark.parametrize(
    ("symbols", "mode", "squeezed", "plain"),
    [
        ([], ZERO, "", ""),
        ([0] * 1000, ZERO, "", ""),
        ([0, 0, 1, 0, 0, 0, -1, 0], GAPS, "0203", "02"),
        ([0] * 126 + [-1], GAPS, "7e", "01"),
        ([0] * 127 + [1], GAPS, "7f00", "00"),
        ([0] * 300 + [1], GAPS, "7f7f2e", "00"),
        ([0, 2, 0, 0, 0, -257, 0, 0], GAPS, "818300ff", "02"),
        ([0, 2, 0, 0, 0, -258, 0, 0], GAPS16, "8183" + "0000" + "0001", "02"),
        ([0, SYMBOL_ABS_MAX, 0, 0], GAPS16, "81" + "fd" + "7f", "00"),
        ([1, -1, 1, 1, 1, 1, 1, 1, -1], SIGNS, "", "0201"),
        ([2, -127, 0], BYTES, "028100", ""),
        ([2, -128, 0], WORDS, "028000" + "00ff00", ""),
    ],
)
def test_every_mode_is_what_the_page_says(
    symbols: list[int], mode: int, squeezed: str, plain: str
) -> None:
    packed = pack(np.array(symbols, np.int16))
    assert packed == Packed(mode, bytes.fromhex(squeezed), bytes.fromhex(plain))


@settings(max_examples=30)
@given(ANY | SPARSE | SIGNS_ALONE, st.integers(0, 10_000))
def test_a_string_that_is_cut_or_longer_is_a_typed_error_or_well_formed(
    symbols: Symbols, at: int
) -> None:
    """Gaps carry no count: cut ones may read as others, within the block all the same."""
    packed = pack(symbols)
    pairs = [
        (packed.squeezed[: at % (len(packed.squeezed) + 1)], packed.plain),
        (packed.squeezed, packed.plain[: at % (len(packed.plain) + 1)]),
        (packed.squeezed + bytes((at % 256,)), packed.plain),
        (packed.squeezed, packed.plain + bytes((at % 256,))),
    ]
    for squeezed, plain in pairs:
        try:
            back = whole(Packed(packed.mode, squeezed, plain), symbols.size)
        except RemoteProtocolError:
            continue
        assert back.shape == symbols.shape


@settings(max_examples=100)
@given(
    st.integers(0, 7) | st.just(255),
    st.binary(max_size=40)
    | st.lists(st.sampled_from([0, 1, 126, 127, 128, 129, 254, 255]), max_size=30).map(bytes),
    st.binary(max_size=6) | st.integers(0, 6).map(bytes),
    st.integers(0, 300),
)
def test_any_bytes_are_symbols_or_a_typed_error(
    mode: int, squeezed: bytes, plain: bytes, size: int
) -> None:
    try:
        back = whole(Packed(mode, squeezed, plain), size)
    except RemoteProtocolError:
        return
    assert back.shape == (size,)


@pytest.mark.parametrize(
    ("mode", "squeezed", "plain", "error", "why"),
    [
        (6, "", "", RemoteProtocolError, "mode 6"),
        (255, "", "", RemoteProtocolError, "mode 255"),
        (ZERO, "00", "", TrailingBytesError, "1 bytes of symbols, 0"),
        (ZERO, "", "00", TrailingBytesError, "1 bytes of symbols, 0"),
        (GAPS, "", "", RemoteProtocolError, "nowhere"),
        (GAPS, "7f", "", RemoteProtocolError, "nowhere"),
        (GAPS, "007f", "00", RemoteProtocolError, "nowhere"),
        (GAPS, "0a", "00", RemoteProtocolError, "out of the block"),
        (GAPS, "00000808", "00", RemoteProtocolError, "out of the block"),
        (GAPS, "7f" * 1000 + "00", "00", RemoteProtocolError, "out of the block"),
        (GAPS, "ff00", "00", RemoteProtocolError, "both"),
        (GAPS, "80", "00", RemoteProtocolError, "come out even"),
        (GAPS, "8000008000", "00", RemoteProtocolError, "come out even"),
        (GAPS16, "8000", "00", RemoteProtocolError, "come out even"),
        (GAPS16, "80ff7f", "00", RemoteProtocolError, "fit"),
        (GAPS16, "80fe7f", "00", RemoteProtocolError, "fit"),
        (GAPS16, "80fd80", "00", RemoteProtocolError, "fit"),
        (GAPS16, "80ffff", "00", RemoteProtocolError, "fit"),
        (GAPS, "0000", "", TruncatedError, "0 bytes of symbols, 1"),
        (GAPS, "0000", "0000", TrailingBytesError, "2 bytes of symbols, 1"),
        (GAPS, "0000", "04", RemoteProtocolError, "behind the last sign"),
        (SIGNS, "00", "0000", TrailingBytesError, "1 bytes of symbols, 0"),
        (SIGNS, "", "00", TruncatedError, "1 bytes of symbols, 2"),
        (SIGNS, "", "000000", TrailingBytesError, "3 bytes of symbols, 2"),
        (SIGNS, "", "0004", RemoteProtocolError, "behind the last sign"),
        (BYTES, "00" * 9, "", TruncatedError, "9 bytes of symbols, 10"),
        (BYTES, "00" * 11, "", TrailingBytesError, "11 bytes of symbols, 10"),
        (BYTES, "00" * 10, "00", TrailingBytesError, "1 bytes of symbols, 0"),
        (WORDS, "00" * 19, "", TruncatedError, "19 bytes of symbols, 20"),
        (WORDS, "00" * 21, "", TrailingBytesError, "21 bytes of symbols, 20"),
    ],
)
def test_what_pack_would_not_write_is_refused_by_name(
    mode: int, squeezed: str, plain: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        unpack(mode, bytes.fromhex(squeezed), bytes.fromhex(plain), 10)


def test_a_string_of_two_hundred_thousand_tokens_takes_time_and_memory_in_proportion() -> None:
    squeezed = b"\x80" * 98_304 + bytes(98_304)
    symbols = unpack(GAPS, squeezed, bytes(98_304 // 8), 98_304).symbols
    assert symbols.tolist() == [2] * 98_304


def test_the_largest_magnitude_is_that_of_an_int16_and_no_more() -> None:
    back = unpack(GAPS16, bytes.fromhex("80fd7f"), b"\x01", 1)
    assert back.symbols.tolist() == [-SYMBOL_ABS_MAX]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.data())
def test_gaps_of_any_length_keep_their_places(gaps: list[int], data: st.DataObject) -> None:
    positions: NDArray[np.int64] = np.cumsum([gap + 1 for gap in gaps]) - 1
    size = int(positions[-1]) + 1 + data.draw(st.integers(2 * len(gaps), 900))
    symbols = np.zeros(size, np.int16)
    symbols[positions] = data.draw(
        st.lists(st.sampled_from([1, -1, 2, -9]), min_size=len(gaps), max_size=len(gaps))
    )
    packed = pack(symbols)
    assert packed.mode == GAPS
    assert (whole(packed, size) == symbols).all()
