import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from quantization import CODEC_NAMES, feeds_back, resolve_downlink, resolve_uplink
from quantization.codecs import CODECS, VALUE_ABS_MAX, Noise, read_tensor, write_tensor
from quantization.symbols import Reader
from wire.errors import LocalProtocolError, NotFiniteError, RemoteProtocolError, TruncatedError

Flat = NDArray[np.float32]
LARGEST = float(np.float32(0.99 * VALUE_ABS_MAX))
TINY = float(np.finfo(np.float32).smallest_subnormal)

ANY_TENSOR = hnp.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.floats(-LARGEST, LARGEST, width=32),
)
UPDATE_LIKE = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-8.0, 8.0, width=32, allow_subnormal=False)
)
BY_CODEC = pytest.mark.parametrize("codec", CODEC_NAMES)

SHAPES_OF_TROUBLE = {
    "empty": np.zeros(0, np.float32),
    "one value": np.array([-3.5], np.float32),
    "all zero": np.zeros(17, np.float32),
    "negative zero": np.full(5, -0.0, np.float32),
    "equal": np.full(11, 0.25, np.float32),
    "smallest": np.array([TINY, -TINY, 0.0], np.float32),
    "denormal": np.array([1e-40, -3e-41, 1e-44, 0.0], np.float32),
    "outlier": np.array([1e30, *([1e-8] * 200)], np.float32),
    "largest": np.array([LARGEST, -LARGEST], np.float32),
}


def there_and_back(codec: str, values: Flat, seed: int = 0) -> Flat:
    reader = Reader(write_tensor(CODECS[codec], "w", values, Noise(seed)))
    back = read_tensor(CODECS[codec], "w", reader, values.size)
    assert reader.left == 0
    return back


def error_bound(codec: str, values: Flat) -> float:
    """What one element may be off by."""
    largest = float(np.abs(values).max(initial=0.0))
    rms = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
    bound = {
        "raw": 0.0,
        "f16": largest * 2.0**-11,
        "q8": largest / 127,
        "ecq_sr": 4 * rms,
        "ecq": 3 * rms,
    }[codec]
    # float32's own rounding, and the denormals that a scale is rounded to.
    return bound * 1.001 + largest * 1e-6 + (0.0 if codec == "raw" else 200 * TINY)


@BY_CODEC
@settings(max_examples=40)
@given(ANY_TENSOR, st.integers(0, 2**64))
def test_a_tensor_comes_back_whole_within_its_codecs_error(
    codec: str, values: Flat, seed: int
) -> None:
    back = there_and_back(codec, values, seed)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    off = np.abs(back.astype(np.float64) - values)
    assert (off <= error_bound(codec, values)).all() or (
        codec == "ecq_sr" and (off <= 1.5e-38).all()
    )


@BY_CODEC
@settings(max_examples=40)
@given(ANY_TENSOR)
def test_a_tensor_never_takes_more_bytes_than_its_size_allows(codec: str, values: Flat) -> None:
    written = write_tensor(CODECS[codec], "w", values, Noise(1))
    assert len(written) <= CODECS[codec].bytes_max(values.size)


@BY_CODEC
@pytest.mark.parametrize("trouble", SHAPES_OF_TROUBLE)
def test_odd_tensors_come_back_finite_and_zero_stays_zero(codec: str, trouble: str) -> None:
    values = SHAPES_OF_TROUBLE[trouble]
    back = there_and_back(codec, values)
    assert np.isfinite(back).all()
    assert back.shape == values.shape
    if not values.any():
        assert not back.any()


@settings(max_examples=40)
@given(ANY_TENSOR)
def test_raw_is_exact_to_the_bit(values: Flat) -> None:
    assert there_and_back("raw", values).tobytes() == values.tobytes()


@BY_CODEC
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.1e37, -3e38])
def test_a_value_that_is_not_finite_or_too_large_is_refused_by_name(codec: str, bad: float) -> None:
    values = np.array([0.0, bad, 1.0], np.float32)
    with pytest.raises(NotFiniteError, match="layer/w"):
        write_tensor(CODECS[codec], "layer/w", values, Noise(0))


@pytest.mark.parametrize("codec", ["q8", "ecq_sr"])
@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_stochastic_codecs_are_unbiased(codec: str, scale: float) -> None:
    values = (np.random.default_rng(5).standard_t(3, 48) * scale).astype(np.float32)
    seeds = 600
    mean = np.mean(
        [there_and_back(codec, values, seed).astype(np.float64) for seed in range(seeds)], axis=0
    )
    # A stochastically rounded value has a deviation of at most half a step.
    step = error_bound(codec, values)
    assert (np.abs(mean - values) <= 5.5 * step / 2 / seeds**0.5).all()
    assert abs(np.mean(mean - values)) <= 4 * step / 2 / (seeds * values.size) ** 0.5


