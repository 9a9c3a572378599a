import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantization.spread import PIECE, chunk_of, gather, spread

SIZES = st.integers(0, 400)


@given(st.integers(0, 2**26))
def test_a_chunk_is_the_least_power_of_two_whose_square_holds_all(size: int) -> None:
    chunk = chunk_of(size)
    assert chunk.bit_count() == 1
    assert chunk**2 >= size
    assert chunk == 1 or (chunk // 2) ** 2 < size
    assert chunk <= max(1, size)


@settings(max_examples=30)
@given(SIZES, st.integers(0, 2**64 - 1))
@example(0, 0)
@example(1, 0)
@example(PIECE + 300, 7)
def test_what_is_spread_is_gathered_and_keeps_its_norm(size: int, seed: int) -> None:
    normal = np.random.Generator(np.random.Philox(key=seed)).standard_normal(size)
    values = normal.astype(np.float32)
    before = values.copy()
    rotated = spread(values, seed)
    assert rotated.shape == (size,)
    assert rotated.dtype == np.float32
    assert np.isclose(np.linalg.norm(rotated), np.linalg.norm(values), rtol=1e-5)
    assert np.allclose(gather(rotated, seed), values, atol=1e-5)
    assert (values == before).all()


@pytest.mark.parametrize("size", [257, 1_000, 4_096, 5_003])
@pytest.mark.parametrize("place", [0, 300, -1])
def test_one_value_is_spread_over_all_coordinates(size: int, place: int) -> None:
    place = min(place, size - 1)
    values = np.zeros(size, np.float32)
    values[place] = 1.0
    largest = max(float(np.abs(spread(values, seed)).max()) for seed in range(8))
    # Standard deviations of an even share; a single turn of chunks leaves sqrt(n / chunk) or more.
    assert largest * np.sqrt(size) < 4.5


def test_each_seed_spreads_differently() -> None:
    values = np.ones(100, np.float32)
    assert not np.allclose(spread(values, 1), spread(values, 2))
