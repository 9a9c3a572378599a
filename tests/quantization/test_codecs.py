import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization import (
    CODEC_NAMES,
    Payload,
    check_spec,
    decode,
    encode,
    feeds_back,
    name_of,
    payload_bytes_max,
)
from quantization.blocks import BLOCK_PARAMETERS_MAX
from quantization.codecs import AUTO, CODECS, VALUE_ABS_MAX, codec_for
from quantization.rotation import Chunks, chunks_of, rotate
from tests.quantization.forge import (
    LARGEST,
    NORMAL,
    TINY,
    TROUBLE,
    Flat,
    bell,
    flat_schema,
    schema,
    tensors_of,
    there,
)
from wire import Schema, Tensors
from wire.errors import LocalProtocolError, NotFiniteError

EACH = [*CODECS, "ecq_sr:0.001", "ecq_sr:100", "ecq:0.5", "eden:0.5", "topk_sign:0.3"]
BY_CODEC = pytest.mark.parametrize("codec", EACH)
SHAPES = [(), (0,), (1,), (2,), (4,), (63,), (64,), (3, 5, 7), (257,), (600,), (2, 0, 3)]
ANY_TENSOR = hnp.arrays(
    np.float32, st.integers(1, 90), elements=st.floats(-LARGEST, LARGEST, width=32)
)


def check_bound(payload: bytes, made: Schema, tensors: Tensors) -> None:
    """What the codec's module says that a value, or a chunk, is off by at the most."""
    read, back = Payload(payload, made), decode(payload, made)
    for spec, name, own in zip(made.tensors, read.codecs, read._parameters, strict=True):
        if name is not None:
            check_tensor(name, own, np.ravel(tensors[spec.name]), np.ravel(back[spec.name]))


def check_tensor(name: str, own: tuple[float, ...], values: Flat, back: Flat) -> None:
    exact = values.astype(np.float64)
    off = np.abs(back - exact)
    if name == "raw":
        assert back.tobytes() == values.tobytes()
        return
    slack = 4e-7 * np.abs(exact) + 2.0 * TINY
    if name == "f16":
        assert (off <= np.abs(exact) / 2**11 + np.abs(exact).max() / 2**25 + slack).all()
    elif name in ("q8", "q4", "ecq_sr"):
        assert (off <= own[0] * (1.0 + 1e-6) + slack).all()
    elif name == "ecq":
        at_one = np.abs(back) == np.float32(own[1])
        assert (off <= own[0] * np.where(at_one, 1.0, 0.5) * (1.0 + 1e-6) + slack).all()
    elif name == "topk_sign":
        assert np.linalg.norm(off) <= np.linalg.norm(exact) * (1.0 + 1e-6) + 1e-42
    else:
        for start in range(0, values.size, BLOCK_PARAMETERS_MAX):
            piece = slice(start, min(start + BLOCK_PARAMETERS_MAX, values.size))
            cut = chunks_of(piece.stop - start)
            error, norm = (
                np.sqrt(np.add.reduceat(np.square(each[piece]), edges_of(cut)))
                for each in (off, exact)
            )
            sizes = np.array([cut.width] * cut.whole + [cut.rest] * (cut.rest > 0))
            assert (error <= np.sqrt(sizes) * (1.5 * norm + 10.0 * own[0]) + 1e-43).all()


def edges_of(cut: Chunks) -> list[int]:
    return [*range(0, cut.edge, cut.width), *([cut.edge] if cut.rest else [])]