def test_another_seed_rounds_otherwise_and_the_same_seed_the_same() -> None:
    values = np.linspace(-1.0, 1.0, 101, dtype=np.float32)
    for codec in ("q8", "ecq_sr"):
        first, same, other = (there_and_back(codec, values, seed) for seed in (1, 1, 2))
        assert first.tobytes() == same.tobytes()
        assert first.tobytes() != other.tobytes()


def test_noise_is_the_same_bits_on_any_machine() -> None:
    noise = Noise(7).uniform(1001)
    assert noise.dtype == np.float32
    assert noise.min() >= 0.0
    assert noise.max() < 1.0
    first = int(np.random.Philox(key=7).random_raw(1)[0])
    assert noise[0] == ((first & 0xFFFFFFFF) >> 8) / 2**24
    assert noise[1] == (first >> 40) / 2**24


@settings(max_examples=50)
@given(UPDATE_LIKE)
def test_ecq_is_a_contraction(values: Flat) -> None:
    """Karimireddy et al. 2019, assumption A: the error is smaller than what was sent."""
    error = np.linalg.norm(there_and_back("ecq", values).astype(np.float64) - values)
    norm = float(np.linalg.norm(values.astype(np.float64)))
    assert error < norm or norm == 0.0


@settings(max_examples=50)
@given(UPDATE_LIKE)
def test_what_feeds_back_never_grows_its_error(values: Flat) -> None:
    for codec in CODEC_NAMES:
        if feeds_back(codec):
            error = there_and_back(codec, values).astype(np.float64) - values
            # q8's step is set by the largest value, which the others may be far below.
            slack = 0.0 if codec != "q8" else float(np.abs(values).max()) / 127 * values.size**0.5
            assert np.linalg.norm(error) <= np.linalg.norm(values.astype(np.float64)) + slack


@settings(max_examples=25)
@given(hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-1, 1, width=32)))
def test_ecq_with_error_feedback_catches_up(values: Flat) -> None:
    """The same change sent again and again, each time with what was left out, arrives."""
    left = values.astype(np.float32)
    for _ in range(25):
        left = left - there_and_back("ecq", left)
    norm = float(np.linalg.norm(values.astype(np.float64)))
    assert np.linalg.norm(left.astype(np.float64)) <= 0.1 * norm + 1e-30


@BY_CODEC
@settings(max_examples=60)
@given(st.binary(max_size=80), st.integers(0, 20))
def test_any_bytes_are_a_finite_tensor_or_a_typed_error(codec: str, data: bytes, size: int) -> None:
    try:
        values = read_tensor(CODECS[codec], "w", Reader(data), size)
    except RemoteProtocolError:
        return
    assert values.shape == (size,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@pytest.mark.parametrize("codec", ["f16", "q8"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_not_one_is_refused(codec: str, scale: float) -> None:
    data = np.array([scale], "<f4").tobytes() + bytes(8)
    with pytest.raises(NotFiniteError, match="scale"):
        read_tensor(CODECS[codec], "w", Reader(data), 4)


def test_a_scale_that_lifts_values_out_of_float32_is_refused() -> None:
    data = np.array([3e38], "<f4").tobytes() + np.array([127], "i1").tobytes()
    with pytest.raises(NotFiniteError):
        read_tensor(CODECS["q8"], "w", Reader(data), 1)


@BY_CODEC
def test_every_truncation_of_a_tensor_is_a_truncated_error(codec: str) -> None:
    values = np.array([1.0, -7.0, 0.0, 0.1, 0.2, -0.3, 4.0], np.float32)
    whole = write_tensor(CODECS[codec], "w", values, Noise(3))
    for end in range(len(whole)):
        with pytest.raises(TruncatedError, match=r"^w: "):
            read_tensor(CODECS[codec], "w", Reader(whole[:end]), values.size)


def test_auto_means_unbiased_up_and_fed_back_down() -> None:
    assert resolve_uplink("auto") == "ecq_sr"
    assert not feeds_back("ecq_sr")
    assert resolve_downlink("auto") == "ecq"
    assert feeds_back("ecq")
    assert [resolve_uplink(name) for name in CODEC_NAMES] == list(CODEC_NAMES)


def test_a_codec_that_does_not_exist_is_our_own_mistake() -> None:
    for resolve in (resolve_uplink, resolve_downlink, feeds_back):
        with pytest.raises(LocalProtocolError, match="raw, f16, q8"):
            resolve("zip")


def test_codec_ids_are_never_reused() -> None:
    assert {name: codec.number for name, codec in CODECS.items()} == {
        "raw": 1,
        "f16": 2,
        "q8": 3,
        "ecq_sr": 4,
        "ecq": 5,
    }
