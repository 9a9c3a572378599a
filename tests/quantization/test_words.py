import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantization.words import WORD_BITS_MAX, pack_words, packed_bytes, unpack_words
from wire.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    TrailingBytesError,
    TruncatedError,
)

Words = NDArray[np.uint32]


@st.composite
def words_of_a_width(draw: st.DrawFn) -> tuple[int, Words]:
    bits = draw(st.integers(1, WORD_BITS_MAX))
    words = draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    return bits, np.array(words, np.uint32)


@settings(max_examples=40)
@given(words_of_a_width())
def test_words_of_any_width_come_back_from_just_their_bits(case: tuple[int, Words]) -> None:
    bits, words = case
    data = pack_words(words, bits)
    assert len(data) == packed_bytes(words.size, bits) == -(-words.size * bits // 8)
    back = unpack_words(data, words.size, bits)
    assert back.dtype == np.uint32
    assert back.tolist() == words.tolist()


@settings(max_examples=40)
@given(words_of_a_width())
def test_the_stream_is_one_little_endian_integer(case: tuple[int, Words]) -> None:
    bits, words = case
    number = sum(int(word) << (bits * place) for place, word in enumerate(words))
    assert pack_words(words, bits) == number.to_bytes(packed_bytes(words.size, bits), "little")


@pytest.mark.parametrize("bits", [1, 3, 7, 8, 13, 24, 32])
def test_blocks_join_without_a_seam(bits: int) -> None:
    raw = np.random.Philox(key=bits).random_raw(65_536 + 11) >> np.uint64(64 - bits)
    words = raw.astype(np.uint32)
    data = pack_words(words, bits)
    assert (unpack_words(data, words.size, bits) == words).all()
    # The words beside the seam, read without any array.
    number = int.from_bytes(data, "little") >> (65_534 * bits)
    for place in range(65_534, 65_538):
        assert number & (2**bits - 1) == words[place]
        number >>= bits


@settings(max_examples=40)
@given(words_of_a_width(), st.data())
def test_another_length_is_refused_before_it_is_read(
    case: tuple[int, Words], data: st.DataObject
) -> None:
    bits, words = case
    packed = pack_words(words, bits)
    with pytest.raises(TrailingBytesError):
        unpack_words(packed + data.draw(st.binary(min_size=1, max_size=9)), words.size, bits)
    if packed:
        with pytest.raises(TruncatedError):
            unpack_words(packed[: data.draw(st.integers(0, len(packed) - 1))], words.size, bits)


@given(st.integers(1, WORD_BITS_MAX), st.integers(1, 15))
def test_every_bit_after_the_last_word_must_be_zero(bits: int, count: int) -> None:
    packed = bytearray(packed_bytes(count, bits))
    for position in range(count * bits, 8 * len(packed)):
        packed[-1] = 1 << (position % 8)
        with pytest.raises(RemoteProtocolError, match="after the last word"):
            unpack_words(bytes(packed), count, bits)


def test_a_word_too_large_and_an_impossible_width_are_our_own_mistakes() -> None:
    with pytest.raises(LocalProtocolError, match="in 4 bits"):
        pack_words(np.array([15, 16], np.uint32), 4)
    for bits in (0, -1, 33):
        with pytest.raises(LocalProtocolError, match="1 to 32"):
            pack_words(np.zeros(1, np.uint32), bits)
        with pytest.raises(LocalProtocolError, match="1 to 32"):
            unpack_words(b"", 0, bits)
