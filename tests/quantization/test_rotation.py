import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantization.chance import Purpose, signs, stream
from quantization.rotation import CHUNK, ROTATED_MIN, chunks_of, rotate, unrotate
from tests.quantization.forge import TROUBLE, bell, outlier

SIZES = [0, 1, 2, 63, 64, 65, 100, 128, 255, 256, 257, 300, 511, 512, 513, 767, 768, 1000, 65_536]


def hadamard(size: int) -> NDArray[np.float64]:
    """Sylvester's matrix over its root: orthonormal."""
    made = np.ones((1, 1))
    while len(made) < size:
        made = np.block([[made, made], [made, -made]])
    return made / math.sqrt(size)


def by_matrices(values: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """The rotation as the module's text says it."""
    size = values.size
    if size < ROTATED_MIN:
        return values.astype(np.float64)
    bits = stream(seed, Purpose.ROTATION, 2, 3)
    outer, inner = signs(bits, size), signs(bits, 4 * CHUNK).reshape(2, -1)
    out = values.astype(np.float64) * outer
    cut = chunks_of(size)
    for start in range(0, cut.edge, CHUNK):
        part = out[start : start + CHUNK]
        part[:] = hadamard(CHUNK) @ (inner[0, :CHUNK] * (hadamard(CHUNK) @ part))
    rest, count = out[cut.edge :], cut.rest
    if count:
        width = 2 ** int(math.log2(count))
        rest[:width] = hadamard(width) @ rest[:width]
        rest *= inner[0, :count]
        rest[count - width :] = hadamard(width) @ rest[count - width :]
        if width < count:
            rest *= inner[1, :count]
            rest[:width] = hadamard(width) @ rest[:width]
    return out


@pytest.mark.parametrize("size", SIZES)
def test_chunks_cover_a_piece_and_only_the_last_is_longer(size: int) -> None:
    cut = chunks_of(size)
    assert cut.whole * cut.width + cut.rest == size
    assert cut.edge == size - cut.rest
    if size < ROTATED_MIN:
        assert (cut.count, cut.rest) == (size, 0)
    else:
        assert cut.width == CHUNK
        assert cut.count == max(1, size // CHUNK)
        assert cut.rest == 0 or ROTATED_MIN <= cut.rest < 2 * CHUNK


@pytest.mark.parametrize("size", SIZES[:-1])
def test_the_rotation_is_what_its_matrices_say(size: int) -> None:
    values = bell(size)
    expected = by_matrices(values, 9)
    assert np.allclose(rotate(values, 9, 2, 3), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_rotation_keeps_norms_and_is_taken_back(size: int) -> None:
    values = bell(size)
    turned = rotate(values, 1)
    assert turned.dtype == np.float32
    assert math.isclose(np.linalg.norm(turned), np.linalg.norm(values), rel_tol=1e-5)
    assert np.allclose(unrotate(turned, 1), values, rtol=0, atol=1e-5)


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(TROUBLE)),
    st.sampled_from(SIZES[:-1]),
    st.integers(0, 2**32),
    st.sampled_from([1.0, 1e-30, 1e30]),
)
def test_any_values_are_taken_back_to_a_millionth_of_the_largest(
    trouble: str, size: int, seed: int, scale: float
) -> None:
    with np.errstate(over="ignore", under="ignore"):
        values = np.nan_to_num(TROUBLE[trouble](size) * np.float32(scale), posinf=0.0, neginf=0.0)
    values = np.clip(values, -1e36, 1e36)
    back = unrotate(rotate(values, seed), seed)
    largest = float(np.abs(values).max(initial=0.0))
    assert np.allclose(back, values, rtol=0, atol=2e-5 * largest + 1e-43)


def test_neither_way_changes_its_input() -> None:
    values = bell(300)
    kept = values.copy()
    turned = rotate(values, 4)
    again = turned.copy()
    unrotate(turned, 4)
    assert (values == kept).all()
    assert (turned == again).all()


def test_seed_tensor_and_piece_each_give_another_rotation() -> None:
    values = bell(256)
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({rotate(values, *place).tobytes() for place in places}) == len(places)


def test_one_huge_value_is_spread_so_that_the_others_still_count() -> None:
    """Rotated once, all would have its magnitude; twice, they are as if drawn from a Gaussian."""
    turned = np.concatenate([rotate(outlier(512, 300), seed) for seed in range(40)])
    scaled = turned / np.sqrt(np.mean(np.square(turned, dtype=np.float64)))
    # Half of the values have no part in the outlier's chunk.
    loud = np.abs(scaled[np.abs(scaled) > 1e-2]) / math.sqrt(2.0)
    assert 0.30 < np.mean(loud > 1.0) < 0.34 + 0.02
    assert loud.max() > 3.0
