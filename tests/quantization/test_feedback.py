import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import CODEC_NAMES, decode, encode, encode_with_feedback, feeds_back
from tests.quantization.forge import heavy, schema
from wire import Tensors
from wire.errors import LocalProtocolError, NotFiniteError, SchemaMismatchError

SCHEMA = schema((10, 20), (20,), ())
FED_BACK = [name for name in CODEC_NAMES if name != "auto" and feeds_back(name)]


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
    total = flat(tensors) + flat(before)
    assert np.allclose(flat(sent) + flat(left), total, rtol=1e-6, atol=1e-6)
    SCHEMA.check(left)


@pytest.mark.parametrize("codec", FED_BACK)
def test_nothing_is_left_before_the_first(codec: str) -> None:
    payload, _left = encode_with_feedback(codec, update(1), {}, SCHEMA, seed=1)
    assert payload == encode(codec, update(1), SCHEMA, seed=1)


@pytest.mark.parametrize("codec", FED_BACK)
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


@pytest.mark.parametrize("codec", ["ecq_sr", "q4", "eden", "eden1", "ecq_sr:2", "auto"])
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
