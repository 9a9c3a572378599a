import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.chance import Purpose, signs, stream, subset, uniform

MASK = 2**64 - 1


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10 of one counter, from Salmon et al. 2011, section 3.3."""
    (k0, k1), (a, b, c, d) = key, counter
    for _ in range(10):
        first, second = 0xD2E7_470E_E14C_6C93 * a, 0xCA5A_8263_9512_1157 * c
        a, b, c, d = (
            (second >> 64) ^ b ^ k0,
            second & MASK,
            (first >> 64) ^ d ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + 0x9E37_79B9_7F4A_7C15) & MASK, (k1 + 0xBB67_AE85_84CA_A73B) & MASK
    return [a, b, c, d]


@given(st.integers(0, MASK), st.sampled_from(Purpose), st.integers(0, 4095), st.integers(0, 1024))
def test_streams_are_philox_of_seed_purpose_piece_and_tensor_alone(
    seed: int, purpose: Purpose, tensor: int, piece: int
) -> None:
    drawn = stream(seed, purpose, tensor, piece).random_raw(12)
    expected = [philox((seed, purpose), (1 + i, 0, piece, tensor)) for i in range(3)]
    assert drawn.tolist() == list(itertools.chain(*expected))


def test_philox_gives_the_words_that_its_authors_publish() -> None:
    assert philox((0, 0), (0, 0, 0, 0))[0] == 0x16554D9ECA36314C
    assert philox((MASK, MASK), (MASK,) * 4)[0] == 0x87B092C3013FE90B


def test_streams_of_other_places_purposes_and_seeds_differ() -> None:
    places = [
        (seed, purpose, tensor, piece)
        for seed in (0, 1, 2**32)
        for purpose in Purpose
        for tensor in (0, 1, 2)
        for piece in (0, 1, 2)
    ]
    firsts = {int(stream(*place).random_raw()) for place in places}
    assert len(firsts) == len(places)


def test_uniform_is_the_upper_bits_of_each_half_word_low_half_first() -> None:
    fractions = uniform(stream(7, Purpose.ROUNDING), 1001)
    words = stream(7, Purpose.ROUNDING).random_raw(2).tolist()
    assert fractions.dtype == np.float32
    assert fractions.shape == (1001,)
    assert 0.0 <= fractions.min() <= fractions.max() < 1.0
    halves = [half for word in words for half in (word & 0xFFFF_FFFF, word >> 32)]
    assert fractions[:4].tolist() == [(half >> 8) / 2**24 for half in halves]


def test_signs_are_the_bits_of_each_word_lowest_first() -> None:
    drawn = signs(stream(7, Purpose.ROTATION, 3, 1), 130)
    words = stream(7, Purpose.ROTATION, 3, 1).random_raw(3).tolist()
    assert drawn.dtype == np.float32
    assert drawn.tolist() == [2.0 * ((words[i // 64] >> (i % 64)) & 1) - 1.0 for i in range(130)]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65])
def test_as_many_are_drawn_as_were_asked_for(size: int) -> None:
    assert uniform(stream(1, Purpose.ROUNDING), size).shape == (size,)
    assert signs(stream(1, Purpose.ROTATION), size).shape == (size,)


@given(st.integers(0, 60), st.integers(0, 2**32), st.data())
def test_a_subset_is_positions_in_order_and_none_twice(
    size: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, size))
    kept = subset(stream(seed, Purpose.SUBSET), size, count)
    assert kept.shape == (count,)
    assert (np.diff(kept) > 0).all()
    assert all(0 <= position < size for position in kept)


def test_every_position_is_as_likely_as_any_other() -> None:
    """Chi-square over 20 positions, 2,000 draws of 5: below its 99.99% quantile for 19 degrees."""
    counts = np.zeros(20)
    for seed in range(2_000):
        counts[subset(stream(seed, Purpose.SUBSET), 20, 5)] += 1
    # Drawn without replacement: the variance of a count is smaller by (1 - 5 / 20) * 20 / 19.
    chi = float(np.sum((counts - 500.0) ** 2) / 500.0 / (0.75 * 20 / 19))
    assert chi < 50.8
