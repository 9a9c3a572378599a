import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from quantization import CODEC_NAMES, open_container, pack_container
from quantization.container import DTYPES
from wire import LocalProtocolError, PotluckError, RemoteProtocolError, limits

Arrays = dict[str, NDArray[Any]]


def sample() -> Arrays:
    chance = np.random.default_rng(5)
    return {
        "w": chance.standard_normal((30, 7)).astype(np.float32),
        "half": np.array([1.5, -2.0, 0.25], np.float16),
        "wide": chance.standard_normal(9),
        "whole": np.arange(-3, 4),
        "bits": np.array([True, False, True]),
        "b": np.array(2.5),
        "none": np.zeros((0, 3), np.int32),
        " odd/name.npy \u540d\n": np.ones(2, np.uint8),
    }


def with_description(description: Any, payload: bytes = b"") -> bytes:
    text = msgspec.msgpack.encode(description)
    return struct.pack("<4sBII", b"PLUK", 1, len(text), zlib.crc32(text)) + text + payload


def described(tensors: list[dict[str, Any]], dtypes: list[str]) -> dict[str, Any]:
    return {"schema": {"tensors": tensors}, "dtypes": dtypes}


def tensor(name: str = "x", shape: tuple[int, ...] = (1,), **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": "float32", "part": "shared"} | more


def same(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(
        (one[n].dtype, one[n].shape, one[n].tobytes())
        == (other[n].dtype, other[n].shape, other[n].tobytes())
        for n in one
    )


def test_raw_gives_back_every_array_in_its_dtype_shape_and_order() -> None:
    container = open_container(pack_container("raw", sample(), seed=0))
    decoded = container.tensors()
    assert {name: a.dtype.name for name, a in decoded.items()} == container.dtypes
    rounded = sample()
    rounded["wide"] = rounded["wide"].astype(np.float32).astype(np.float64)
    assert same(decoded, rounded)
    assert container.codec == "raw"
    assert container.codecs == {n: "raw" if a.size else None for n, a in sample().items()}


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_codec_keeps_dtypes_and_says_what_it_is(codec: str) -> None:
    chance = np.random.default_rng(6)
    made: Arrays = {"w": chance.standard_normal((40, 9)), "n": chance.integers(-9, 9, 50)}
    container = open_container(pack_container(codec, made, seed=3))
    assert container.codec == codec
    assert {name: a.dtype for name, a in container.tensors().items()} == {
        name: a.dtype for name, a in made.items()
    }
    assert pack_container(codec, made, seed=3) == pack_container(codec, made, seed=3)


def test_the_byte_order_of_an_array_does_not_matter() -> None:
    little, big = np.arange(5, dtype="<f4"), np.arange(5, dtype=">f4")
    assert pack_container("q8", {"x": big}, seed=0) == pack_container("q8", {"x": little}, seed=0)


@given(
    arrays(
        st.sampled_from(sorted(DTYPES - {"bfloat16", "float64"})),
        array_shapes(min_dims=0, max_dims=3, min_side=0),
    )
)
def test_what_raw_takes_it_gives_back_to_the_bit(array: NDArray[Any]) -> None:
    try:
        data = pack_container("raw", {"x": array}, seed=0)
    except PotluckError:
        large = float(np.abs(array.astype(np.float64)).max())
        assert not large <= (2**24 if array.dtype.kind in "iu" else 1e37)
        return
    assert same(open_container(data).tensors(), {"x": array})


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({}, "no arrays"),
        ({"": np.ones(1)}, "empty"),
        ({"n" * 65: np.ones(1)}, "n" * 64),
        ({"x": np.ones((1,) * 9)}, "x: "),
        ({"x": np.array([1.0, np.nan])}, "x: has values that are not finite"),
        ({"x": np.array([np.inf], np.float16)}, "x: has values that are not finite"),
        ({"x": np.array([1e39])}, "x: has values that do not fit float32"),
        ({"x": np.array([1e38])}, "x: has values above 1e\\+37"),
        ({"x": np.array([2**24 + 1])}, "x: 16777217"),
        ({"x": np.ones(2, complex)}, "x: has dtype complex128"),
        ({"x": np.array(["a"])}, "x: has dtype <U1"),
        ({"x": np.array([None])}, "x: has dtype object"),
        ({"x": np.ones(2, "V2")}, "x: has dtype"),
        ({"x": np.ones(2, np.longdouble)}, "x: has dtype"),
    ],
)
def test_what_cannot_be_encoded_is_refused_with_its_name(made: Arrays, says: str) -> None:
    with pytest.raises(PotluckError, match=says):
        pack_container("raw", made, seed=0)


