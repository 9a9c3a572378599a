import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import (
    CODEC_NAMES,
    Payload,
    decode,
    encode,
    encode_with_feedback,
    keeps_residual,
)
from quantization.codecs import CODECS
from tests.quantization.forge import heavy, schema
from wire import Tensors
from wire.errors import LocalProtocolError, NotFiniteError, SchemaMismatchError

SCHEMA = schema((10, 20), (20,), ())
SCHEMA_NAMES = [spec.name for spec in SCHEMA.tensors]
FED_BACK = [name for name in CODEC_NAMES if keeps_residual(name)]


def update(salt: int, scale: float = 1.0) -> Tensors:
    return {
        spec.name: np.asarray(heavy(spec.size, salt).reshape(spec.shape) * np.float32(scale))
        for spec in SCHEMA.tensors
    }


def flat(tensors: Tensors) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([np.ravel(each).astype(np.float64) for each in tensors.values()])


@pytest.mark.parametrize("codec", FED_BACK)
def test_what_was_sent_and_what_is_left_are_what_there_was(codec: str) -> None:
    tensors, before = update(1), update(2, 0.1)
    payload, left = encode_with_feedback(codec, tensors, before, SCHEMA, seed=1)
    sent = decode(payload, SCHEMA)
    for name, codec_of_tensor in zip(SCHEMA_NAMES, Payload(payload, SCHEMA).codecs, strict=True):
        assert (name in left) == (not CODECS[str(codec_of_tensor)].unbiased)
        if name in left:
            whole = tensors[name] + before[name]
            assert np.allclose(sent[name] + left[name], whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("codec", FED_BACK)
def test_nothing_is_left_before_the_first(codec: str) -> None:
    payload, _left = encode_with_feedback(codec, update(1), {}, SCHEMA, seed=1)
    assert payload == encode(codec, update(1), SCHEMA, seed=1, feedback=True)


@pytest.mark.parametrize("codec", ["ecq", "ecq:2", "topk_sign"])
def test_all_that_was_ever_sent_catches_up_with_all_that_there_was(codec: str) -> None:
    """Of a sum only what is left now is missing, and that stays bounded: no update is lost."""
    left: Tensors = {}
    sent = np.zeros(SCHEMA.parameters)
    total = np.zeros(SCHEMA.parameters)
    norms = []
    for number in range(120):
        tensors = update(number % 7)
        payload, left = encode_with_feedback(codec, tensors, left, SCHEMA, seed=number)
        sent += flat(decode(payload, SCHEMA))
        total += flat(tensors)
        norms.append(float(np.linalg.norm(flat(left))))
        assert np.allclose(sent + flat(left), total, rtol=1e-4, atol=1e-2)
    # It saturates: no longer grows once its first half is over.
    assert max(norms[60:]) <= 2.0 * max(norms[:60]) + 1e-3


@settings(max_examples=4)
@given(st.integers(1, 1000))
def test_the_same_update_again_and_again_arrives(salt: int) -> None:
    goal = update(salt)
    left: Tensors = {}
    sent = np.zeros(SCHEMA.parameters)
    for number in range(40):
        tensors = goal if number == 0 else {k: np.zeros_like(v) for k, v in goal.items()}
        payload, left = encode_with_feedback("ecq", tensors, left, SCHEMA, seed=number)
        sent += flat(decode(payload, SCHEMA))
    assert np.linalg.norm(sent - flat(goal)) <= 0.05 * np.linalg.norm(flat(goal))


def test_neither_update_nor_residual_is_changed() -> None:
    tensors, before = update(1), update(2)
    kept = (flat(tensors), flat(before))
    encode_with_feedback("topk_sign", tensors, before, SCHEMA, seed=1)
    assert (flat(tensors) == kept[0]).all()
    assert (flat(before) == kept[1]).all()


@pytest.mark.parametrize("codec", ["ecq_sr", "q4", "eden", "eden1", "ecq_sr:2", "raw", "q8"])
def test_an_error_that_would_grow_is_refused(codec: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_with_feedback(codec, update(1), {}, SCHEMA, seed=1)


def test_a_residual_of_another_model_is_refused() -> None:
    with pytest.raises(SchemaMismatchError):
        encode_with_feedback("ecq", update(1), {"t0": np.zeros(3, np.float32)}, SCHEMA, seed=1)


def test_a_sum_that_leaves_float32_is_refused() -> None:
    huge = {k: np.full_like(v, 3e38) for k, v in update(1).items()}
    with pytest.raises(NotFiniteError):
        encode_with_feedback("ecq", huge, huge, SCHEMA, seed=1)


def test_auto_keeps_a_residual_of_dense_tensors_alone() -> None:
    """A sparse tensor's error has no mean; that of a dense one is sent with the next update."""
    chance = np.random.Generator(np.random.Philox(5))
    shapes = schema((64, 64), (64, 64), (64,))
    dense, sparse = (chance.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    sparse[chance.random((64, 64)) < 0.95] = 0.0
    tensors = {"t0": dense, "t1": sparse, "t2": np.ones(64, np.float32)}
    payload, left = encode_with_feedback("auto", tensors, {}, shapes, seed=1)
    assert Payload(payload, shapes).codecs == ("ecq", "ecq_sr", "ecq_sr")
    assert list(left) == ["t0"]
    again, _left = encode_with_feedback("auto", tensors, left, shapes, seed=1)
    assert not np.array_equal(decode(again, shapes)["t0"], decode(payload, shapes)["t0"])


def test_auto_without_feedback_keeps_to_codecs_without_bias() -> None:
    chance = np.random.Generator(np.random.Philox(6))
    shapes = schema((64, 64))
    tensors = {"t0": chance.standard_normal((64, 64)).astype(np.float32)}
    assert Payload(encode("auto", tensors, shapes, seed=1), shapes).codecs == ("eden",)
