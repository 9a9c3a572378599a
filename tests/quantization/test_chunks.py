import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import chunks
from quantization.chunks import SCALE_TABLE, quantize
from quantization.rotation import chunks_of
from quantization.stages import NO_SCALES, Place, Stage
from tests.quantization.forge import TROUBLE, bell

HERE = Place(0)
SIZES = [1, 2, 63, 64, 65, 256, 300, 511, 512, 700]


def test_scales_grow_by_an_eighth_at_most_and_start_at_nothing() -> None:
    assert SCALE_TABLE[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert SCALE_TABLE[-1] == 15 * 2**30
    ratios = SCALE_TABLE[9:] / SCALE_TABLE[8:-1]
    assert (ratios > 1.0).all()
    assert (ratios <= 1.125).all()


@settings(max_examples=30)
@given(
    st.lists(st.floats(0.0, 1e30), min_size=1, max_size=20),
    st.integers(-60, 60),
    st.integers(0, 2**32),
)
def test_a_scale_travels_as_one_of_its_two_neighbours(
    exact: list[float], exponent: int, seed: int
) -> None:
    values = np.array(exact)
    unit, read = chunks._write(values, np.ones(values.size), exponent, Place(seed))
    wanted = values / 2.0**exponent
    back = SCALE_TABLE[read].astype(np.float64) * unit
    step = np.maximum(wanted / 8.0, unit)
    assert (np.abs(back - wanted) <= step * 1.001).all()
    assert (read[values == 0.0] == 0).all()


@pytest.mark.slow
def test_the_mean_of_a_scale_over_seeds_is_exact() -> None:
    """4,000 draws; each is off by at most an eighth, so the mean by 4 sigma = 0.4% at most."""
    values = np.array([1.0, 0.77, 0.031, 1e-4, 3e-9, 0.0, *np.linspace(0.05, 1.0, 50)])
    total = np.zeros(values.size)
    unit = 0.0
    for seed in range(4_000):
        unit, read = chunks._write(values, np.ones(values.size), 0, Place(seed))
        total += SCALE_TABLE[read] * unit
    sigma = np.maximum(values / 8.0, unit) / 2.0 / 4_000**0.5
    assert (np.abs(total / 4_000 - values) <= 4.0 * sigma + 1e-7 * values).all()


@pytest.mark.parametrize("size", SIZES)
def test_sums_maxima_and_spreads_are_by_chunk(size: int) -> None:
    cut = chunks_of(size)
    values = bell(size)
    edges = [*range(0, cut.edge + 1, cut.width), *([size] if cut.rest else [])]
    parts = [values[a:b] for a, b in itertools.pairwise(edges)]
    assert len(parts) == cut.count
    assert np.allclose(chunks.sums(values, cut), [np.sum(p, dtype=np.float64) for p in parts])
    assert chunks.maxima(values, cut).tolist() == [part.max() for part in parts]
    each = np.arange(cut.count, dtype=np.float32)
    wide = [float(i) for i, part in enumerate(parts) for _ in part]
    assert chunks.spread(each, cut).tolist() == wide


@settings(max_examples=30)
@given(
    st.sampled_from(["bell", "heavy", "sparse", "outlier", "constant", "alternating"]),
    st.sampled_from(SIZES),
    st.sampled_from([0.01, 0.5, 2.5, 4.5, 100.0]),
)
def test_every_chunk_that_is_not_zero_has_a_level(trouble: str, size: int, step: float) -> None:
    values = TROUBLE[trouble](size)
    rms = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    found = quantize(values, step, rms, 0.1)
    some = chunks.sums(np.abs(found.levels), found.cut) > 0.0
    assert (some == (found.energy > 0.0)).all()
    assert (np.abs(found.levels) <= 32_767).all()
    assert (found.levels * values >= 0.0).all()
    at_one = np.abs(found.levels) == 1.0
    assert np.allclose(found.ones, chunks.sums(np.where(at_one, np.abs(values), 0), found.cut))
    assert np.allclose(
        found.ones + found.rest, chunks.sums(values * found.levels, found.cut), rtol=1e-5
    )


@pytest.mark.parametrize("stage", [chunks.signs(), chunks.levels(2.5, 0.1)], ids=["1", "eden"])
@pytest.mark.parametrize("size", [256, 300, 65_536])
def test_what_is_read_has_the_inner_product_of_what_was_sent(stage: Stage, size: int) -> None:
    """<y, s q(y)> = |y|^2 in each chunk, but for the rounding of s to a byte: an eighth."""
    values = TROUBLE["heavy"](size)
    coded = stage.forward(values, HERE)
    cut = chunks_of(size)
    back = stage.backward(coded.values, coded.parameters, coded.scales, HERE)
    energy = chunks.sums(values.astype(np.float32) ** 2, cut)
    inner = chunks.sums(values * back, cut)
    unit = coded.parameters[0]
    slack = unit * chunks.sums(np.abs(values), cut)
    assert (np.abs(inner - energy) <= 0.126 * energy + slack).all()


def test_a_tensor_of_zeros_has_no_symbols_and_no_scales() -> None:
    for stage in (chunks.signs(), chunks.levels(2.5, 0.1)):
        coded = stage.forward(np.zeros(300, np.float32), HERE)
        assert not coded.values.any()
        assert not coded.scales.any()
        assert not stage.backward(coded.values, coded.parameters, coded.scales, HERE).any()


def test_a_tensor_of_nothing_has_no_chunks() -> None:
    assert chunks_of(0).count == 0
    assert NO_SCALES.size == 0