def _first_seed_that_rounds_up(made: Arrays) -> int:
    wide = {"x": made["x"].astype(np.float32)}
    for seed in range(99):
        if open_container(pack_container("ecq_sr:19", wide, seed=seed)).tensors()["x"].any():
            return seed
    raise AssertionError("none")


def test_integers_that_a_codec_would_push_out_of_their_range_are_refused_when_encoded() -> None:
    made: Arrays = {"x": np.array([0] * 99 + [255], np.uint8)}
    # A step of 19 rms is more than 255.
    with pytest.raises(PotluckError, match="x: ecq_sr:19 makes values of it that uint8 has not"):
        pack_container("ecq_sr:19", made, seed=_first_seed_that_rounds_up(made))
    assert same(open_container(pack_container("raw", made, seed=0)).tensors(), made)


def test_bfloat16_comes_back_as_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    made = {"x": np.array([1.5, -3.0e30, 2.0**-100, 0.0], ml_dtypes.bfloat16)}
    assert same(open_container(pack_container("raw", made, seed=0)).tensors(), made)


def test_bfloat16_asks_for_its_package_where_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    data = pack_container("raw", {"x": np.ones(2, ml_dtypes.bfloat16)}, seed=0)
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(PotluckError, match="pip install ml_dtypes"):
        open_container(data).tensors()


@pytest.mark.parametrize("codec", ["raw", "ecq_sr", "eden"])
def test_every_truncation_is_an_error(codec: str) -> None:
    data = pack_container(codec, {"w": sample()["w"], "n": sample()["whole"]}, seed=1)
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            open_container(data[:size]).tensors()
    with pytest.raises(RemoteProtocolError):
        open_container(data + b"x").tensors()


@pytest.mark.parametrize("codec", ["f16", "ecq_sr", "eden"])
def test_every_flipped_bit_is_an_error_or_changes_nothing(codec: str) -> None:
    made: Arrays = {"w": sample()["w"][:5], "n": sample()["whole"]}
    data = pack_container(codec, made, seed=1)
    right = open_container(data).tensors()
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << (at % 8)
        try:
            read = open_container(bytes(flipped)).tensors()
        except RemoteProtocolError:
            continue
        assert same(read, right)