@pytest.mark.slow
@BY_CODEC
@pytest.mark.parametrize("trouble", TROUBLE)
def test_odd_tensors_of_every_shape_come_back_within_the_bound(codec: str, trouble: str) -> None:
    for shape in SHAPES:
        made = schema(shape)
        tensors = tensors_of(made, TROUBLE[trouble](max(math.prod(shape), 1)))
        payload = encode(codec, tensors, made, seed=3)
        back = decode(payload, made)["t0"]
        assert back.dtype == np.float32
        assert back.shape == shape
        assert np.isfinite(back).all()
        assert len(payload) <= payload_bytes_max(made)
        if not tensors["t0"].any():
            assert not back.any()
        check_bound(payload, made, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("codec", [*EACH, AUTO])
@pytest.mark.parametrize("size", [65_536, 65_537, 131_200])
def test_tensors_of_several_pieces_come_back_within_the_bound(codec: str, size: int) -> None:
    for make in TROUBLE.values():
        made, values = flat_schema(size), make(size)
        payload = there(codec, values)
        assert len(payload) <= payload_bytes_max(made)
        check_bound(payload, made, {"t0": values})


@pytest.mark.parametrize("codec", [*EACH, AUTO])
@settings(max_examples=12)
@given(ANY_TENSOR, st.integers(0, 2**64), st.integers(-126, 0))
@example(np.array([LARGEST, -LARGEST], np.float32), 0, 0)
@example(np.array([TINY], np.float32), 0, 0)
def test_any_tensor_comes_back_within_the_bound(
    codec: str, values: Flat, seed: int, exponent: int
) -> None:
    values = np.ldexp(values, exponent)
    check_bound(there(codec, values, seed), flat_schema(values.size), {"t0": values})


@pytest.mark.parametrize("codec", [*EACH, AUTO])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 9e35])
def test_scale_makes_no_difference(codec: str, scale: float) -> None:
    """But at the end of float32's range, where a step cannot be smaller than 2^-126."""
    values = (bell(300).astype(np.float64) * scale).astype(np.float32)
    check_bound(there(codec, values), flat_schema(300), {"t0": values})
    back = decode(there(codec, values), flat_schema(300))["t0"]
    norm = np.linalg.norm(values.astype(np.float64))
    error = np.linalg.norm(back.astype(np.float64) - values) / norm
    ones = bell(300)
    usual = np.linalg.norm(decode(there(codec, ones), flat_schema(300))["t0"] - ones)
    usual /= np.linalg.norm(ones)
    if scale > 1e-37:
        assert error <= 1.5 * usual + 1e-3


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.1e37, -3e38])
def test_a_value_that_is_not_finite_or_too_large_is_refused_by_name(codec: str, bad: float) -> None:
    assert bad != bad or abs(bad) > VALUE_ABS_MAX  # noqa: PLR0124 - NaN
    with pytest.raises(NotFiniteError, match="t0"):
        there(codec, np.array([0.0, bad, 1.0], np.float32))


def test_what_would_be_read_as_more_than_a_float32_holds_is_refused_when_it_is_sent() -> None:
    """With a step of 20 rms one value stands for its whole chunk."""
    with pytest.raises(NotFiniteError, match="not finite"):
        there("eden:20", np.full(256, LARGEST, np.float32))
    values = np.full(256, LARGEST / 500.0, np.float32)
    check_bound(there("eden:20", values), flat_schema(256), {"t0": values})


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(codec: str) -> None:
    values = bell(300)
    first, same, other = (there(codec, values, seed) for seed in (1, 1, 2))
    assert first == same
    drawn = codec not in ("raw", "f16", "ecq", "topk_sign")
    assert (first != other) == drawn


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_encoding_leaves_what_it_is_given_alone(codec: str) -> None:
    values = bell(700)
    kept = values.copy()
    values.flags.writeable = False
    there(codec, values)
    assert values.tobytes() == kept.tobytes()


# -- what feeds back -------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "f16", "ecq", "ecq:0.5", "topk_sign", "topk_sign:0.5"])
@settings(max_examples=20)
@given(hnp.arrays(np.float32, st.integers(1, 90), elements=st.floats(-8, 8, width=32)))
def test_an_error_that_is_fed_back_is_smaller_than_what_was_sent(codec: str, values: Flat) -> None:
    """Karimireddy et al. 2019, assumption A: a contraction."""
    assert feeds_back(codec)
    error = decode(there(codec, values), flat_schema(values.size))["t0"].astype(np.float64) - values
    norm = float(np.linalg.norm(values.astype(np.float64)))
    assert np.linalg.norm(error) < norm or norm < 1e-40