@pytest.mark.parametrize(
    "description",
    [
        described([tensor(shape=(2**40,))], ["float32"]),
        described([tensor(shape=(2**62, 4, 0))], ["float32"]),
        described([tensor(shape=(limits.MODEL_PARAMETERS_MAX, 2))], ["float32"]),
        described([tensor(shape=(-1,))], ["float32"]),
        described([tensor(shape=(1,) * 9)], ["float32"]),
        described([tensor("n" * 65)], ["float32"]),
        described([tensor(), tensor()], ["float32"] * 2),
        described([tensor(f"t{n}") for n in range(limits.TENSORS_MAX + 1)], []),
        described([tensor()], []),
        described([tensor()], ["float32", "float32"]),
        described([tensor()], ["object"]),
        described([tensor()], ["V2"]),
        described([tensor(dtype="float64")], ["float32"]),
        described([tensor(part="mine")], ["float32"]),
        described([tensor(more=1)], ["float32"]),
        {**described([tensor()], ["float32"]), "more": 1},
        dict(reversed(described([tensor()], ["float32"]).items())),
        described([{"name": "x", "shape": [1]}], ["float32"]),
        [],
        7,
    ],
)
def test_a_description_from_whoever_is_held_against_every_bound(description: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        open_container(with_description(description))


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_a_typed_error(data: bytes) -> None:
    for whole in (
        data,
        b"PLUK\x01" + data,
        struct.pack("<4sBII", b"PLUK", 1, len(data), zlib.crc32(data)) + data,
    ):
        with pytest.raises(RemoteProtocolError):
            open_container(whole)


# -- secagg_int ------------------------------------------------------------------------------------


def test_words_of_one_update_come_back_within_a_step() -> None:
    made: Arrays = {
        "w": np.linspace(-1, 1, 3_000).reshape(60, 50),
        "b": np.array(0.5, np.float32),
    }
    container = open_container(pack_container("secagg_int", made, seed=3))
    assert container.codec == "secagg_int"
    assert container.codecs == {"w": "secagg_int", "b": "secagg_int"}
    assert len(container.payload) == 3_001
    decoded = container.tensors()
    lost = sum(float(np.sum(np.square(decoded[name] - made[name]))) for name in made)
    assert lost < 0.03 * sum(float(np.sum(np.square(x))) for x in made.values())


def test_the_mean_of_words_is_the_update_whatever_the_share() -> None:
    values = np.random.default_rng(1).standard_normal(400)
    made = {"x": values}
    back = [
        open_container(pack_container("secagg_int:0.25", made, seed=seed)).tensors()["x"]
        for seed in range(400)
    ]
    error = np.linalg.norm(np.mean(back, axis=0) - values) / np.linalg.norm(values)
    assert error < 3.0 * np.sqrt(3.1 / 400)


@pytest.mark.parametrize(
    "array", [np.zeros(9, np.float32), np.zeros((0, 2)), np.array(1e-45, np.float32), np.array(3)]
)
def test_words_of_next_to_nothing_come_back(array: NDArray[Any]) -> None:
    back = open_container(pack_container("secagg_int", {"x": array}, seed=0)).tensors()["x"]
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    np.testing.assert_allclose(back, array, rtol=0.5, atol=1e-44)


@pytest.mark.parametrize("spec", ["secagg_int:2", "secagg_int:0", "secagg_int:", "secagg_int:1:2"])
def test_a_share_that_is_none_is_our_own_mistake(spec: str) -> None:
    with pytest.raises(LocalProtocolError):
        pack_container(spec, {"x": np.ones(3)}, seed=0)


def test_words_too_large_to_be_turned_are_refused() -> None:
    with pytest.raises(PotluckError, match="norm"):
        pack_container("secagg_int", {"x": np.full(4_000, 1e37, np.float32)}, seed=0)


def test_words_that_are_cut_or_flipped_are_refused() -> None:
    data = pack_container("secagg_int", {"x": np.arange(9.0)}, seed=0)
    for end in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            open_container(data[:end])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            open_container(bytes(flipped))


@pytest.mark.parametrize(
    "change",
    [
        {"devices_max": 0},
        {"devices_max": 2**40},
        {"clip_norm": float("nan")},
        {"clip_norm": -1.0},
        {"clip_norm": 1e300},
        {"modulus_bits": 64},
        {"modulus_bits": 3},
        {"modulus_bits": 16},
        {"keep_fraction": 0.0},
        {"keep_fraction": 1e-9},
        {"round_seed": "0"},
        {"check": 1},
    ],
)
def test_parameters_of_words_that_lie_are_refused(change: dict[str, Any]) -> None:
    payload = bytes([1] * 5)
    words = {
        "round_seed": 0,
        "devices_max": 10,
        "clip_norm": 1.0,
        "modulus_bits": 8,
        "keep_fraction": 1.0,
        "check": zlib.crc32(payload),
    }
    description = described([tensor(shape=(5,), part="personal")], ["float32"])
    good = with_description(description | {"words": words}, payload)
    assert open_container(good).tensors()["x"].shape == (5,)
    with pytest.raises(RemoteProtocolError):
        open_container(with_description(description | {"words": words | change}, payload)).tensors()