@settings(max_examples=20)
@given(hnp.arrays(np.float32, st.integers(1, 90), elements=st.floats(-8, 8, width=32)))
def test_the_largest_error_of_q8_is_a_hundredth_of_the_largest_value(values: Flat) -> None:
    """No contraction of norms, but of maxima: what is fed back stays below 1% of an update."""
    error = decode(there("q8", values), flat_schema(values.size))["t0"].astype(np.float64) - values
    assert np.abs(error).max() <= 0.0081 * float(np.abs(values).max()) + 2.0 * NORMAL


# -- names -----------------------------------------------------------------------------------------


def test_codec_ids_are_never_reused() -> None:
    assert {name: codec.number for name, codec in CODECS.items()} == {
        "raw": 1,
        "f16": 2,
        "q8": 3,
        "ecq_sr": 4,
        "ecq": 5,
        "q4": 6,
        "eden1": 7,
        "eden": 8,
        "topk_sign": 9,
    }
    assert (*CODECS, AUTO) == CODEC_NAMES


def test_a_codec_says_whether_its_error_may_be_fed_back_and_whether_its_mean_is_exact() -> None:
    assert {name for name, codec in CODECS.items() if codec.feeds_back} == {
        "raw",
        "f16",
        "q8",
        "ecq",
        "topk_sign",
    }
    assert {name for name, codec in CODECS.items() if not codec.unbiased} == {"ecq", "topk_sign"}


@pytest.mark.parametrize("spec", [*EACH, AUTO, "auto:0.5", "auto:0.5:9000"])
def test_names_and_numbers_are_specs(spec: str) -> None:
    assert check_spec(spec) == spec
    assert name_of(spec) in CODEC_NAMES


def test_a_number_changes_how_a_tensor_is_written_not_how_it_is_read() -> None:
    for name, codec in CODECS.items():
        if codec.make is not None:
            assert codec_for(f"{name}:0.25").number == codec.number
            values = bell(300)
            assert there(f"{name}:0.25", values) != there(name, values)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("zip", "raw, f16, q8"),
        ("", "raw, f16, q8"),
        ("ECQ", "raw, f16, q8"),
        ("raw:3", "takes no number"),
        ("ecq:", "number above 0"),
        ("ecq:0", "number above 0"),
        ("ecq:-1", "number above 0"),
        ("ecq:nan", "number above 0"),
        ("ecq:inf", "number above 0"),
        ("ecq:three", "number above 0"),
        ("ecq:3:4", "number above 0"),
        ("topk_sign:1.5", "at most 1"),
        ("auto:", "number above 0"),
        ("auto:0.5:-3", "whole number of bytes"),
        ("auto:1:2:3", "auto:ERROR:BYTES"),
    ],
)
def test_a_spec_that_means_nothing_is_our_own_mistake(spec: str, why: str) -> None:
    with pytest.raises(LocalProtocolError, match=why):
        check_spec(spec)


def test_auto_is_no_codec_of_its_own() -> None:
    with pytest.raises(LocalProtocolError, match="auto"):
        codec_for(AUTO)


def test_a_rotated_tensor_draws_from_its_own_place() -> None:
    """Two equal tensors of a payload are rotated otherwise, so that their errors differ."""
    made = flat_schema(256, 2)
    back = decode(encode("eden1", tensors_of(made, bell(256)), made, seed=1), made)
    assert back["t0"].tobytes() != back["t1"].tobytes()
    assert not np.allclose(rotate(bell(256), 1, 0), rotate(bell(256), 1, 1))
